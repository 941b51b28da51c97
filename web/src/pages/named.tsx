// Lists of objects with a name, a description and a configuration: profiles, networks, pools and projects.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { change, path, withQuery } from "../api/client";
import type { Config } from "../api/types";
import { command } from "../command";
import { DeleteButton } from "../components/delete-button";
import { Dialog } from "../components/dialog";
import { SelectField, TextField } from "../components/fields";
import { Icon } from "../components/icon";
import { type Column, Table } from "../components/table";
import { Empty, Head, Loading, Problem } from "../components/view";
import { count } from "../format";
import { type Key, t } from "../i18n";
import { href } from "../router";
import { attempt } from "../state/attempt";
import { concerns, useResource } from "../state/resource";

export interface Named {
  name: string;
  description: string;
  config: Config;
  used_by: string[] | null;
}

export interface Kind {
  // The collection in the API, and the page.
  collection: string;
  page: string;
  // The noun of the command.
  noun: string;
  title: Key;
  create: Key;
  ask: Key;
  // Choices for the field of the body that names what it is, such as the driver of a pool.
  choice?: { field: string; label: Key; values: string[]; word: (value: string) => string[] };
  // Objects that the daemon does not manage cannot be deleted.
  deletable: (found: Named) => boolean;
}

interface Props<T extends Named> {
  kind: Kind;
  project: string;
  more: Column<T>[];
}

export function NamedPage<T extends Named>({ kind, project, more }: Props<T>) {
  const [creating, setCreating] = useState(false);
  const url = withQuery(path(kind.collection), { recursion: 1, project });
  const { data, error } = useResource<T[]>(url, concerns(kind.collection));
  const columns: Column<T>[] = [
    {
      title: t("name"),
      order: (row) => row.name,
      cell: (row) => (
        <a class="name" href={href({ page: kind.page, name: row.name })}>
          {row.name}
        </a>
      ),
    },
    ...more,
    { title: t("description"), cell: (row) => row.description, class: "clip wide" },
    {
      title: t("usedBy"),
      order: (row) => row.used_by?.length ?? 0,
      cell: (row) => count(row.used_by?.length ?? 0),
      class: "number",
    },
    {
      title: "",
      cell: (row) => (
        <div class="rowbuttons">
          <DeleteButton
            name={row.name}
            confirm={t(kind.ask, { name: row.name })}
            command={command(project, kind.noun, "delete", row.name)}
            disabled={!kind.deletable(row)}
            work={() => change("DELETE", withQuery(path(kind.collection, row.name), { project }))}
          />
        </div>
      ),
    },
  ];
  return (
    <>
      <Head title={t(kind.title)}>
        <span class="space" />
        <button
          type="button"
          class="button primary"
          data-command={command(project, kind.noun, "create", t("nameWord"))}
          onClick={() => setCreating(true)}
        >
          <Icon name="plus" />
          {t(kind.create)}
        </button>
      </Head>
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && !data.length && <Empty>{t("nothingHere")}</Empty>}
      {data && data.length > 0 && (
        <Table label={t(kind.title)} rows={data} columns={columns} keyOf={(row) => row.name} />
      )}
      {creating && <Create kind={kind} project={project} onClose={() => setCreating(false)} />}
    </>
  );
}

function Create({ kind, project, onClose }: { kind: Kind; project: string; onClose: () => void }) {
  const { choice } = kind;
  const [name, setName] = useState("");
  const [description, setDescription] = useState("");
  const [value, setValue] = useState(choice?.values[0] ?? "");
  const words = [kind.noun, "create", name || t("nameWord"), ...(choice ? choice.word(value) : [])];
  const body = { name, description, config: {}, ...(choice ? { [choice.field]: value } : {}) };
  return (
    <Dialog
      title={t(kind.create)}
      submit={t("create")}
      command={command(project, ...words)}
      ready={name !== ""}
      onClose={onClose}
      onSubmit={() => attempt(() => change("POST", withQuery(path(kind.collection), { project }), body))}
    >
      <div class="fields">
        <TextField label={t("name")} value={name} onInput={setName} required autofocus />
        {choice && (
          <SelectField
            label={t(choice.label)}
            value={value}
            options={choice.values.map((one) => ({ value: one, label: one }))}
            onChange={setValue}
          />
        )}
        <TextField label={t("description")} value={description} onInput={setDescription} />
      </div>
    </Dialog>
  );
}

// The heading of one object's page, and its error or its content.
interface OneProps<T> {
  kind: Kind;
  name: string;
  data: T | undefined;
  error: Parameters<typeof Problem>[0]["error"] | undefined;
  children: (found: T) => ComponentChildren;
}

export function NamedView<T>({ kind, name, data, error, children }: OneProps<T>) {
  return (
    <>
      <Head title={name} above={{ label: t(kind.title), place: { page: kind.page } }} />
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && <div class="stack">{children(data)}</div>}
    </>
  );
}
