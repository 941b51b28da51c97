// Files in instances, over the API.
import { quotedPath } from "../files/names";
import { envelope, path, request, withQuery } from "./client";
import type { Instance } from "./types";

export type FileType = "file" | "directory" | "symlink";

export interface Attributes {
  type: FileType;
  mode: string;
  uid: string;
  gid: string;
  modified: string;
}

const OCTETS = "application/octet-stream";

function urlOf(instance: Instance, file: string): string {
  const base = withQuery(path("instances", instance.name, "files"), { project: instance.project });
  return `${base}&path=${quotedPath(file)}`;
}

function attributesOf(response: Response): Attributes {
  const header = (name: string) => response.headers.get(`X-LXD-${name}`) ?? "";
  return {
    type: header("type") as FileType,
    mode: header("mode"),
    uid: header("uid"),
    gid: header("gid"),
    modified: header("modified"),
  };
}

async function checked(response: Response): Promise<Response> {
  if (!response.ok) await envelope(response);
  return response;
}

// The names in a folder; undefined if it is none.
export async function list(instance: Instance, folder: string): Promise<string[] | undefined> {
  const response = await checked(await request("GET", urlOf(instance, folder)));
  if (attributesOf(response).type !== "directory") return undefined;
  return (await envelope(response)).metadata as string[];
}

export async function attributes(instance: Instance, file: string): Promise<Attributes> {
  const response = await request("HEAD", urlOf(instance, file));
  // A reply to HEAD does not say why it failed.
  return attributesOf(response.ok ? response : await checked(await request("GET", urlOf(instance, file))));
}

// The content of a file or a symlink, or a directory as a tar archive.
export async function read(instance: Instance, file: string, type: FileType): Promise<Blob> {
  const headers: Record<string, string> = type === "directory" ? { "X-LXD-type": "archive" } : {};
  return (await checked(await request("GET", urlOf(instance, file), { headers }))).blob();
}

// Create or overwrite a file. An existing one keeps its owner and mode.
export async function write(instance: Instance, file: string, body: Blob): Promise<void> {
  const headers = { "Content-Type": OCTETS, "X-LXD-type": "file" };
  await envelope(await request("POST", urlOf(instance, file), { headers, body }));
}

export async function makeFolder(instance: Instance, folder: string): Promise<void> {
  const headers = { "Content-Type": OCTETS, "X-LXD-type": "directory" };
  await envelope(await request("POST", urlOf(instance, folder), { headers }));
}

export async function remove(instance: Instance, file: string): Promise<void> {
  await envelope(await request("DELETE", urlOf(instance, file)));
}
