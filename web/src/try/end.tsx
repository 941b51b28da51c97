// After a session: feedback, and where to go on.
import { useEffect, useRef } from "preact/hooks";
import { Farewell } from "./farewell";
import { Frame, type OnLanguage } from "./frame";
import { t } from "./i18n";

// The time is over, the visitor has left, or the session is gone for another reason.
export type Reason = "time" | "left" | "gone";

interface Props {
  reason: Reason;
  minutes: number;
  thanked: boolean;
  onThanked: () => void;
  onLanguage: OnLanguage;
  onAgain: () => void;
}

function titleOf(reason: Reason, minutes: number): string {
  switch (reason) {
    case "time":
      return t("endedTime", { minutes });
    case "left":
      return t("endedYou");
    case "gone":
      return t("endedGone");
  }
}

export function EndView({ reason, minutes, thanked, onThanked, onLanguage, onAgain }: Props) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  return (
    <Frame onLanguage={onLanguage}>
      <h1 tabIndex={-1} ref={heading}>
        {titleOf(reason, minutes)}
      </h1>
      <p>{t("endedGoneHelp")}</p>
      <div class="buttons">
        <button type="button" class="button" onClick={onAgain}>
          {t("again")}
        </button>
      </div>
      <Farewell thanked={thanked} onThanked={onThanked} />
    </Frame>
  );
}
