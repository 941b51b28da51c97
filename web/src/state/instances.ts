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
    // What may have changed after the list that is under way was made.
    const touched = new Set<string>();
    let live = true;
    let list: "under way" | "read" | "failed" = "under way";
    let asked = 0; // lists, of which only the last one counts

    const show = () => {
      const sorted = [...known.values()].sort((a, b) => byName(a.name, b.name));
      setFound({ list: sorted, error: undefined });
    };
    const loadAll = async () => {
      asked += 1;
      const own = asked;
      list = "under way";
      await listening();
      if (!live || own !== asked) return;
      touched.clear();
      try {
        const all = await get<Instance[]>(withQuery(path("instances"), { recursion: 2, project }));
        if (!live || own !== asked) return;
        known.clear();
        for (const instance of all) known.set(instance.name, instance);
        list = "read";
        show();
        for (const name of touched) loadSoon(name, 0);
      } catch (error) {
        if (!live || own !== asked) return;
        list = "failed";
        setFound({ list: undefined, error: error as ApiError });
      }
    };
    const loadOne = async (name: string): Promise<void> => {
      waiting.delete(name);
      if (list === "under way") return void touched.add(name);
      if (list === "failed") return loadAll();
      const before = asked;
      let instance: Instance | undefined;
      try {
        instance = await get<Instance>(withQuery(path("instances", name), { recursion: 1, project }));
      } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 404) return undefined;
      }
      if (!live) return undefined;
      // A list was asked for meanwhile, and either of the two may be the older one.
      if (before !== asked) return loadOne(name);
      if (instance) known.set(name, instance);
      else known.delete(name);
      return show();
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
