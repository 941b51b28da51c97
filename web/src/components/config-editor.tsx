// Keys and values of a configuration, with the help of the key table. Only what is changed is sent.
import { useId, useState } from "preact/hooks";
import { change } from "../api/client";
import type { Config } from "../api/types";
import { command } from "../command";
import { t } from "../i18n";
import { helpOf, useKeyHelp } from "../state/keys";
import { run } from "../state/tasks";
import { Icon } from "./icon";

interface Props {
  // Which keys there are: see `useKeyHelp`. Undefined as long as it is not known.
  kind: string | undefined;
  url: string;
  project: string;
  config: Config;
  // What applies where `config` says nothing, such as keys of profiles.
  inherited?: Config;
  // The words of the command before `KEY=VALUE`.
  words: string[];
  // What of the object the keys are, by default its configuration.
  field?: "config" | "properties";
  title: string;
  onSaved?: () => void;
}

// The command takes all keys of a configuration at once, and properties one by one.
function saidOf(project: string, words: string[], field: string, entries: [string, string][]): string {
  if (field === "config")
    return command(project, ...words, ...entries.map(([key, value]) => `${key}=${value}`));
  return entries.map((entry) => command(project, ...words, ...entry)).join(" && ");
}

const OWN = /^(volatile|image)\./; // what the daemon keeps for itself

export function ConfigEditor({
  kind,
  url,
  project,
  config,
  inherited = {},
  words,
  field = "config",
  title,
  onSaved,
}: Props) {
  const help = useKeyHelp(kind);
  const [draft, setDraft] = useState<Config>({});
  const [added, setAdded] = useState("");
  const keys = useId();

  const shown = [...new Set([...Object.keys(config), ...Object.keys(draft)])]
    .filter((key) => !OWN.test(key))
    .sort();
  const rest = Object.keys(inherited)
    .filter((key) => !OWN.test(key) && !shown.includes(key))
    .sort();
  const changed = Object.fromEntries(
    Object.entries(draft).filter(([key, value]) => value !== (config[key] ?? "")),
  );
  const dirty = Object.keys(changed).length > 0;
  const said = saidOf(project, words, field, Object.entries(changed));

  const add = (event: Event) => {
    event.preventDefault();
    const key = added.trim();
    if (!key) return;
    setDraft((old) => ({ ...old, [key]: old[key] ?? config[key] ?? "" }));
    setAdded("");
  };

  const save = async () => {
    const sent = changed;
    if (await run(title, said, () => change("PATCH", url, { [field]: sent }))) {
      setDraft({});
      onSaved?.();
    }
  };

  return (
    <div class="stack">
      <div class="table-box config">
        <table>
          <thead>
            <tr>
              <th scope="col">{t("key")}</th>
              <th scope="col">{t("value")}</th>
              <th scope="col">
                <span class="hidden">{t("actions")}</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {shown.map((key) => {
              const about = helpOf(help, key);
              const value = draft[key] ?? config[key] ?? "";
              return (
                <tr key={key}>
                  <td>
                    <code>{key}</code>
                    {about?.shortdesc && <div class="note">{about.shortdesc}</div>}
                  </td>
                  <td>
                    {value.includes("\n") ? (
                      <textarea
                        aria-label={key}
                        rows={Math.min(12, value.split("\n").length + 1)}
                        value={value}
                        onInput={(event) => setDraft({ ...draft, [key]: event.currentTarget.value })}
                      />
                    ) : (
                      <input
                        aria-label={key}
                        value={value}
                        placeholder={about?.defaultdesc ?? ""}
                        spellcheck={false}
                        autocomplete="off"
                        onInput={(event) => setDraft({ ...draft, [key]: event.currentTarget.value })}
                      />
                    )}
                  </td>
                  <td>
                    <div class="rowbuttons">
                      <button
                        type="button"
                        class="button quiet icon"
                        aria-label={t("unset", { key })}
                        title={t("unset", { key })}
                        onClick={() => setDraft({ ...draft, [key]: "" })}
                      >
                        <Icon name="close" />
                      </button>
                    </div>
                  </td>
                </tr>
              );
            })}
            {rest.map((key) => (
              <tr key={key}>
                <td>
                  <code>{key}</code>
                  <div class="note">{helpOf(help, key)?.shortdesc}</div>
                </td>
                <td>
                  <code class="muted">{inherited[key]}</code> <span class="tag">{t("inherited")}</span>
                </td>
                <td />
              </tr>
            ))}
            {shown.length + rest.length === 0 && (
              <tr>
                <td colSpan={3} class="muted">
                  {t("noKeys")}
                </td>
              </tr>
            )}
          </tbody>
        </table>
      </div>
      <div class="buttons">
        <form class="buttons" onSubmit={add}>
          <input
            class="search"
            aria-label={t("newKey")}
            placeholder={t("newKey")}
            list={keys}
            value={added}
            spellcheck={false}
            autocomplete="off"
            onInput={(event) => setAdded(event.currentTarget.value)}
          />
          <datalist id={keys}>
            {Object.entries(help).map(([key, about]) => (
              <option key={key} value={key}>
                {about.shortdesc}
              </option>
            ))}
          </datalist>
          <button type="submit" class="button" disabled={!added.trim()}>
            <Icon name="plus" />
            {t("addKey")}
          </button>
        </form>
        <button
          type="button"
          class="button primary"
          disabled={!dirty}
          data-command={said}
          onClick={() => void save()}
        >
          {t("save")}
        </button>
      </div>
    </div>
  );
}
