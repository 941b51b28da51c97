// The instances of a project with their states: read once, then one by one as events name them.
import { useLayoutEffect, useState } from "preact/hooks";
import { ApiError, get, path, withQuery } from "../api/client";
import { listening, onEvent, onResume } from "../api/events";
import type { Instance } from "../api/types";
import { byName } from "../order";

const SETTLE = 120;
const AGAIN = 3000; // an instance that has started gets its addresses a little later
const PREFIX = "/1.0/instances/";

export interface Instances {
  list: Instance[] | undefined;
  error: ApiError | undefined;
}

function nameIn(source: string, project: string): string | undefined {
  if (!source.startsWith(PREFIX)) return undefined;
  const url = new URL(source, location.href);
  if ((url.searchParams.get("project") ?? "default") !== project) return undefined;
  return decodeURIComponent(url.pathname.slice(PREFIX.length).split("/")[0] ?? "");
}

export function useInstances(project: string): Instances {
  const [found, setFound] = useState<Instances>({ list: undefined, error: undefined });

  // An effect after the next paint would send the request a frame later.
  useLayoutEffect(() => {
    const known = new Map<string, Instance>();
    const waiting = new Map<string, ReturnType<typeof setTimeout>>();
    let live = true;

    const show = () => {
      if (!live) return;
      const list = [...known.values()].sort((a, b) => byName(a.name, b.name));
      setFound({ list, error: undefined });
    };
    const loadAll = async () => {
      await listening();
      if (!live) return;
      try {
        const all = await get<Instance[]>(withQuery(path("instances"), { recursion: 2, project }));
        known.clear();
        for (const instance of all) known.set(instance.name, instance);
        show();
      } catch (error) {
        if (live) setFound({ list: undefined, error: error as ApiError });
      }
    };
    const loadOne = async (name: string) => {
      waiting.delete(name);
      try {
        known.set(name, await get<Instance>(withQuery(path("instances", name), { recursion: 1, project })));
      } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 404) return;
        known.delete(name);
      }
      show();
    };
    const loadSoon = (name: string, delay: number) => {
      clearTimeout(waiting.get(name));
      waiting.set(
        name,
        setTimeout(() => void loadOne(name), delay),
      );
    };

    void loadAll();
    const stops = [
      onResume(() => void loadAll()),
      onEvent((event) => {
        if (event.type !== "lifecycle") return;
        const name = nameIn(event.metadata.source, project);
        if (name === undefined) return;
        if (event.metadata.action === "instance-renamed") void loadAll();
        loadSoon(name, SETTLE);
        if (/-(started|restarted|resumed)$/.test(event.metadata.action)) {
          setTimeout(() => live && loadSoon(name, 0), AGAIN);
        }
      }),
    ];
    return () => {
      live = false;
      for (const timer of waiting.values()) clearTimeout(timer);
      for (const stop of stops) stop();
    };
  }, [project]);

  return found;
}
