// Storage pools.
import { path } from "../api/client";
import type { Amounts, Pool } from "../api/types";
import { ConfigEditor } from "../components/config-editor";
import { Card, Facts } from "../components/view";
import { bytes } from "../format";
import { t } from "../i18n";
import { concerns, useResource } from "../state/resource";
import { type Kind, NamedPage, NamedView } from "./named";
import { Volumes } from "./volumes";

const KIND: Kind = {
  collection: "storage-pools",
  page: "storage",
  noun: "storage",
  title: "storage",
  create: "createPool",
  ask: "deletePoolAsk",
  choice: {
    field: "driver",
    label: "driver",
    values: ["overlay", "dir", "btrfs"],
    word: (driver) => [driver],
  },
  deletable: (found) => !found.used_by?.length,
};

function Space({ name }: { name: string }) {
  const { data } = useResource<Amounts>(path("storage-pools", name, "resources"));
  if (!data) return <span />;
  const { used, total } = data.space;
  return (
    <span class="badge">
      <meter class="meter wide" min={0} max={total} value={used} aria-label={t("space")} />
      {t("countOf", { shown: bytes(used), all: bytes(total) })}
    </span>
  );
}

export function StoragePage({ project }: { project: string }) {
  return (
    <NamedPage<Pool>
      kind={KIND}
      project={project}
      more={[
        { title: t("driver"), order: (row) => row.driver, cell: (row) => row.driver },
        { title: t("space"), cell: (row) => <Space name={row.name} /> },
      ]}
    />
  );
}

export function PoolPage({ project, name }: { project: string; name: string }) {
  const url = path("storage-pools", name);
  const { data, error, reload } = useResource<Pool>(url, concerns("storage-pools"));
  return (
    <NamedView kind={KIND} name={name} data={data} error={error}>
      {(pool) => (
        <>
          <Card title={t("about")}>
            <Facts
              facts={[
                [t("driver"), pool.driver],
                [t("status"), pool.status],
                [t("space"), <Space key="space" name={name} />],
              ]}
            />
          </Card>
          <h2>{t("configuration")}</h2>
          <ConfigEditor
            kind={`storage_${pool.driver}`}
            url={url}
            project={project}
            config={pool.config}
            words={["storage", "set", name]}
            title={t("saving", { name })}
            onSaved={reload}
          />
          <h2>{t("volumes")}</h2>
          <Volumes pool={name} project={project} />
        </>
      )}
    </NamedView>
  );
}
