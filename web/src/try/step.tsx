// One step of the tour: why, which commands, what to look at, and whether it is done.
import type { RefObject } from "preact";
import { Icon } from "../components/icon";
import type { Activity } from "./activity";
import { t } from "./i18n";
import { Marked, Prose } from "./prose";
import type { Checked, Step } from "./site";
import { hintOf, textOf } from "./tour";
import { type Checks, useChecks } from "./use-checks";

interface Props {
  step: Step;
  eyebrow: string;
  heading: RefObject<HTMLHeadingElement | null>;
  isDone: boolean;
  activity: Activity;
  onCommand: (command: string) => void;
  onDone: () => void;
}

function Commands({ commands, onCommand }: { commands: string[]; onCommand: (command: string) => void }) {
  return (
    <div class="commands">
      {commands.map((command) => (
        <button key={command} type="button" class="typed" onClick={() => onCommand(command)}>
          <span class="hidden">{t("run")} </span>
          <code>{command}</code>
          <Icon name="terminal" />
        </button>
      ))}
      <p class="note">{t("commandsHelp")}</p>
    </div>
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
        {!isDone && problem && <p class="hint">{problem.message}</p>}
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
  return (
    <article class="step">
      <header>
        <p class="note">{eyebrow}</p>
        <h1 tabIndex={-1} ref={heading}>
          {text.title}
        </h1>
      </header>
      <Prose text={text.why} />
      <Commands commands={step.commands} onCommand={onCommand} />
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
