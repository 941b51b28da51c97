// Whether the step has been done: asked of the visitor's own daemon, by the site.
import { useEffect, useRef, useState } from "preact/hooks";
import type { Activity } from "./activity";
import { type Checked, check, type SiteError } from "./site";

export interface Checks {
  // What is missing, since the last check that showed it.
  missing: Checked | undefined;
  problem: SiteError | undefined;
  busy: boolean;
  look: () => void;
}

export function useChecks(step: string, isDone: boolean, activity: Activity, onDone: () => void): Checks {
  const [missing, setMissing] = useState<Checked>();
  const [problem, setProblem] = useState<SiteError>();
  const [busy, setBusy] = useState(false);
  const running = useRef(false);
  const again = useRef(false);

  const look = async (quiet = false): Promise<void> => {
    again.current = running.current;
    if (running.current) return;
    running.current = true;
    setBusy(true);
    try {
      const found = await check(step);
      setProblem(undefined);
      if (found.done) onDone();
      else if (!quiet) setMissing(found);
    } catch (error) {
      if (!quiet) setProblem(error as SiteError);
    }
    running.current = false;
    setBusy(false);
    if (again.current) void look();
  };

  // It may have been done before it was shown.
  useEffect(() => {
    if (isDone) return undefined;
    void look(true);
    return activity.listen(() => void look());
  }, [step, isDone]);

  return { missing, problem, busy, look: () => void look() };
}
