// The operations that run now.
import { change, path, withQuery } from "../api/client";
import type { Operation } from "../api/types";
import { command } from "../command";
import { Action } from "../components/action";
import { Table } from "../components/table";
import { Empty, Head, Loading, Problem } from "../components/view";
import { moment, nameOf } from "../format";
import { t } from "../i18n";
import { useResource } from "../state/resource";
import { progressOf } from "../state/tasks";

const ENDED = 200; // and above, by success, failure or cancellation

function concernsOf(operation: Operation): string {
  const urls = Object.values(operation.resources ?? {}).flat();
  return [...new Set(urls.map(nameOf))].join(", ");
}

export function OperationsPage({ project }: { project: string }) {
  const { data, error } = useResource<Record<string, Operation[]>>(
    withQuery(path("operations"), { recursion: 1, project }),
    (event) => event.type === "operation",
  );
  // The server lists those that have ended for some seconds more, and does not tell when it stops.
  const rows = Object.values(data ?? {})
    .flat()
    .filter((operation) => operation.status_code < ENDED);
  return (
    <>
      <Head title={t("operations")} />
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && !rows.length && <Empty>{t("noOperations")}</Empty>}
      {rows.length > 0 && (
        <Table
          label={t("operations")}
          rows={rows}
          keyOf={(row) => row.id}
          columns={[
            { title: t("description"), cell: (row) => <span class="name">{row.description}</span> },
            { title: t("concerns"), cell: concernsOf, class: "clip" },
            { title: t("status"), cell: (row) => row.status },
            { title: t("progress"), cell: progressOf },
            { title: t("created"), cell: (row) => moment(row.created_at), class: "wide" },
            {
              title: "",
              cell: (row) => (
                <div class="rowbuttons">
                  <Action
                    label={t("cancel")}
                    title={t("cancelling", { name: row.description })}
                    command={command(project, "operation", "delete", row.id)}
                    disabled={!row.may_cancel}
                    work={() => change("DELETE", path("operations", row.id))}
                  />
                </div>
              ),
            },
          ]}
        />
      )}
    </>
  );
}
