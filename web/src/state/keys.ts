// The help of configuration keys, as the server's own tables have it; read once.
import { useEffect, useState } from "preact/hooks";
import { get } from "../api/client";
import type { KeyHelp } from "../api/types";

type Groups = Record<string, { keys: Record<string, KeyHelp>[] }>;
export type Help = Record<string, KeyHelp>;

let asked: Promise<{ configs: Record<string, Groups> }> | undefined;

// Groups of keys of devices are named after a type and its driver (`nic_bridged`), or after two types.
function isGroupOf(group: string, device: string): boolean {
  if (group === "unix-char-block") return device === "unix-char" || device === "unix-block";
  return group.split("_")[0] === device;
}

async function read(kind: string, device: string | undefined): Promise<Help> {
  asked ??= get("/1.0/metadata/configuration");
  try {
    const groups = Object.entries((await asked).configs[kind] ?? {});
    const wanted = groups.filter(([group]) => device === undefined || isGroupOf(group, device));
    return Object.assign({}, ...wanted.flatMap(([, group]) => group.keys));
  } catch {
    asked = undefined;
    return {};
  }
}

// `kind` is one of `instance`, `image`, `project`, `server`, `network_bridge`, `storage_overlay`,
// `storage_volume_overlay` and so on, or `devices` with a type of them; undefined for nothing yet.
export function useKeyHelp(kind: string | undefined, device?: string): Help {
  const [help, setHelp] = useState<Help>({});
  useEffect(() => {
    if (kind === undefined) return undefined;
    let wanted = true;
    void read(kind, device).then((found) => wanted && setHelp(found));
    return () => {
      wanted = false;
    };
  }, [kind, device]);
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
