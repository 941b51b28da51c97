// Devices of an instance or a profile: shown, added and removed.
import { useId, useState } from "preact/hooks";
import { change, getTagged } from "../api/client";
import type { Config, Devices, Operation } from "../api/types";
import { command } from "../command";
import { t } from "../i18n";
import { attempt } from "../state/attempt";
import { useKeyHelp } from "../state/keys";
import { Action } from "./action";
import { Dialog } from "./dialog";
import { SelectField, TextField } from "./fields";
import { Icon } from "./icon";
import { type Column, Table } from "./table";
import { Empty, Facts } from "./view";

interface Props {
  url: string;
  project: string;
  name: string;
  own: Devices;
  inherited?: Devices;
  // The words of the command before `device`.
  words: string[];
  onChanged?: () => void;
}

const EXAMPLES: Record<string, string> = {
  disk: "source=/srv/data\npath=/mnt/data",
  nic: "network=utsuwabr0\nname=eth1",
  none: "",
  "unix-block": "path=/dev/sdb",
  "unix-char": "path=/dev/fuse",
};

function pairs(text: string): Config {
  const lines = text.split("\n").filter((line) => line.includes("="));
  return Object.fromEntries(
    lines.map((line) => {
      const at = line.indexOf("=");
      return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
    }),
  );
}

function settings(device: Config): string {
  return Object.entries(device)
    .filter(([key]) => key !== "type")
    .map(([key, value]) => `${key}=${value}`)
    .join("  ");
}

export function DevicesEditor({ url, project, name, own, inherited = {}, words, onChanged }: Props) {
  const [adding, setAdding] = useState(false);
  const rows = Object.entries({ ...inherited, ...own }).map(([device, config]) => ({ device, config }));

  const remove = async (device: string): Promise<Operation | undefined> => {
    const { value, etag } = await getTagged<{ devices: Devices }>(url);
    const { [device]: _, ...devices } = value.devices;
    return change("PUT", url, { ...value, devices }, etag);
  };

  const columns: Column<{ device: string; config: Config }>[] = [
    { title: t("name"), cell: (row) => <span class="name">{row.device}</span> },
    { title: t("type"), cell: (row) => row.config.type ?? "" },
    { title: t("settings"), cell: (row) => <code>{settings(row.config)}</code>, class: "clip" },
    {
      title: "",
      cell: (row) =>
        Object.hasOwn(own, row.device) ? (
          <div class="rowbuttons">
            <Action
              bare
              danger
              icon="trash"
              label={t("removeDevice", { name: row.device })}
              title={t("removeDevice", { name: row.device })}
              confirm={t("removeDeviceAsk", { name: row.device })}
              command={command(project, ...words, "device", "remove", name, row.device)}
              work={() => remove(row.device)}
              {...(onChanged ? { onDone: onChanged } : {})}
            />
          </div>
        ) : (
          <span class="tag">{t("inherited")}</span>
        ),
    },
  ];

  return (
    <div class="stack">
      {rows.length ? (
        <Table label={t("devices")} rows={rows} columns={columns} keyOf={(row) => row.device} />
      ) : (
        <Empty>{t("noDevices")}</Empty>
      )}
      <div class="buttons">
        <button type="button" class="button" onClick={() => setAdding(true)}>
          <Icon name="plus" />
          {t("addDevice")}
        </button>
      </div>
      {adding && (
        <AddDevice
          url={url}
          words={[...words, "device", "add", name]}
          project={project}
          onClose={() => setAdding(false)}
          {...(onChanged ? { onChanged } : {})}
        />
      )}
    </div>
  );
}

// What the keys of a type of devices mean.
function Keys({ type }: { type: string }) {
  const help = useKeyHelp("devices", type);
  const facts = Object.entries(help).map(([key, about]): [string, string] => [key, about.shortdesc ?? ""]);
  if (!facts.length) return null;
  return (
    <details>
      <summary>{t("deviceKeys", { type })}</summary>
      <Facts facts={facts} />
    </details>
  );
}

interface AddProps {
  url: string;
  words: string[];
  project: string;
  onClose: () => void;
  onChanged?: () => void;
}

function AddDevice({ url, words, project, onClose, onChanged }: AddProps) {
  const [device, setDevice] = useState("");
  const [type, setType] = useState("disk");
  const [text, setText] = useState("");
  const id = useId();
  const config = pairs(text);
  const given = Object.entries(config).map(([key, value]) => `${key}=${value}`);
  return (
    <Dialog
      title={t("addDevice")}
      submit={t("add")}
      command={command(project, ...words, device || t("nameWord"), type, ...given)}
      ready={device !== ""}
      onClose={onClose}
      onSubmit={async () => {
        const said = await attempt(() =>
          change("PATCH", url, { devices: { [device]: { type, ...config } } }),
        );
        if (!said) onChanged?.();
        return said;
      }}
    >
      <div class="fields">
        <div class="pair">
          <TextField label={t("name")} value={device} onInput={setDevice} required autofocus />
          <SelectField
            label={t("type")}
            value={type}
            options={Object.keys(EXAMPLES).map((value) => ({ value, label: value }))}
            onChange={setType}
          />
        </div>
        <div class="field">
          <label for={id}>{t("settings")}</label>
          <textarea
            id={id}
            aria-describedby={`${id}-help`}
            rows={4}
            value={text}
            placeholder={EXAMPLES[type] ?? ""}
            spellcheck={false}
            onInput={(event) => setText(event.currentTarget.value)}
          />
          <small id={`${id}-help`}>{t("settingsHelp")}</small>
        </div>
        <Keys type={type} />
      </div>
    </Dialog>
  );
}
