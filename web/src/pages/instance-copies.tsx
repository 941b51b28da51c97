// Copies of an instance or of one of its snapshots, and images made of them.
import { useState } from "preact/hooks";
import { change, get, path, withQuery } from "../api/client";
import type { Config, Devices, Instance, Operation, Pool, Project } from "../api/types";
import { command } from "../command";
import { Ask } from "../components/ask";
import { Dialog } from "../components/dialog";
import { Check, SelectField, TextField } from "../components/fields";
import { t } from "../i18n";
import { attempt } from "../state/attempt";
import { useResource } from "../state/resource";
import { run } from "../state/tasks";
import { instanceUrl } from "./instance-actions";

interface Props {
  instance: Instance;
  // Copy this snapshot in place of the instance as it is now.
  snapshot?: string;
  bare?: boolean;
}

// What a copy takes over of its source, which is an instance or a snapshot.
interface Source {
  architecture: string;
  config: Config;
  devices: Devices;
  expanded_devices: Devices;
  profiles: string[];
  description?: string;
}

const KEPT = ["volatile.base_image", "volatile.last_state.idmap"];
const SAME = "";

function configOf(source: Source): Config {
  const entries = Object.entries(source.config);
  return Object.fromEntries(entries.filter(([key]) => !key.startsWith("volatile.") || KEPT.includes(key)));
}

// The devices of the copy, whose root disk may be on another pool.
function devicesOf(source: Source, pool: string): Devices {
  if (pool === SAME) return source.devices;
  const disks = Object.entries(source.expanded_devices);
  const [name, root] = disks.find(([, device]) => device.type === "disk" && device.path === "/") ?? [
    "root",
    {},
  ];
  return { ...source.devices, [name]: { type: "disk", path: "/", ...root, pool } };
}

function sourceName(instance: Instance, snapshot?: string): string {
  return snapshot ? `${instance.name}/${snapshot}` : instance.name;
}

export function CopyAction({ instance, snapshot, bare = false }: Props) {
  const source = sourceName(instance, snapshot);
  const label = snapshot ? t("createFromSnapshot") : t("copy");
  return (
    <Ask
      label={bare ? t("actionOf", { action: label, name: source }) : label}
      icon="copy"
      bare={bare}
      command={command(instance.project, "copy", source, t("nameWord"))}
    >
      {(close) => <Copy instance={instance} {...(snapshot ? { snapshot } : {})} onClose={close} />}
    </Ask>
  );
}

function Copy({ instance, snapshot, onClose }: Props & { onClose: () => void }) {
  const { project } = instance;
  const projects = useResource<Project[]>(withQuery(path("projects"), { recursion: 1 })).data ?? [];
  const pools = useResource<Pool[]>(withQuery(path("storage-pools"), { recursion: 1 })).data ?? [];
  const [name, setName] = useState("");
  const [target, setTarget] = useState(project);
  const [pool, setPool] = useState(SAME);
  const [snapshots, setSnapshots] = useState(true);
  const source = sourceName(instance, snapshot);
  const only = !snapshots || snapshot !== undefined;
  const said = command(
    project,
    "copy",
    source,
    name || t("nameWord"),
    ...(target !== project ? ["--target-project", target] : []),
    ...(pool !== SAME ? ["--storage", pool] : []),
    ...(only && !snapshot ? ["--instance-only"] : []),
  );

  const submit = () =>
    attempt(async () => {
      const url = snapshot ? instanceUrl(instance, "snapshots", snapshot) : instanceUrl(instance);
      const found = await get<Source>(url);
      const body = {
        name,
        type: "container",
        architecture: found.architecture,
        config: configOf(found),
        devices: devicesOf(found, pool),
        profiles: found.profiles,
        description: found.description ?? "",
        source: { type: "copy", source, project, instance_only: only },
      };
      const operation = await change("POST", withQuery(path("instances"), { project: target }), body);
      void run(t("copying", { name: source }), said, async () => operation);
    });

  return (
    <Dialog
      title={t("copyTitle", { name: source })}
      submit={snapshot ? t("create") : t("copy")}
      command={said}
      ready={name !== ""}
      onClose={onClose}
      onSubmit={submit}
    >
      <div class="fields">
        <TextField label={t("name")} value={name} onInput={setName} required autofocus />
        <div class="pair">
          <SelectField
            label={t("project")}
            value={target}
            options={projects.map((one) => ({ value: one.name, label: one.name }))}
            onChange={setTarget}
          />
          <SelectField
            label={t("pool")}
            value={pool}
            options={[
              { value: SAME, label: t("poolOfSource") },
              ...pools.map((one) => ({ value: one.name, label: one.name })),
            ]}
            onChange={setPool}
          />
        </div>
        {!snapshot && <Check label={t("withSnapshots")} checked={snapshots} onChange={setSnapshots} />}
      </div>
    </Dialog>
  );
}

export function PublishAction({ instance, snapshot, bare = false }: Props) {
  const source = sourceName(instance, snapshot);
  return (
    <Ask
      label={bare ? t("actionOf", { action: t("publish"), name: source }) : t("publish")}
      icon="disc"
      bare={bare}
      // A running instance is published by its snapshots.
      disabled={!snapshot && instance.status !== "Stopped"}
      command={command(instance.project, "publish", source, "--alias", t("aliasWord"))}
    >
      {(close) => <Publish instance={instance} {...(snapshot ? { snapshot } : {})} onClose={close} />}
    </Ask>
  );
}

function Publish({ instance, snapshot, onClose }: Props & { onClose: () => void }) {
  const { project } = instance;
  const [alias, setAlias] = useState("");
  const [description, setDescription] = useState("");
  const [open, setOpen] = useState(false);
  const source = sourceName(instance, snapshot);
  const said = command(
    project,
    "publish",
    source,
    ...(alias ? ["--alias", alias] : []),
    ...(open ? ["--public"] : []),
    ...(description ? [`description=${description}`] : []),
  );
  const publish = (): Promise<Operation | undefined> =>
    change("POST", withQuery(path("images"), { project }), {
      source: { type: snapshot ? "snapshot" : "instance", name: source },
      public: open,
      aliases: alias ? [{ name: alias }] : [],
      ...(description ? { properties: { description } } : {}),
    });
  return (
    <Dialog
      title={t("publishTitle", { name: source })}
      submit={t("publish")}
      command={said}
      onClose={onClose}
      onSubmit={() =>
        attempt(async () => {
          const operation = await publish();
          void run(t("publishing", { name: source }), said, async () => operation);
        })
      }
    >
      <div class="fields">
        <TextField label={t("alias")} value={alias} onInput={setAlias} autofocus />
        <TextField label={t("description")} value={description} onInput={setDescription} />
        <Check label={t("publicImage")} checked={open} onChange={setOpen} />
      </div>
    </Dialog>
  );
}
