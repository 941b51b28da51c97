// The page: who the caller is, then the shell with its views.
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { type ApiError, get, signIn } from "./api/client";
import * as events from "./api/events";
import { tokenOfAddress } from "./api/session";
import type { Server } from "./api/types";
import { language } from "./i18n/language";
import { followLinks } from "./router";
import { Shell } from "./shell";
import { SignIn } from "./sign-in";
import { applyTheme } from "./theme";

async function enter(): Promise<string> {
  const token = tokenOfAddress();
  if (token) {
    try {
      await signIn(token);
    } catch (error) {
      return (error as ApiError).message;
    }
  }
  return "";
}

function App() {
  const [trusted, setTrusted] = useState<boolean>();
  const [problem, setProblem] = useState("");

  const look = async () => {
    try {
      const server = await get<Server>("/1.0");
      setTrusted(server.auth === "trusted");
    } catch (error) {
      // Whoever was trusted waits for the server to come back; the page says so, and goes on.
      setProblem((error as ApiError).message);
      setTrusted((before) => before ?? false);
    }
  };

  useEffect(() => {
    void enter().then((said) => {
      setProblem(said);
      return look();
    });
    // The session may have ended while the page was open.
    return events.onConnection((state) => state === "lost" && void look());
  }, []);

  useEffect(() => {
    if (!trusted) return undefined;
    events.connect();
    return events.disconnect;
  }, [trusted]);

  if (trusted === undefined) return null;
  if (trusted) return <Shell onSignedOut={() => setTrusted(false)} />;
  return <SignIn problem={problem} onSignedIn={() => void look()} />;
}

document.documentElement.lang = language();
applyTheme();
document.addEventListener("click", followLinks);
const root = document.getElementById("app");
if (root) render(<App />, root);
