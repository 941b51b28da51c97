// Warnings of the server.
import { change, path, withQuery } from "../api/client";
import type { Warning } from "../api/types";
import { command } from "../command";
import { Action } from "../components/action";
import { DeleteButton } from "../components/delete-button";
import { Table } from "../components/table";
import { Empty, Head, Loading, Problem } from "../components/view";
import { moment } from "../format";
import { t } from "../i18n";
import { concerns, useResource } from "../state/resource";

export const WARNINGS = withQuery(path("warnings"), { recursion: 1 });
export const wakesWarnings = concerns("warnings");

const DOTS: Record<string, string> = { high: "bad", moderate: "warn", low: "" };

export function WarningsPage({ project }: { project: string }) {
  const { data, error, reload } = useResource<Warning[]>(WARNINGS, wakesWarnings);
  return (
    <>
      <Head title={t("warnings")} />
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && !data.length && <Empty>{t("noWarnings")}</Empty>}
      {data && data.length > 0 && (
        <Table
          label={t("warnings")}
          rows={data}
          keyOf={(row) => row.uuid}
          columns={[
            {
              title: t("severity"),
              cell: (row) => (
                <span class="badge">
                  <span class={`dot ${DOTS[row.severity] ?? ""}`} />
                  {row.severity}
                </span>
              ),
            },
            {
              title: t("message"),
              cell: (row) => (
                <>
                  <span class="name">{row.type}</span>
                  <div class="note">{row.last_message}</div>
                </>
              ),
            },
            { title: t("status"), cell: (row) => row.status, class: "wide" },
            {
              title: t("lastSeen"),
              order: (row) => row.last_seen_at,
              cell: (row) => moment(row.last_seen_at),
              class: "wide",
            },
            {
              title: "",
              cell: (row) => (
                <div class="rowbuttons">
                  <Action
                    label={t("acknowledge")}
                    title={t("acknowledging")}
                    command={command(project, "warning", "acknowledge", row.uuid)}
                    disabled={row.status !== "new"}
                    work={() => change("PUT", path("warnings", row.uuid), { status: "acknowledged" })}
                    onDone={reload}
                  />
                  <DeleteButton
                    name={row.type}
                    command={command(project, "warning", "delete", row.uuid)}
                    work={() => change("DELETE", path("warnings", row.uuid))}
                    onDone={reload}
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
