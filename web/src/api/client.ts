// Requests to the REST API, which the page has no other way around.
import * as session from "./session";
import type { Envelope, Operation } from "./types";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

type Method = "HEAD" | "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
type Query = Record<string, string | number | boolean | undefined>;

export interface Tagged<T> {
  value: T;
  etag: string;
}

// The path of an object with its parts quoted: `path("instances", "a b")`.
export function path(...parts: string[]): string {
  return ["/1.0", ...parts.map(encodeURIComponent)].join("/");
}

export function withQuery(base: string, query: Query): string {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== undefined) fields.set(name, String(value));
  return fields.size ? `${base}?${fields}` : base;
}

interface Sent {
  headers?: Record<string, string>;
  body?: Blob | string;
}

// Send a request in the session of the page. Throws ApiError if there is no reply.
export async function request(method: Method, url: string, sent: Sent = {}): Promise<Response> {
  const key = session.key();
  const headers = { ...sent.headers, ...(key && { "X-Utsuwa-Key": key }) };
  // What is to be ended or deleted is so, also if the page is left at once.
  const keepalive = method === "DELETE";
  try {
    return await fetch(url, { ...sent, method, headers, keepalive });
  } catch {
    throw new ApiError("The server cannot be reached", 0);
  }
}

function send(method: Method, url: string, body?: unknown, etag?: string): Promise<Response> {
  const headers = {
    ...(etag && { "If-Match": etag }),
    ...(body !== undefined && { "Content-Type": "application/json" }),
  };
  return request(method, url, body === undefined ? { headers } : { headers, body: JSON.stringify(body) });
}

// The reply's envelope. Throws ApiError if it is an error.
export async function envelope(response: Response): Promise<Envelope> {
  let found: Envelope;
  try {
    found = (await response.json()) as Envelope;
  } catch {
    throw new ApiError(`${response.status} ${response.statusText}`, response.status);
  }
  if (found.type === "error") throw new ApiError(found.error, response.status);
  return found;
}

export async function get<T>(url: string): Promise<T> {
  return (await envelope(await send("GET", url))).metadata as T;
}

export async function getTagged<T>(url: string): Promise<Tagged<T>> {
  const response = await send("GET", url);
  return { value: (await envelope(response)).metadata as T, etag: response.headers.get("ETag") ?? "" };
}

export async function getText(url: string): Promise<string> {
  const response = await send("GET", url);
  if (!response.ok) await envelope(response);
  return response.text();
}

// Make a change; what the server does in the background is returned as an operation.
export async function change(
  method: Exclude<Method, "GET" | "HEAD">,
  url: string,
  body?: unknown,
  etag?: string,
): Promise<Operation | undefined> {
  const found = await envelope(await send(method, url, body, etag));
  return found.type === "async" ? (found.metadata as Operation) : undefined;
}

export async function post<T>(url: string, body: unknown): Promise<T> {
  return (await envelope(await send("POST", url, body))).metadata as T;
}

// Wait until an operation has ended. Throws ApiError if it failed.
export async function finished(operation: Operation): Promise<Operation> {
  const ended = await get<Operation>(`${path("operations", operation.id)}/wait`);
  if (ended.status_code !== 200) throw new ApiError(ended.err || ended.status, ended.status_code);
  return ended;
}

// Use a token for a session, whose cookie the browser keeps.
export async function signIn(token: string): Promise<void> {
  const opened = await post<{ key: string }>("/1.0/web/session", { token });
  session.keep(opened.key);
}

export async function signOut(): Promise<void> {
  await change("DELETE", "/1.0/web/session");
  session.forget();
}
