// What can be done with an instance, in lists and on its own page.
import { useState } from "preact/hooks";
import { change, path, withQuery } from "../api/client";
import type { Instance, Operation } from "../api/types";
import { command } from "../command";
import { Action } from "../components/action";
import { Dialog } from "../components/dialog";
import { Check, TextField } from "../components/fields";
import { Icon, type IconName } from "../components/icon";
import { type Key, t } from "../i18n";
import { go } from "../router";
import { attempt } from "../state/attempt";
import { run } from "../state/tasks";

export function instanceUrl(instance: Instance, ...parts: string[]): string {
  return withQuery(path("instances", instance.name, ...parts), { project: instance.project });
}

interface Verb {
  action: string;
  word: string;
  label: Key;
  doing: Key;
  icon: IconName;
  from: string[];
}

const START: Verb = {
  action: "start",
  word: "start",
  label: "start",
  doing: "starting",
  icon: "play",
  from: ["Stopped"],
};
const RESUME: Verb = {
  action: "unfreeze",
  word: "start",
  label: "resume",
  doing: "resuming",
  icon: "play",
  from: ["Frozen"],
};
const STOP: Verb = {
  action: "stop",
  word: "stop",
  label: "stop",
  doing: "stopping",
  icon: "stop",
  from: ["Running", "Frozen", "Error"],
};
const RESTART: Verb = {
  action: "restart",
  word: "restart",
  label: "restart",
  doing: "restarting",
  icon: "restart",
  from: ["Running"],
};
const FREEZE: Verb = {
  action: "freeze",
  word: "pause",
  label: "freeze",
  doing: "freezing",
  icon: "pause",
  from: ["Running"],
};

// Stopping waits this long for the guest, in seconds, as the command does; then it says so.
const PATIENCE = 60;

function setState(instance: Instance, action: string): Promise<Operation | undefined> {
  const force = action === "stop" && instance.status !== "Running";
  return change("PUT", instanceUrl(instance, "state"), { action, timeout: PATIENCE, force });
}

interface Props {
  instance: Instance;
  bare?: boolean;
}

export function StateActions({ instance, bare = false }: Props) {
  const { name, project, status } = instance;
  const verbs = [status === "Frozen" ? RESUME : START, STOP, RESTART, FREEZE];
  return (
    <>
      {verbs.map((verb) => {
        const possible = verb.from.includes(status);
        // In lists each action has its place, in every row the same.
        if (bare && !possible) return <span key={verb.icon} class="slot" />;
        return (
          <Action
            key={verb.icon}
            bare={bare}
            icon={verb.icon}
            label={bare ? t("actionOf", { action: t(verb.label), name }) : t(verb.label)}
            title={t(verb.doing, { name })}
            command={command(project, verb.word, name)}
            disabled={!possible}
            work={() => setState(instance, verb.action)}
          />
        );
      })}
    </>
  );
}

export function DeleteAction({ instance, bare = false }: Props) {
  const { name, project, status } = instance;
  const stopped = status === "Stopped";
  return (
    <Action
      bare={bare}
      danger
      icon="trash"
      label={bare ? t("actionOf", { action: t("delete"), name }) : t("delete")}
      title={t("deleting", { name })}
      confirm={t("deleteInstanceAsk", { name })}
      command={command(project, "delete", name)}
      disabled={!stopped}
      work={() => change("DELETE", instanceUrl(instance))}
      {...(bare ? {} : { onDone: () => go({ page: "instances" }) })}
    />
  );
}

export function RenameAction({ instance }: { instance: Instance }) {
  const [asking, setAsking] = useState(false);
  const [wanted, setWanted] = useState(instance.name);
  const { name, project } = instance;
  const said = command(project, "rename", name, wanted || name);
  return (
    <>
      <button
        type="button"
        class="button"
        data-command={command(project, "rename", name, t("nameWord"))}
        disabled={instance.status !== "Stopped"}
        onClick={() => setAsking(true)}
      >
        <Icon name="pencil" />
        {t("rename")}
      </button>
      {asking && (
        <Dialog
          title={t("renameTitle", { name })}
          submit={t("rename")}
          command={said}
          ready={wanted !== "" && wanted !== name}
          onClose={() => setAsking(false)}
          onSubmit={async () => {
            const done = await run(t("renaming", { name }), said, () =>
              change("POST", instanceUrl(instance), { name: wanted }),
            );
            if (done) go({ page: "instances", name: wanted });
            return undefined;
          }}
        >
          <TextField label={t("newName")} value={wanted} onInput={setWanted} required autofocus />
        </Dialog>
      )}
    </>
  );
}

export function SnapshotAction({ instance, bare = false }: Props) {
  const [asking, setAsking] = useState(false);
  const [wanted, setWanted] = useState("");
  const [stateful, setStateful] = useState(false);
  const { name, project } = instance;
  const words = ["snapshot", ...(stateful ? ["--stateful"] : []), name, ...(wanted ? [wanted] : [])];
  const said = command(project, ...words);
  const label = bare ? t("actionOf", { action: t("takeSnapshot"), name }) : t("takeSnapshot");
  return (
    <>
      <button
        type="button"
        class={`button ${bare ? "quiet icon" : ""}`}
        data-command={command(project, "snapshot", name)}
        aria-label={bare ? label : undefined}
        title={bare ? label : undefined}
        onClick={() => setAsking(true)}
      >
        <Icon name="camera" />
        {!bare && label}
      </button>
      {asking && (
        <Dialog
          title={t("snapshotTitle", { name })}
          submit={t("takeSnapshot")}
          command={said}
          onClose={() => setAsking(false)}
          onSubmit={() =>
            attempt(async () => {
              const operation = await change("POST", instanceUrl(instance, "snapshots"), {
                name: wanted,
                stateful,
              });
              void run(t("snapshotting", { name }), said, async () => operation);
            })
          }
        >
          <div class="fields">
            <TextField label={t("name")} value={wanted} onInput={setWanted} placeholder="snap0" autofocus />
            {instance.status === "Running" && (
              <Check label={t("statefulSnapshot")} checked={stateful} onChange={setStateful} />
            )}
          </div>
        </Dialog>
      )}
    </>
  );
}
