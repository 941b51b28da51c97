// The seconds that are left of a session, by the server's clock.
import { useEffect, useState } from "preact/hooks";
import { serverTime } from "./site";

function secondsUntil(time: string): number {
  return Math.max(0, Math.ceil((Date.parse(time) - serverTime()) / 1000));
}

export function useRemaining(expiresAt: string): number {
  const [seconds, setSeconds] = useState(() => secondsUntil(expiresAt));
  useEffect(() => {
    const timer = setInterval(() => setSeconds(secondsUntil(expiresAt)), 1000);
    return () => clearInterval(timer);
  }, [expiresAt]);
  return seconds;
}

export function clock(seconds: number): string {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
