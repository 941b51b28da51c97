// A change that a dialog makes.
import type { ApiError } from "../api/client";

// Returns the message of the error, for the dialog to show; undefined if there was none.
export async function attempt(work: () => Promise<unknown>): Promise<string | undefined> {
  try {
    await work();
    return undefined;
  } catch (error) {
    return (error as ApiError).message;
  }
}
