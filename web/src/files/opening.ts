// What is behind a path of an instance: a folder, a text that can be edited, or another file.
import { ApiError } from "../api/client";
import * as files from "../api/files";
import type { Instance } from "../api/types";
import { t } from "../i18n";
import { parent, resolve, shownName } from "./names";

const EDITABLE = 256 * 1024; // bytes of a text that is edited here
const LINKS = 40; // as many as Linux follows

export type Opened =
  | { kind: "folder"; path: string }
  | { kind: "text"; path: string; text: string }
  | { kind: "other"; path: string; content: Blob };

interface Target {
  path: string;
  type: files.FileType;
}

async function textOf(content: Blob): Promise<string | undefined> {
  if (content.size > EDITABLE) return undefined;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
      await content.arrayBuffer(),
    );
    return text.includes("\0") || text.includes("\r") ? undefined : text;
  } catch {
    return undefined;
  }
}

// What is at the end of symlinks. Throws ApiError if they have none.
async function follow(instance: Instance, start: string): Promise<Target> {
  let path = start;
  for (let count = 0; count <= LINKS; count++) {
    const { type } = await files.attributes(instance, path);
    if (type !== "symlink") return { path, type };
    path = resolve(parent(path), await (await files.read(instance, path, type)).text());
  }
  throw new ApiError(t("manyLinks", { name: shownName(start) }), 0);
}

// Throws ApiError if there is nothing, or nothing that can be read.
export async function openPath(instance: Instance, start: string): Promise<Opened> {
  const { path, type } = await follow(instance, start);
  if (type === "directory") return { kind: "folder", path };
  const content = await files.read(instance, path, type);
  const text = await textOf(content);
  return text === undefined ? { kind: "other", path, content } : { kind: "text", path, text };
}
