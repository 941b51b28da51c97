// The terminal with the shell in the visitor's container.
import type { RefObject } from "preact";
import { useCallback, useImperativeHandle } from "preact/hooks";
import type { Connect, State } from "../terminal/connection";
import { ReaderCheck } from "../terminal/reader-check";
import { useTerminal } from "../terminal/use-terminal";
import type { Activity } from "./activity";
import { t } from "./i18n";
import { typed, VisitorShell } from "./shell";

export interface Keyboard {
  focus: () => void;
  // Type a command, and Enter.
  enter: (command: string) => void;
}

interface Props {
  activity: Activity;
  keyboard: RefObject<Keyboard | null>;
  // Asked for by the keyboard.
  onLeave: () => void;
  // The session may have ended.
  onDoubt: () => void;
}

function saidOf(state: State): string {
  switch (state.kind) {
    case "starting":
      return t("terminalConnecting");
    case "open":
      return t("terminalOpen");
    case "replaced":
      return t("terminalReplaced");
    default:
      return t("terminalLost");
  }
}

export function TerminalPane({ activity, keyboard, onLeave, onDoubt }: Props) {
  const connect = useCallback<Connect>((_, handlers) => new VisitorShell(handlers, activity, onDoubt), []);
  const terminal = useTerminal(connect, onLeave);
  const { state } = terminal;

  useImperativeHandle(keyboard, () => ({
    focus: terminal.focus,
    enter: (command) => {
      terminal.send(typed(command));
      terminal.focus();
    },
  }));

  const takeUp = () => {
    terminal.again();
    terminal.focus();
  };

  return (
    <section class="terminal-box" aria-label={t("terminal")}>
      <div class="status">
        <span role="status">{saidOf(state)}</span>
        {state.kind === "replaced" && (
          <button type="button" class="button" onClick={takeUp}>
            {t("takeUp")}
          </button>
        )}
        <span class="space" />
        <ReaderCheck terminal={terminal} />
        <span class="note">{t("leaveTerminal")}</span>
      </div>
      <div class="screen" ref={terminal.box} />
    </section>
  );
}
