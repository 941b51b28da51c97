// The page: who the caller is, then the shell with its views.
import { render } from "preact";
import { useLayoutEffect, useState } from "preact/hooks";
import { type ApiError, get, signIn } from "./api/client";
import * as events from "./api/events";
import * as session from "./api/session";
import type { Server } from "./api/types";
import { followLinks } from "./router";
import { Shell } from "./shell";
import { SignIn } from "./sign-in";

// `presumed` is who was trusted the last time: the views are shown and read while the server is asked.
type Caller = "unknown" | "presumed" | "trusted" | "stranger";

// Sign in with the token of the address, if it has one; return what went wrong.
async function enter(): Promise<string> {
  const token = session.tokenOfAddress();
  if (token) {
    try {
      await signIn(token);
      session.remember(true);
    } catch (error) {
      return (error as ApiError).message;
    }
  }
  return "";
}

function App({ entered }: { entered: string }) {
  const [caller, setCaller] = useState<Caller>(session.wasTrusted() ? "presumed" : "unknown");
  const [problem, setProblem] = useState(entered);

  const look = async () => {
    try {
      const trusted = (await get<Server>("/1.0")).auth === "trusted";
      session.remember(trusted);
      setCaller(trusted ? "trusted" : "stranger");
    } catch (error) {
      // Whoever was trusted waits for the server to come back; the page says so, and goes on.
      setProblem((error as ApiError).message);
      setCaller((before) => (before === "trusted" ? before : "stranger"));
    }
  };
  const leave = () => {
    session.remember(false);
    setCaller("stranger");
  };

  useLayoutEffect(() => {
    void look();
    // The session may have ended while the page was open.
    return events.onConnection((state) => state === "lost" && void look());
  }, []);

  const inside = caller === "presumed" || caller === "trusted";
  useLayoutEffect(() => {
    if (!inside) return undefined;
    events.connect();
    return events.disconnect;
  }, [inside]);

  if (caller === "unknown") return null;
  if (inside) return <Shell onSignedOut={leave} />;
  return <SignIn problem={problem} onSignedIn={() => void look()} />;
}

document.addEventListener("click", followLinks);
const root = document.getElementById("app");
// The frame that the document has is seen until then. It becomes the page's, or is removed: what is not claimed by the
// first thing that is rendered would stay for ever, above the page.
if (root) {
  void enter().then((entered) => {
    if (!session.wasTrusted()) root.replaceChildren();
    render(<App entered={entered} />, root);
  });
}
