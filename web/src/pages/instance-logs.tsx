// The logs of an instance, and what its console has shown.
import { useEffect, useState } from "preact/hooks";
import { type ApiError, getText } from "../api/client";
import type { Instance } from "../api/types";
import { command } from "../command";
import { Empty, Loading, Problem } from "../components/view";
import { nameOf } from "../format";
import { t } from "../i18n";
import { useResource } from "../state/resource";
import { instanceUrl } from "./instance-actions";

const CONSOLE = "console";

function Log({ url }: { url: string }) {
  const [text, setText] = useState<string>();
  const [error, setError] = useState<ApiError>();
  useEffect(() => {
    let wanted = true;
    setText(undefined);
    setError(undefined);
    getText(url).then(
      (found) => wanted && setText(found),
      (problem: ApiError) => wanted && setError(problem),
    );
    return () => {
      wanted = false;
    };
  }, [url]);
  if (error) return <Problem error={error} />;
  if (text === undefined) return <Loading />;
  return text ? (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a text that scrolls must be reachable by keyboard
    <pre class="log" tabIndex={0}>
      {text}
    </pre>
  ) : (
    <Empty>{t("emptyLog")}</Empty>
  );
}

export function Logs({ instance }: { instance: Instance }) {
  const { name, project, status } = instance;
  const { data: urls = [] } = useResource<string[]>(instanceUrl(instance, "logs"));
  const running = status !== "Stopped";
  const files = [...(running ? [CONSOLE] : []), ...urls.map(nameOf)];
  const [chosen, setChosen] = useState("");
  const shown = files.includes(chosen) ? chosen : files[0];
  if (!shown) return <Empty>{t("noLogs")}</Empty>;
  const url = shown === CONSOLE ? instanceUrl(instance, "console") : instanceUrl(instance, "logs", shown);
  return (
    <div class="stack">
      <div
        class="buttons"
        data-command={command(
          project,
          ...(shown === CONSOLE ? ["console", name, "--show-log"] : ["info", name, "--show-log"]),
        )}
      >
        <label class="check">
          {t("log")}
          <select value={shown} onChange={(event) => setChosen(event.currentTarget.value)}>
            {files.map((file) => (
              <option key={file} value={file}>
                {file}
              </option>
            ))}
          </select>
        </label>
      </div>
      <Log url={url} />
    </div>
  );
}
