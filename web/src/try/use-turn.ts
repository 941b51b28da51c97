// Whose turn it is in a step that few visitors do at a time: asked while the step is shown, and left with it.
import { useEffect, useState } from "preact/hooks";
import { askTurn, leaveTurn, type SiteError, type Turn } from "./site";

const PERIOD = 3000; // milliseconds

export interface Queue {
  // As it was known last.
  turn: Turn | undefined;
  problem: SiteError | undefined;
}

export function useTurn(wanted: boolean): Queue {
  const [queue, setQueue] = useState<Queue>({ turn: undefined, problem: undefined });

  useEffect(() => {
    if (!wanted) return undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let shown = true;
    const leave = () => void leaveTurn().catch(() => undefined);
    const look = async () => {
      try {
        const turn = await askTurn();
        // The step was left meanwhile, and what was asked for may have come after that.
        if (!shown) return leave();
        setQueue({ turn, problem: undefined });
        if (turn.state === "done") return undefined;
      } catch (error) {
        if (!shown) return undefined;
        setQueue(({ turn }) => ({ turn, problem: error as SiteError }));
      }
      timer = setTimeout(() => void look(), PERIOD);
      return undefined;
    };
    void look();
    return () => {
      shown = false;
      clearTimeout(timer);
      leave();
    };
  }, [wanted]);

  return queue;
}
