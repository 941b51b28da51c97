// What is asked of visitors at the end, and what they can do next.
import { useId, useState } from "preact/hooks";
import { CommandLine } from "../components/command-line";
import { type Key, t } from "./i18n";
import { saidOf } from "./problem";
import { type SiteError, sendFeedback } from "./site";

const STARS: Key[] = ["star1", "star2", "star3", "star4", "star5"];
const LONGEST = 2000;

interface Props {
  // Whether feedback has been given.
  thanked: boolean;
  onThanked: () => void;
}

function Stars({ value, onChange }: { value: number; onChange: (stars: number) => void }) {
  const name = useId();
  return (
    <fieldset class="field stars">
      <legend>{t("stars")}</legend>
      <div>
        {STARS.map((key, index) => (
          <label key={key} class={index < value ? "lit" : ""}>
            <input
              type="radio"
              name={name}
              checked={value === index + 1}
              onChange={() => onChange(index + 1)}
            />
            <svg width="28" height="28" viewBox="0 0 16 16" aria-hidden="true">
              <path d="M8 1.8l1.9 4 4.4.6-3.2 3 .8 4.3L8 11.6l-3.9 2.1.8-4.3-3.2-3 4.4-.6z" />
            </svg>
            <span class="hidden">{t(key)}</span>
          </label>
        ))}
        {value > 0 && (
          <span class="note" aria-hidden="true">
            {t(STARS[value - 1] as Key)}
          </span>
        )}
      </div>
    </fieldset>
  );
}

function Feedback({ thanked, onThanked }: Props) {
  const field = useId();
  const [stars, setStars] = useState(0);
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState("");

  const send = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setProblem("");
    try {
      await sendFeedback(stars, text);
      onThanked();
    } catch (error) {
      setProblem(saidOf(error as SiteError));
    }
    setBusy(false);
  };

  if (thanked) return <p role="status">{t("feedbackThanks")}</p>;
  return (
    <form class="fields" onSubmit={send}>
      <Stars value={stars} onChange={setStars} />
      <div class="field">
        <label for={field}>{t("feedbackText")}</label>
        <textarea
          id={field}
          rows={4}
          maxLength={LONGEST}
          value={text}
          aria-describedby={`${field}-help`}
          onInput={(event) => setText(event.currentTarget.value)}
        />
        <small id={`${field}-help`}>{t("feedbackHelp")}</small>
      </div>
      {problem && (
        <p class="error" role="alert">
          {problem}
        </p>
      )}
      <div class="buttons">
        <button type="submit" class="button primary" disabled={stars === 0 || busy}>
          {t("feedbackSend")}
        </button>
      </div>
    </form>
  );
}

export function Farewell(props: Props) {
  return (
    <>
      <section class="card">
        <h2>{t("feedback")}</h2>
        <Feedback {...props} />
      </section>
      <section class="card fields">
        <h2>{t("installTitle")}</h2>
        <p>{t("installHelp")}</p>
        <CommandLine command="scripts/quickstart" />
        <p>{t("nextStepsHelp")}</p>
      </section>
    </>
  );
}
