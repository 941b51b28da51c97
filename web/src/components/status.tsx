// The status of an instance by its dot and its name.
import { type Key, t } from "../i18n";

const KNOWN: Record<string, { dot: string; key: Key }> = {
  Running: { dot: "ok", key: "statusRunning" },
  Stopped: { dot: "", key: "statusStopped" },
  Frozen: { dot: "warn", key: "statusFrozen" },
  Error: { dot: "bad", key: "statusError" },
  Starting: { dot: "busy", key: "statusStarting" },
  Stopping: { dot: "busy", key: "statusStopping" },
};

export function Status({ status }: { status: string }) {
  const known = KNOWN[status];
  return (
    <span class="badge">
      <span class={`dot ${known?.dot ?? "busy"}`} />
      {known ? t(known.key) : status}
    </span>
  );
}
