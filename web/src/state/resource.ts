// What is read from the API and read again when events say that it has changed.
import { useCallback, useLayoutEffect, useRef, useState } from "preact/hooks";
import { type ApiError, get } from "../api/client";
import { listening, onEvent, onResume } from "../api/events";
import type { ApiEvent } from "../api/types";

const SETTLE = 120; // milliseconds in which several events lead to one request

export interface Resource<T> {
  data: T | undefined;
  error: ApiError | undefined;
  reload: () => void;
}

export type Wakes = (event: ApiEvent) => boolean;

// Events of objects whose URL begins with /1.0/KIND.
export function concerns(...kinds: string[]): Wakes {
  return (event) =>
    event.type === "lifecycle" && kinds.some((kind) => event.metadata.source.startsWith(`/1.0/${kind}`));
}

// Read `url` (undefined for nothing yet), anew when `wakes` is true of an event.
export function useResource<T>(url: string | undefined, wakes?: Wakes): Resource<T> {
  const [data, setData] = useState<T>();
  const [error, setError] = useState<ApiError>();
  const wanted = useRef(url);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  wanted.current = url;

  const load = useCallback(async () => {
    if (url === undefined) return;
    await listening();
    if (wanted.current !== url) return;
    try {
      const found = await get<T>(url);
      if (wanted.current !== url) return;
      setData(found);
      setError(undefined);
    } catch (problem) {
      if (wanted.current === url) setError(problem as ApiError);
    }
  }, [url]);

  const reload = useCallback(() => {
    clearTimeout(timer.current);
    timer.current = setTimeout(load, SETTLE);
  }, [load]);

  // An effect after the next paint would send the request a frame later.
  useLayoutEffect(() => {
    setData(undefined);
    setError(undefined);
    void load();
    const stops = [onResume(reload), ...(wakes ? [onEvent((event) => wakes(event) && reload())] : [])];
    return () => {
      clearTimeout(timer.current);
      for (const stop of stops) stop();
    };
  }, [load]);

  return { data, error, reload };
}
