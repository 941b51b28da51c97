// What this is, the terms, and how many places are free.
import { useEffect, useState } from "preact/hooks";
import { Check } from "../components/fields";
import { type Language, language } from "../i18n/language";
import { Frame, type OnLanguage } from "./frame";
import { type Key, t } from "./i18n";
import { saidOf } from "./problem";
import type { Site, SiteError } from "./site";

const PERIOD = 10_000; // milliseconds between two looks at the free places
const TERMS: Key[] = ["term1", "term2", "term3", "term4"];

interface Props {
  site: Site | undefined;
  problem: SiteError | undefined;
  onLanguage: OnLanguage;
  onBegin: (language: Language) => Promise<void>;
  onRefresh: () => void;
}

function Places({ site }: { site: Site }) {
  const { now, most } = site.sessions;
  const free = Math.max(0, most - now);
  return (
    <p class="badge" role="status">
      <span class={`dot ${free ? "ok" : "warn"}`} />
      {free ? t("places", { free, most }) : t("full")}
    </p>
  );
}

function Terms({ minutes }: { minutes: number }) {
  return (
    <section class="card">
      <h2>{t("terms")}</h2>
      <ul class="terms">
        {TERMS.map((key) => (
          <li key={key}>{t(key, { minutes })}</li>
        ))}
      </ul>
    </section>
  );
}

export function StartView({ site, problem, onLanguage, onBegin, onRefresh }: Props) {
  const [accepted, setAccepted] = useState(false);
  const [busy, setBusy] = useState(false);

  useEffect(() => {
    const timer = setInterval(() => document.hidden || onRefresh(), PERIOD);
    return () => clearInterval(timer);
  }, []);

  const begin = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    await onBegin(language());
    setBusy(false);
  };

  return (
    <Frame onLanguage={onLanguage}>
      <h1>{t("title")}</h1>
      {site && (
        <>
          <p class="lead">{t("lead", { minutes: site.minutes })}</p>
          <ul class="points">
            <li>{t("pointTour")}</li>
            <li>{t("pointNothing")}</li>
            <li>{t("pointDeleted", { unseen: site.minutes_unseen })}</li>
          </ul>
          <Places site={site} />
          <Terms minutes={site.minutes} />
        </>
      )}
      {problem && (
        <p class="error" role="alert">
          {saidOf(problem)}
        </p>
      )}
      {site && (
        <form class="fields" onSubmit={begin}>
          <Check label={t("accept")} checked={accepted} onChange={setAccepted} />
          <div class="buttons">
            <button type="submit" class="button primary large" disabled={!accepted || busy}>
              {busy ? t("beginning") : t("begin")}
            </button>
          </div>
        </form>
      )}
    </Frame>
  );
}
