// The snapshots of an instance.
import { change } from "../api/client";
import type { Instance, Snapshot } from "../api/types";
import { command } from "../command";
import { Action } from "../components/action";
import { DeleteButton } from "../components/delete-button";
import { type Column, Table } from "../components/table";
import { Empty } from "../components/view";
import { bytes, moment } from "../format";
import { t } from "../i18n";
import { instanceUrl, SnapshotAction } from "./instance-actions";
import { CopyAction, PublishAction } from "./instance-copies";

export function Snapshots({ instance }: { instance: Instance }) {
  const { name, project } = instance;
  const columns: Column<Snapshot>[] = [
    { title: t("name"), order: (row) => row.name, cell: (row) => <span class="name">{row.name}</span> },
    { title: t("created"), order: (row) => row.created_at, cell: (row) => moment(row.created_at) },
    {
      title: t("expires"),
      order: (row) => row.expires_at,
      cell: (row) => moment(row.expires_at),
      class: "wide",
    },
    { title: t("stateful"), cell: (row) => (row.stateful ? t("yes") : t("no")), class: "wide" },
    { title: t("size"), order: (row) => row.size, cell: (row) => bytes(row.size), class: "number wide" },
    {
      title: "",
      cell: (row) => (
        <div class="rowbuttons">
          <Action
            label={t("restore")}
            icon="restart"
            title={t("restoring", { name, snapshot: row.name })}
            confirm={t("restoreAsk", { name, snapshot: row.name })}
            command={command(project, "restore", name, row.name)}
            work={() => change("PUT", instanceUrl(instance), { restore: row.name })}
          />
          <CopyAction instance={instance} snapshot={row.name} bare />
          <PublishAction instance={instance} snapshot={row.name} bare />
          <DeleteButton
            name={row.name}
            whole={`${name}/${row.name}`}
            confirm={t("deleteSnapshotAsk", { name: row.name })}
            command={command(project, "delete", `${name}/${row.name}`)}
            work={() => change("DELETE", instanceUrl(instance, "snapshots", row.name))}
          />
        </div>
      ),
    },
  ];
  const rows = instance.snapshots ?? [];
  if (!rows.length) {
    return (
      <Empty>
        <p>{t("noSnapshots")}</p>
        <SnapshotAction instance={instance} />
      </Empty>
    );
  }
  return <Table label={t("snapshots")} rows={rows} columns={columns} keyOf={(row) => row.name} />;
}
