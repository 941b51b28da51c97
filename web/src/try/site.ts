// The site's own requests: it has no other API, and the visitor's session is a cookie that only the browser sees.

export interface Site {
  // Of a session.
  minutes: number;
  // How long it lasts while no browser shows its terminal.
  minutes_unseen: number;
  sessions: { now: number; most: number };
  // The version of the terms, which is sent back by whoever accepts them.
  terms: string;
}

export interface Session {
  id: string;
  expires_at: string;
  state: "ready" | "ended";
  // The steps of the tour that have been done.
  done: string[];
  container: string;
}

export interface Step {
  id: string;
  commands: string[];
  // Whether few visitors do it at a time.
  in_turns: boolean;
}

// Where one is in the queue of a step that is done in turns: `ahead` visitors are before one, `seconds` are left of
// one's turn. Who has done the step needs none.
export type Turn =
  | { state: "waiting"; ahead: number; most: number }
  | { state: "turn"; seconds: number }
  | { state: "done" };

export interface Checked {
  done: boolean;
  // What is missing, as a code.
  hint: string;
  data: Record<string, string | number>;
}

export class SiteError extends Error {
  constructor(
    message: string,
    readonly code: string,
    // Seconds after which it may be tried again; 0 if nothing was said.
    readonly retryAfter = 0,
  ) {
    super(message);
  }
}

export const UNREACHABLE = "unreachable";
export const NO_SESSION = "no-session";

type Method = "GET" | "POST" | "DELETE";

// Milliseconds by which the server's clock is ahead of the browser's.
let ahead = 0;

export function serverTime(): number {
  return Date.now() + ahead;
}

async function failure(response: Response): Promise<SiteError> {
  const retryAfter = Number(response.headers.get("Retry-After") ?? 0) || 0;
  try {
    const { error, code } = (await response.json()) as { error: string; code: string };
    return new SiteError(error, code, retryAfter);
  } catch {
    // Of a proxy between here and the site, for instance.
    return new SiteError(`${response.status} ${response.statusText}`, "", retryAfter);
  }
}

async function ask<T>(method: Method, path: string, body?: unknown): Promise<T> {
  const given =
    body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response: Response;
  try {
    response = await fetch(`/api/${path}`, { method, ...given });
  } catch {
    throw new SiteError("The site cannot be reached", UNREACHABLE);
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (date) ahead = date - Date.now();
  if (!response.ok) throw await failure(response);
  const text = await response.text();
  return (text ? JSON.parse(text) : undefined) as T;
}

export const getSite = () => ask<Site>("GET", "site");
export const getTour = () => ask<Step[]>("GET", "tour");
export const getSession = () => ask<Session>("GET", "session");
export const endSession = () => ask<void>("DELETE", "session");
export const check = (step: string) =>
  ask<Checked>("POST", `session/steps/${encodeURIComponent(step)}/check`);
// Wait for one's turn, or say that one still does or still needs it.
export const askTurn = () => ask<Turn>("POST", "session/turn");
export const leaveTurn = () => ask<void>("DELETE", "session/turn");
export const sendFeedback = (stars: number, text: string) => ask<void>("POST", "feedback", { stars, text });

// Begin a session with what the visitor has accepted.
export async function beginSession(terms: string, language: string): Promise<Session> {
  await ask<unknown>("POST", "sessions", { terms, language });
  return getSession();
}
