// The help of configuration keys, as the server's own tables have it; read once.
import { useEffect, useState } from "preact/hooks";
import { get } from "../api/client";
import type { KeyHelp } from "../api/types";

type Groups = Record<string, { keys: Record<string, KeyHelp>[] }>;
export type Help = Record<string, KeyHelp>;

let asked: Promise<{ configs: Record<string, Groups> }> | undefined;

async function read(kind: string): Promise<Help> {
  asked ??= get("/1.0/metadata/configuration");
  try {
    const groups = (await asked).configs[kind] ?? {};
    return Object.assign({}, ...Object.values(groups).flatMap((group) => group.keys));
  } catch {
    asked = undefined;
    return {};
  }
}

// `kind` is one of `instance`, `image`, `project`, `server`, `network_bridge`, `storage_overlay`,
// `storage_volume_overlay` and so on; undefined for nothing yet.
export function useKeyHelp(kind: string | undefined): Help {
  const [help, setHelp] = useState<Help>({});
  useEffect(() => {
    if (kind === undefined) return undefined;
    let wanted = true;
    void read(kind).then((found) => wanted && setHelp(found));
    return () => {
      wanted = false;
    };
  }, [kind]);
  return help;
}

// The help of a key, also of one that a pattern such as `environment.*` describes.
export function helpOf(help: Help, key: string): KeyHelp | undefined {
  if (Object.hasOwn(help, key)) return help[key];
  const pattern = Object.keys(help).find((name) => {
    const [before = "", after] = name.split("*");
    return after !== undefined && key.startsWith(before) && key.endsWith(after);
  });
  return pattern === undefined ? undefined : help[pattern];
}
