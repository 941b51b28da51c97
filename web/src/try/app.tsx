// Which view there is: before, in, or after a session.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { type Language, setLanguage } from "../i18n/language";
import { EndView, type Reason } from "./end";
import { t } from "./i18n";
import { saidOf } from "./problem";
import type { SessionProps } from "./session";
import {
  beginSession,
  endSession,
  getSession,
  getSite,
  NO_SESSION,
  type Session,
  type Site,
  type SiteError,
  UNREACHABLE,
} from "./site";
import { StartView } from "./start";

type Stage =
  | { kind: "loading" | "start" }
  | { kind: "session"; session: Session }
  | { kind: "ended"; reason: Reason };

// The terminal and the texts of the tour are most of what the site weighs, and not needed to begin.
const loadSession = () => import("./session");

export function App() {
  const [stage, setStage] = useState<Stage>({ kind: "loading" });
  const [site, setSite] = useState<Site>();
  const [SessionView, setSessionView] = useState<ComponentType<SessionProps>>();
  const [problem, setProblem] = useState<SiteError>();
  const [thanked, setThanked] = useState(false);
  const [, redraw] = useState(0);

  const readSite = () =>
    getSite().then((found) => {
      setSite(found);
      setProblem((before) => (before?.code === UNREACHABLE ? undefined : before));
    }, setProblem);
  const enter = (session: Session) => setStage({ kind: "session", session });

  useEffect(() => {
    void readSite();
    // Whoever loads the page anew goes on in the session.
    getSession().then(
      (found) => (found.state === "ready" ? enter(found) : setStage({ kind: "start" })),
      () => setStage({ kind: "start" }),
    );
    void loadSession().then((module) => setSessionView(() => module.SessionView));
  }, []);

  const onLanguage = (wanted: Language) => {
    setLanguage(wanted);
    redraw((count) => count + 1);
  };
  const begin = async (language: Language) => {
    if (!site) return;
    setProblem(undefined);
    try {
      enter(await beginSession(site.terms, language));
    } catch (error) {
      setProblem(error as SiteError);
      void readSite();
    }
  };
  // Once it has ended, why is known.
  const onEnd = (reason: Reason) =>
    setStage((before) => (before.kind === "session" ? { kind: "ended", reason } : before));
  // Returns what went wrong, for the dialog to show.
  const leave = async (): Promise<string | undefined> => {
    try {
      await endSession();
    } catch (error) {
      const failed = error as SiteError;
      if (failed.code !== NO_SESSION) return saidOf(failed);
    }
    setStage({ kind: "ended", reason: "left" });
    return undefined;
  };

  useEffect(() => {
    document.title = stage.kind === "session" ? `${t("tour")} – Utsuwa` : t("title");
  });

  if (stage.kind === "session") {
    return SessionView ? (
      <SessionView
        session={stage.session}
        thanked={thanked}
        onThanked={() => setThanked(true)}
        onLanguage={onLanguage}
        onLeave={leave}
        onEnd={onEnd}
      />
    ) : null;
  }
  if (stage.kind === "ended") {
    return (
      <EndView
        reason={stage.reason}
        minutes={site?.minutes ?? 0}
        thanked={thanked}
        onThanked={() => setThanked(true)}
        onLanguage={onLanguage}
        onAgain={() => {
          setThanked(false);
          void readSite();
          setStage({ kind: "start" });
        }}
      />
    );
  }
  if (stage.kind === "loading" && !problem) return null;
  return (
    <StartView site={site} problem={problem} onLanguage={onLanguage} onBegin={begin} onRefresh={readSite} />
  );
}
