// The form that launches an instance.
import { useState } from "preact/hooks";
import { change, path, withQuery } from "../api/client";
import type { Config, Devices, Image, Profile } from "../api/types";
import { command } from "../command";
import { Dialog } from "../components/dialog";
import { Check, Group, SelectField, TextField } from "../components/fields";
import { t } from "../i18n";
import { imageSource, REMOTES } from "../remotes";
import { attempt } from "../state/attempt";
import { useResource } from "../state/resource";
import { run } from "../state/tasks";

const LOCAL = "";

function optionsOf(images: Image[]): string[] {
  return images
    .filter((image) => !image.cached)
    .map((image) => image.aliases[0]?.name ?? image.fingerprint.slice(0, 12))
    .sort();
}

// The root disk of the profiles, of which the last one counts.
function rootDisk(profiles: Profile[], chosen: string[]): [string, Config] | undefined {
  const disks = chosen.flatMap((name) =>
    Object.entries(profiles.find((profile) => profile.name === name)?.devices ?? {}),
  );
  return disks.filter(([, device]) => device.type === "disk" && device.path === "/").at(-1);
}

export function Launch({ project, onClose }: { project: string; onClose: () => void }) {
  const images = useResource<Image[]>(withQuery(path("images"), { recursion: 1, project })).data ?? [];
  const profiles = useResource<Profile[]>(withQuery(path("profiles"), { recursion: 1, project })).data ?? [];
  const [name, setName] = useState("");
  const [remote, setRemote] = useState(LOCAL);
  const [typed, setTyped] = useState("");
  const [chosen, setChosen] = useState(["default"]);
  const [cpu, setCpu] = useState("");
  const [memory, setMemory] = useState("");
  const [disk, setDisk] = useState("");
  const [ephemeral, setEphemeral] = useState(false);
  const [start, setStart] = useState(true);

  const local = optionsOf(images);
  const image = remote === LOCAL ? typed || (local[0] ?? "") : typed;
  const config: Config = {
    ...(cpu && { "limits.cpu": cpu }),
    ...(memory && { "limits.memory": memory }),
  };
  const root = disk ? rootDisk(profiles, chosen) : undefined;
  const devices: Devices = root ? { [root[0]]: { ...root[1], size: disk } } : {};
  const profileWords =
    chosen.length === 1 && chosen[0] === "default"
      ? []
      : chosen.length
        ? chosen.flatMap((profile) => ["-p", profile])
        : ["--no-profiles"];
  const said = command(
    project,
    start ? "launch" : "init",
    `${remote ? `${remote}:` : ""}${image || t("imageWord")}`,
    ...(name ? [name] : []),
    ...profileWords,
    ...Object.entries(config).flatMap(([key, value]) => ["-c", `${key}=${value}`]),
    ...(root ? ["-d", `${root[0]},size=${disk}`] : []),
    ...(ephemeral ? ["--ephemeral"] : []),
  );

  const submit = () =>
    attempt(async () => {
      const body = {
        name,
        source: imageSource(remote, image),
        profiles: chosen,
        config,
        devices,
        ephemeral,
        start,
      };
      const operation = await change("POST", withQuery(path("instances"), { project }), body);
      void run(t("launching", { name: name || image }), said, async () => operation);
    });

  const choose = (profile: string, on: boolean) =>
    setChosen((old) => (on ? [...old, profile] : old.filter((other) => other !== profile)));

  return (
    <Dialog
      title={t("launchTitle")}
      submit={start ? t("launch") : t("create")}
      command={said}
      ready={image !== ""}
      onClose={onClose}
      onSubmit={submit}
    >
      <div class="fields">
        <TextField label={t("name")} value={name} onInput={setName} help={t("launchNameHelp")} autofocus />
        <div class="pair">
          <SelectField
            label={t("imageFrom")}
            value={remote}
            options={[
              { value: LOCAL, label: t("thisServer") },
              ...Object.keys(REMOTES).map((value) => ({ value, label: `${value}:` })),
            ]}
            onChange={(value) => {
              setRemote(value);
              setTyped("");
            }}
          />
          {remote === LOCAL && local.length > 0 ? (
            <SelectField
              label={t("image")}
              value={image}
              options={local.map((value) => ({ value, label: value }))}
              onChange={setTyped}
            />
          ) : (
            <TextField label={t("image")} value={image} onInput={setTyped} placeholder="debian/12" required />
          )}
        </div>
        <Group label={t("profiles")}>
          {profiles.map((profile) => (
            <Check
              key={profile.name}
              label={profile.name}
              checked={chosen.includes(profile.name)}
              onChange={(on) => choose(profile.name, on)}
            />
          ))}
        </Group>
        <div class="pair">
          <TextField label={t("limitCpu")} value={cpu} onInput={setCpu} placeholder="2" />
          <TextField label={t("limitMemory")} value={memory} onInput={setMemory} placeholder="1GiB" />
        </div>
        <TextField label={t("limitDisk")} value={disk} onInput={setDisk} placeholder="10GiB" />
        <Group label={t("options")}>
          <Check label={t("startNow")} checked={start} onChange={setStart} />
          <Check label={t("ephemeral")} checked={ephemeral} onChange={setEphemeral} />
        </Group>
      </div>
    </Dialog>
  );
}
