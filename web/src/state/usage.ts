// What an instance uses, every two seconds while it is looked at.
import { useEffect, useState } from "preact/hooks";
import { get } from "../api/client";
import type { State } from "../api/types";
import { POINTS } from "../components/chart";

export interface Usage {
  cpu: number; // percent of one processor
  memory: number; // bytes
  disk: number; // bytes
  received: number; // bytes per second
  sent: number; // bytes per second
}

const PERIOD = 2000;

interface Reading {
  at: number;
  cpu: number;
  received: number;
  sent: number;
}

function reading(state: State): Reading {
  const nics = Object.values(state.network ?? {}).filter((nic) => nic.type !== "loopback");
  const sum = (value: "bytes_received" | "bytes_sent") =>
    nics.reduce((total, nic) => total + nic.counters[value], 0);
  return {
    at: performance.now(),
    cpu: state.cpu.usage,
    received: sum("bytes_received"),
    sent: sum("bytes_sent"),
  };
}

function usage(state: State, before: Reading, now: Reading): Usage {
  const seconds = (now.at - before.at) / 1000;
  const rate = (after: number, earlier: number) => Math.max(0, (after - earlier) / seconds);
  return {
    cpu: rate(now.cpu, before.cpu) / 1e7,
    memory: state.memory.usage,
    disk: Object.values(state.disk ?? {}).reduce((total, disk) => total + disk.usage, 0),
    received: rate(now.received, before.received),
    sent: rate(now.sent, before.sent),
  };
}

export function useUsage(url: string): Usage[] {
  const [found, setFound] = useState<Usage[]>([]);
  useEffect(() => {
    let before: Reading | undefined;
    let live = true;
    const look = async () => {
      if (document.hidden) return;
      try {
        const state = await get<State>(url);
        const now = reading(state);
        const last = before;
        before = now;
        if (live && last) setFound((old) => [...old, usage(state, last, now)].slice(-POINTS));
      } catch {
        before = undefined; // it has stopped, or the server is away: the list of events says so
      }
    };
    setFound([]);
    void look();
    const timer = setInterval(() => void look(), PERIOD);
    return () => {
      live = false;
      clearInterval(timer);
    };
  }, [url]);
  return found;
}
