// Custom volumes of a storage pool: created, attached to instances, with their snapshots.
import { useState } from "preact/hooks";
import { change, getTagged, path, withQuery } from "../api/client";
import type { Config, Devices, Instance, Operation, Pool, Volume, VolumeSnapshot } from "../api/types";
import { command } from "../command";
import { Action } from "../components/action";
import { Ask } from "../components/ask";
import { ConfigEditor } from "../components/config-editor";
import { DeleteButton } from "../components/delete-button";
import { Dialog } from "../components/dialog";
import { SelectField, TextField } from "../components/fields";
import { Table } from "../components/table";
import { Head, Loading, Problem } from "../components/view";
import { moment } from "../format";
import { t } from "../i18n";
import { href } from "../router";
import { attempt } from "../state/attempt";
import { concerns, useResource } from "../state/resource";
import { run } from "../state/tasks";

interface Place {
  pool: string;
  project: string;
}

function urlOf({ pool, project }: Place, ...parts: string[]): string {
  return withQuery(path("storage-pools", pool, "volumes", ...parts), { project });
}

export function Volumes(place: Place) {
  const { pool, project } = place;
  const url = withQuery(path("storage-pools", pool, "volumes"), { recursion: 1, project });
  const { data = [] } = useResource<Volume[]>(url, concerns("storage-pools", "instances"));
  // Snapshots are shown with their volumes.
  const volumes = data.filter((volume) => volume.type !== "image" && !volume.name.includes("/"));
  return (
    <>
      {volumes.length === 0 && <p class="muted">{t("noVolumes")}</p>}
      {volumes.length > 0 && (
        <Table
          label={t("volumes")}
          rows={volumes}
          keyOf={(row) => `${row.type}/${row.name}`}
          columns={[
            { title: t("name"), order: (row) => row.name, cell: (row) => <Name pool={pool} volume={row} /> },
            { title: t("type"), order: (row) => row.type, cell: (row) => row.type },
            { title: t("usedBy"), cell: (row) => row.used_by?.length ?? 0, class: "number" },
            {
              title: "",
              cell: (row) => row.type === "custom" && <VolumeActions place={place} volume={row} />,
            },
          ]}
        />
      )}
      <div class="buttons">
        <CreateVolume {...place} />
      </div>
    </>
  );
}

function Name({ pool, volume }: { pool: string; volume: Volume }) {
  if (volume.type !== "custom") return <span class="name">{volume.name}</span>;
  return (
    <a class="name" href={href({ page: "storage", name: pool, tab: volume.name })}>
      {volume.name}
    </a>
  );
}

function VolumeActions({ place, volume }: { place: Place; volume: Volume }) {
  const { name } = volume;
  return (
    <div class="rowbuttons">
      <DeleteButton
        name={name}
        confirm={t("deleteVolumeAsk", { name })}
        command={command(place.project, "storage", "volume", "delete", place.pool, name)}
        disabled={Boolean(volume.used_by?.length)}
        work={() => change("DELETE", urlOf(place, "custom", name))}
      />
    </div>
  );
}

function CreateVolume(place: Place) {
  const [name, setName] = useState("");
  const [size, setSize] = useState("");
  const said = (word: string) =>
    command(
      place.project,
      ...["storage", "volume", "create", place.pool, word],
      ...(size ? [`size=${size}`] : []),
    );
  const config: Config = size ? { size } : {};
  return (
    <Ask label={t("createVolume")} icon="plus" command={said(t("nameWord"))}>
      {(close) => (
        <Dialog
          title={t("createVolume")}
          submit={t("create")}
          command={said(name || t("nameWord"))}
          ready={name !== ""}
          onClose={close}
          onSubmit={() =>
            attempt(() =>
              change("POST", urlOf(place), { name, type: "custom", content_type: "filesystem", config }),
            )
          }
        >
          <div class="fields">
            <TextField label={t("name")} value={name} onInput={setName} required autofocus />
            <TextField label={t("size")} value={size} onInput={setSize} placeholder="10GiB" />
          </div>
        </Dialog>
      )}
    </Ask>
  );
}

async function attach(
  place: Place,
  volume: string,
  instance: string,
  at: string,
): Promise<Operation | undefined> {
  const url = withQuery(path("instances", instance), { project: place.project });
  const { value, etag } = await getTagged<{ devices: Devices }>(url);
  const device = { type: "disk", pool: place.pool, source: volume, path: at };
  return change("PUT", url, { ...value, devices: { ...value.devices, [volume]: device } }, etag);
}

function Attach({ place, volume }: { place: Place; volume: string }) {
  const { project, pool } = place;
  const url = withQuery(path("instances"), { recursion: 1, project });
  const instances = useResource<Instance[]>(url, concerns("instances")).data ?? [];
  const [chosen, setChosen] = useState("");
  const [at, setAt] = useState(`/mnt/${volume}`);
  const instance = chosen || (instances[0]?.name ?? "");
  const said = command(project, "storage", "volume", "attach", pool, volume, instance || t("nameWord"), at);
  return (
    <Ask label={t("attach")} icon="plus" command={said}>
      {(close) => (
        <Dialog
          title={t("attachTitle", { name: volume })}
          submit={t("attach")}
          command={said}
          ready={instance !== "" && at !== ""}
          onClose={close}
          onSubmit={() =>
            attempt(async () => {
              const operation = await attach(place, volume, instance, at);
              void run(t("attaching", { name: volume }), said, async () => operation);
            })
          }
        >
          <div class="fields">
            <SelectField
              label={t("instance")}
              value={instance}
              options={instances.map(({ name }) => ({ value: name, label: name }))}
              onChange={setChosen}
            />
            <TextField label={t("pathInside")} value={at} onInput={setAt} required />
          </div>
        </Dialog>
      )}
    </Ask>
  );
}

function TakeSnapshot({ place, volume }: { place: Place; volume: string }) {
  const [name, setName] = useState("");
  const said = command(
    place.project,
    ...["storage", "volume", "snapshot", place.pool, volume],
    ...(name ? [name] : []),
  );
  return (
    <Ask label={t("takeSnapshot")} icon="camera" command={said}>
      {(close) => (
        <Dialog
          title={t("snapshotTitle", { name: volume })}
          submit={t("takeSnapshot")}
          command={said}
          onClose={close}
          onSubmit={() =>
            attempt(async () => {
              const operation = await change("POST", urlOf(place, "custom", volume, "snapshots"), { name });
              void run(t("snapshotting", { name: volume }), said, async () => operation);
            })
          }
        >
          <TextField label={t("name")} value={name} onInput={setName} placeholder="snap0" autofocus />
        </Dialog>
      )}
    </Ask>
  );
}

function Snapshots({ place, volume, inUse }: { place: Place; volume: string; inUse: boolean }) {
  const { pool, project } = place;
  const url = withQuery(path("storage-pools", pool, "volumes", "custom", volume, "snapshots"), {
    recursion: 1,
    project,
  });
  const { data = [] } = useResource<VolumeSnapshot[]>(url, concerns("storage-pools"));
  const rows = data.map((row) => ({ ...row, short: row.name.split("/").at(-1) ?? row.name }));
  if (!rows.length) return <p class="muted">{t("noSnapshots")}</p>;
  return (
    <Table
      label={t("snapshots")}
      rows={rows}
      keyOf={(row) => row.short}
      columns={[
        {
          title: t("name"),
          order: (row) => row.short,
          cell: (row) => <span class="name">{row.short}</span>,
        },
        { title: t("created"), cell: (row) => moment(row.created_at) },
        {
          title: "",
          cell: ({ short }) => (
            <div class="rowbuttons">
              <Action
                label={t("restore")}
                icon="restart"
                title={t("restoring", { name: volume, snapshot: short })}
                confirm={t("restoreAsk", { name: volume, snapshot: short })}
                command={command(project, "storage", "volume", "restore", pool, volume, short)}
                disabled={inUse}
                work={() => change("PUT", urlOf(place, "custom", volume), { restore: short })}
              />
              <DeleteButton
                name={short}
                whole={`${volume}/${short}`}
                confirm={t("deleteSnapshotAsk", { name: short })}
                command={command(project, "storage", "volume", "delete", pool, `${volume}/${short}`)}
                work={() => change("DELETE", urlOf(place, "custom", volume, "snapshots", short))}
              />
            </div>
          ),
        },
      ]}
    />
  );
}

export function VolumePage({ pool, project, name }: Place & { name: string }) {
  const place = { pool, project };
  const url = urlOf(place, "custom", name);
  const { data, error, reload } = useResource<Volume>(url, concerns("storage-pools", "instances"));
  const driver = useResource<Pool>(path("storage-pools", pool)).data?.driver;
  return (
    <>
      <Head title={name} above={{ label: pool, place: { page: "storage", name: pool } }}>
        <span class="space" />
        <div class="buttons">
          <Attach place={place} volume={name} />
          <TakeSnapshot place={place} volume={name} />
        </div>
      </Head>
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && (
        <div class="stack">
          <h2>{t("configuration")}</h2>
          <ConfigEditor
            kind={driver && `storage_volume_${driver}`}
            url={url}
            project={project}
            config={data.config}
            words={["storage", "volume", "set", pool, name]}
            title={t("saving", { name })}
            onSaved={reload}
          />
          <h2>{t("snapshots")}</h2>
          <Snapshots place={place} volume={name} inUse={Boolean(data.used_by?.length)} />
        </div>
      )}
    </>
  );
}
