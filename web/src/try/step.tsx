// One step of the tour: why, which commands, what to look at, and whether it is done.
import type { RefObject } from "preact";
import { Icon } from "../components/icon";
import type { Activity } from "./activity";
import { t } from "./i18n";
import { saidOf } from "./problem";
import { Marked, Prose } from "./prose";
import type { Checked, Step } from "./site";
import { hintOf, textOf } from "./tour";
import { type Checks, useChecks } from "./use-checks";
import { type Queue, useTurn } from "./use-turn";

interface Props {
  step: Step;
  eyebrow: string;
  heading: RefObject<HTMLHeadingElement | null>;
  isDone: boolean;
  activity: Activity;
  onCommand: (command: string) => void;
  onDone: () => void;
}

interface CommandsProps {
  commands: string[];
  // While it is the turn of others.
  disabled: boolean;
  onCommand: (command: string) => void;
}

function Commands({ commands, disabled, onCommand }: CommandsProps) {
  return (
    <div class="commands">
      {commands.map((command) => (
        <button
          key={command}
          type="button"
          class="typed"
          disabled={disabled}
          onClick={() => onCommand(command)}
        >
          <span class="hidden">{t("run")} </span>
          <code>{command}</code>
          <Icon name="terminal" />
        </button>
      ))}
      <p class="note">{t("commandsHelp")}</p>
    </div>
  );
}

function Waiting({ queue }: { queue: Queue }) {
  const { turn, problem } = queue;
  return (
    <>
      <div role="status">
        {problem && <p class="hint">{saidOf(problem)}</p>}
        {turn?.state === "waiting" && (
          <p class="hint">{t("turnWaiting", { most: turn.most, place: turn.ahead + 1 })}</p>
        )}
        {turn?.state === "turn" && <p class="note">{t("turnNow")}</p>}
      </div>
      {/* Outside of the status, which screen readers would announce each minute. */}
      {turn?.state === "turn" && (
        <p class="note">{t("turnLeft", { minutes: Math.max(1, Math.round(turn.seconds / 60)) })}</p>
      )}
    </>
  );
}

function Missing({ missing }: { missing: Checked }) {
  return (
    <p class="hint">
      <Marked text={hintOf(missing)} />
    </p>
  );
}

function Result({ isDone, checks }: { isDone: boolean; checks: Checks }) {
  const { missing, problem, busy, look } = checks;
  return (
    <div class="result">
      <div role="status">
        {isDone && (
          <p class="done">
            <Icon name="check" />
            {t("done")}
          </p>
        )}
        {!isDone && problem && <p class="hint">{saidOf(problem)}</p>}
        {!isDone && !problem && missing && <Missing missing={missing} />}
      </div>
      {!isDone && (
        <button type="button" class="button" aria-disabled={busy} onClick={look}>
          {t("check")}
        </button>
      )}
    </div>
  );
}

export function StepView({ step, eyebrow, heading, isDone, activity, onCommand, onDone }: Props) {
  const text = textOf(step.id);
  const checks = useChecks(step.id, isDone, activity, onDone);
  const queue = useTurn(step.in_turns);
  const state = queue.turn?.state;
  const waits = step.in_turns && !isDone && state !== "turn" && state !== "done";
  return (
    <article class="step">
      <header>
        <p class="note">{eyebrow}</p>
        <h1 tabIndex={-1} ref={heading}>
          {text.title}
        </h1>
      </header>
      <Prose text={text.why} />
      {step.in_turns && <Waiting queue={queue} />}
      <Commands commands={step.commands} disabled={waits} onCommand={onCommand} />
      {text.look && (
        <>
          <h2>{t("look")}</h2>
          <Prose text={text.look} />
        </>
      )}
      <Result isDone={isDone} checks={checks} />
    </article>
  );
}
