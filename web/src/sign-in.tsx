// What a caller sees who is not trusted.
import { useEffect, useState } from "preact/hooks";
import { signIn } from "./api/client";
import { CommandLine } from "./components/command-line";
import { TextField } from "./components/fields";
import { t } from "./i18n";
import { attempt } from "./state/attempt";

export function SignIn({ problem, onSignedIn }: { problem: string; onSignedIn: () => void }) {
  const [token, setToken] = useState("");
  const [said, setSaid] = useState(problem);

  useEffect(() => setSaid(problem), [problem]);
  useEffect(() => {
    document.title = `${t("signIn")} – Utsuwa`;
  }, []);

  const send = async (event: Event) => {
    event.preventDefault();
    // A whole address may have been pasted.
    const wrong = await attempt(() => signIn(token.trim().replace(/^.*#token=/, "")));
    setSaid(wrong ?? "");
    if (!wrong) onSignedIn();
  };

  return (
    <main class="signin">
      <img src="/ui/icon.svg" alt="" />
      <h1>{t("signIn")}</h1>
      {said && (
        <p class="error" role="alert">
          {said}
        </p>
      )}
      <p>{t("signInHelp")}</p>
      <CommandLine command="utsuwa webui" />
      <form class="fields" onSubmit={send}>
        <TextField label={t("token")} value={token} onInput={setToken} help={t("tokenSignInHelp")} required />
        <div class="buttons">
          <button type="submit" class="button primary" disabled={!token.trim()}>
            {t("signIn")}
          </button>
        </div>
      </form>
      <p class="note">{t("certificateHelp")}</p>
    </main>
  );
}
