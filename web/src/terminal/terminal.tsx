// A terminal with a shell of the instance, or with its console.
import { useCallback, useRef } from "preact/hooks";
import type { Instance } from "../api/types";
import { command } from "../command";
import { CommandLine } from "../components/command-line";
import { t } from "../i18n";
import type { Connect, State } from "./connection";
import { Console } from "./console";
import { ReaderCheck } from "./reader-check";
import { Shell } from "./shell";
import { useTerminal } from "./use-terminal";

export type Kind = "shell" | "console";

function saidOf(state: State, kind: Kind): string {
  switch (state.kind) {
    case "starting":
      return t("terminalStarting");
    case "open":
      return kind === "shell" ? t("terminalOpen") : t("consoleOpen");
    case "lost":
      return kind === "shell" ? t("terminalLost") : t("consoleLost");
    case "replaced":
      return t("terminalReplaced");
    case "ended":
      return state.status === undefined ? t("terminalOver") : t("terminalEnded", { status: state.status });
    case "failed":
      return state.why;
  }
}

export function TerminalView({ instance, kind }: { instance: Instance; kind: Kind }) {
  const { name, project } = instance;
  const force = useRef(false);
  const connect = useCallback<Connect>(
    (_, handlers) =>
      kind === "shell" ? new Shell(instance, handlers) : new Console(instance, handlers, force.current),
    [name, project, kind],
  );
  const terminal = useTerminal(connect);
  const { state } = terminal;

  const again = (forced: boolean) => {
    force.current = forced;
    terminal.again();
    terminal.focus();
  };
  const words = kind === "shell" ? ["exec", name, "--", "bash"] : ["console", name];
  return (
    <div class="terminal-box">
      <div class="status">
        <span role="status">{saidOf(state, kind)}</span>
        {state.kind === "open" && kind === "shell" && (
          <button type="button" class="button" onClick={terminal.end}>
            {t("endShell")}
          </button>
        )}
        {state.kind === "replaced" && (
          <button type="button" class="button" onClick={() => again(false)}>
            {t("takeUp")}
          </button>
        )}
        {(state.kind === "ended" || (state.kind === "failed" && !state.busy)) && (
          <button type="button" class="button" onClick={() => again(false)}>
            {kind === "shell" ? t("newShell") : t("connectAgain")}
          </button>
        )}
        {state.kind === "failed" && state.busy && (
          <button
            type="button"
            class="button"
            data-command={command(project, "console", "--force", name)}
            onClick={() => again(true)}
          >
            {t("takeOver")}
          </button>
        )}
        <span class="space" />
        <ReaderCheck terminal={terminal} />
        <CommandLine command={command(project, ...words)} />
      </div>
      <div class="screen" ref={terminal.box} />
    </div>
  );
}
