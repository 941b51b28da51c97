// The image servers that `utsuwa` knows from the beginning. Their lists are for clients; by the server's API, images are
// had by their aliases.
import type { Config } from "./api/types";

export const REMOTES: Record<string, string> = {
  images: "https://images.linuxcontainers.org",
  ubuntu: "https://cloud-images.ubuntu.com/releases",
};

// The source of an image in requests: of this server, for an empty name of a remote.
export function imageSource(remote: string, image: string): Config {
  const wanted = { type: "image", alias: image };
  const server = REMOTES[remote];
  return server ? { ...wanted, mode: "pull", server, protocol: "simplestreams" } : wanted;
}
