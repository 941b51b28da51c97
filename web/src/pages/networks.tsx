// Networks, with the leases of those that have them.
import { path, withQuery } from "../api/client";
import type { Lease, Network } from "../api/types";
import { ConfigEditor } from "../components/config-editor";
import { Table } from "../components/table";
import { t } from "../i18n";
import { concerns, useResource } from "../state/resource";
import { type Kind, NamedPage, NamedView } from "./named";

const KIND: Kind = {
  collection: "networks",
  page: "networks",
  noun: "network",
  title: "networks",
  create: "createNetwork",
  ask: "deleteNetworkAsk",
  deletable: (found) => (found as Network).managed && !found.used_by?.length,
};

export function NetworksPage({ project }: { project: string }) {
  return (
    <NamedPage<Network>
      kind={KIND}
      project={project}
      more={[
        { title: t("type"), order: (row) => row.type, cell: (row) => row.type },
        {
          title: t("managed"),
          order: (row) => String(row.managed),
          cell: (row) => (row.managed ? t("yes") : t("no")),
        },
        { title: "IPv4", cell: (row) => <code>{row.config["ipv4.address"] ?? ""}</code>, class: "wide" },
      ]}
    />
  );
}

function Leases({ name, project }: { name: string; project: string }) {
  const { data = [] } = useResource<Lease[]>(
    withQuery(path("networks", name, "leases"), { project }),
    concerns("instances", "networks"),
  );
  if (!data.length) return <p class="muted">{t("noLeases")}</p>;
  return (
    <Table
      label={t("leases")}
      rows={data}
      keyOf={(row) => row.address}
      columns={[
        { title: t("name"), order: (row) => row.hostname, cell: (row) => row.hostname },
        { title: t("address"), order: (row) => row.address, cell: (row) => <code>{row.address}</code> },
        { title: "MAC", cell: (row) => <code>{row.hwaddr}</code>, class: "wide" },
        { title: t("type"), cell: (row) => row.type },
      ]}
    />
  );
}

export function NetworkPage({ project, name }: { project: string; name: string }) {
  const url = withQuery(path("networks", name), { project });
  const { data, error, reload } = useResource<Network>(url, concerns("networks"));
  return (
    <NamedView kind={KIND} name={name} data={data} error={error}>
      {(network) =>
        network.managed ? (
          <>
            <h2>{t("configuration")}</h2>
            <ConfigEditor
              kind={`network_${network.type}`}
              url={url}
              project={project}
              config={network.config}
              words={["network", "set", name]}
              title={t("saving", { name })}
              onSaved={reload}
            />
            <h2>{t("leases")}</h2>
            <Leases name={name} project={project} />
          </>
        ) : (
          <p class="muted">{t("notManaged")}</p>
        )
      }
    </NamedView>
  );
}
