// The tour: where one is in it, the step that is shown, and the end of it.
import { useEffect, useRef, useState } from "preact/hooks";
import { Icon } from "../components/icon";
import type { Activity } from "./activity";
import { Farewell } from "./farewell";
import { t } from "./i18n";
import type { Step } from "./site";
import { StepView } from "./step";
import { textOf } from "./tour";

interface Props {
  steps: Step[];
  doneBefore: string[];
  activity: Activity;
  onCommand: (command: string) => void;
  thanked: boolean;
  onThanked: () => void;
}

interface ProgressProps {
  steps: Step[];
  done: ReadonlySet<string>;
  current: number;
  onChoose: (index: number) => void;
}

function Progress({ steps, done, current, onChoose }: ProgressProps) {
  return (
    <nav class="steps" aria-label={t("steps")}>
      <ol>
        {steps.map((step, index) => {
          const { title } = textOf(step.id);
          const isDone = done.has(step.id);
          return (
            <li key={step.id}>
              <button
                type="button"
                class={isDone ? "done" : ""}
                aria-current={index === current ? "step" : undefined}
                title={title}
                onClick={() => onChoose(index)}
              >
                <span aria-hidden="true">{isDone ? <Icon name="check" /> : index + 1}</span>
                <span class="hidden">{isDone ? t("stepDone", { title }) : title}</span>
              </button>
            </li>
          );
        })}
      </ol>
      <span class="note">{t("progressOf", { done: done.size, all: steps.length })}</span>
    </nav>
  );
}

export function TourPane({ steps, doneBefore, activity, onCommand, thanked, onThanked }: Props) {
  const [done, setDone] = useState<ReadonlySet<string>>(() => new Set(doneBefore));
  const [current, setCurrent] = useState(() => {
    const first = steps.findIndex((step) => !doneBefore.includes(step.id));
    return first < 0 ? steps.length : first;
  });
  const heading = useRef<HTMLHeadingElement>(null);
  const moved = useRef(false);
  const step = steps[current];

  // Whoever uses a screen reader or the keyboard goes on in the new step.
  useEffect(() => {
    if (moved.current) heading.current?.focus();
  }, [current]);

  const choose = (index: number) => {
    moved.current = true;
    setCurrent(index);
  };

  return (
    <>
      <Progress steps={steps} done={done} current={current} onChoose={choose} />
      {step ? (
        <StepView
          key={step.id}
          step={step}
          eyebrow={t("of", { number: current + 1, all: steps.length })}
          heading={heading}
          isDone={done.has(step.id)}
          activity={activity}
          onCommand={onCommand}
          onDone={() => setDone((before) => new Set(before).add(step.id))}
        />
      ) : (
        <article class="step">
          <h1 tabIndex={-1} ref={heading}>
            {t("finished")}
          </h1>
          <p>{t("finishedHelp", { done: done.size, all: steps.length })}</p>
          <Farewell thanked={thanked} onThanked={onThanked} />
        </article>
      )}
      <footer class="buttons">
        {current > 0 && (
          <button type="button" class="button" onClick={() => choose(current - 1)}>
            {t("back")}
          </button>
        )}
        {step && (
          <button
            type="button"
            class={`button ${done.has(step.id) ? "primary" : ""}`}
            onClick={() => choose(current + 1)}
          >
            {current + 1 < steps.length ? t("next") : t("finish")}
          </button>
        )}
      </footer>
    </>
  );
}
