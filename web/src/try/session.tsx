// In a session: the terminal beside the tour, and how much time is left.
import { useEffect, useRef, useState } from "preact/hooks";
import { LanguageField } from "../components/appearance";
import { Dialog } from "../components/dialog";
import { Icon } from "../components/icon";
import { Activity } from "./activity";
import type { Reason } from "./end";
import { Brand, type OnLanguage } from "./frame";
import { t } from "./i18n";
import { getSession, getTour, NO_SESSION, type Session, type SiteError, type Step } from "./site";
import { type Keyboard, TerminalPane } from "./terminal-pane";
import { TourPane } from "./tour-pane";
import { clock, useRemaining } from "./use-remaining";

const WARNINGS = [60, 300] as const; // seconds
const RETRY = 2000; // milliseconds
const PRECISION = 5; // seconds by which the clocks of site and browser may differ

// Ends the session. Returns what went wrong.
type Leaving = () => Promise<string | undefined>;

export interface SessionProps {
  session: Session;
  thanked: boolean;
  onThanked: () => void;
  onLanguage: OnLanguage;
  onLeave: Leaving;
  onEnd: (reason: Reason) => void;
}

function TimeLeft({ seconds }: { seconds: number }) {
  const limit = WARNINGS.find((one) => seconds <= one);
  return (
    <>
      <p class={`time ${limit ? "short" : ""}`} role="timer" aria-label={t("timeLeft")}>
        <span aria-hidden="true">{t("timeLeft")} </span>
        {clock(seconds)}
      </p>
      <p class="warning" role="status">
        {limit && t(limit === 60 ? "warnOne" : "warnFive")}
      </p>
    </>
  );
}

function Leave({ onLeave }: { onLeave: Leaving }) {
  const [asking, setAsking] = useState(false);
  return (
    <>
      <button type="button" class="button" onClick={() => setAsking(true)}>
        <Icon name="exit" />
        {t("end")}
      </button>
      {asking && (
        <Dialog
          title={t("endTitle")}
          submit={t("endTitle")}
          danger
          onClose={() => setAsking(false)}
          onSubmit={onLeave}
        >
          <p>{t("endAsk")}</p>
        </Dialog>
      )}
    </>
  );
}

// The steps, which are asked for until they are there.
function useSteps(): Step[] | undefined {
  const [steps, setSteps] = useState<Step[]>();
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    getTour().then(setSteps, () => {
      timer = setTimeout(() => setAttempt(attempt + 1), RETRY);
    });
    return () => clearTimeout(timer);
  }, [attempt]);
  return steps;
}

export function SessionView(props: SessionProps) {
  const { session, thanked, onThanked, onLanguage, onLeave, onEnd } = props;
  const activity = useRef(new Activity()).current;
  const keyboard = useRef<Keyboard>(null);
  const tour = useRef<HTMLElement>(null);
  const remaining = useRemaining(session.expires_at);
  const steps = useSteps();

  const left = useRef(remaining);
  left.current = remaining;
  const ended = () => onEnd(left.current > PRECISION ? "gone" : "time");

  // Whether the session is still there, asked when there is reason to doubt it.
  const look = () =>
    getSession().then(
      (found) => found.state === "ended" && ended(),
      (error: SiteError) => error.code === NO_SESSION && ended(),
    );

  useEffect(() => {
    if (remaining > 0) return undefined;
    const timer = setInterval(look, RETRY);
    return () => clearInterval(timer);
  }, [remaining > 0]);

  // F6 leads into the terminal, which lets it lead out.
  useEffect(() => {
    const enter = (event: KeyboardEvent) => {
      if (event.key !== "F6" || event.defaultPrevented) return;
      event.preventDefault();
      keyboard.current?.focus();
    };
    document.addEventListener("keydown", enter);
    return () => document.removeEventListener("keydown", enter);
  }, []);

  return (
    <div class="session">
      <header class="top">
        <Brand />
        <TimeLeft seconds={remaining} />
        <LanguageField onChange={onLanguage} />
        <Leave onLeave={onLeave} />
      </header>
      <main class="halves">
        <TerminalPane
          activity={activity}
          keyboard={keyboard}
          onLeave={() => tour.current?.focus()}
          onDoubt={look}
        />
        <section class="tour" aria-label={t("tour")} tabIndex={-1} ref={tour}>
          {steps && (
            <TourPane
              steps={steps}
              doneBefore={session.done}
              activity={activity}
              onCommand={(command) => keyboard.current?.enter(command)}
              thanked={thanked}
              onThanked={onThanked}
            />
          )}
        </section>
      </main>
    </div>
  );
}
