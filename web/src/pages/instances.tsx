// The list of instances.
import { useMemo, useState } from "preact/hooks";
import type { Instance } from "../api/types";
import { command } from "../command";
import { Icon } from "../components/icon";
import { Status } from "../components/status";
import { type Column, Table } from "../components/table";
import { Empty, Head, Loading, Problem } from "../components/view";
import { bytes, count } from "../format";
import { t } from "../i18n";
import { href } from "../router";
import { useInstances } from "../state/instances";
import { DeleteAction, SnapshotAction, StateActions } from "./instance-actions";
import { Launch } from "./launch";

export function addressesOf(instance: Instance, family: "inet" | "inet6"): string[] {
  const nics = Object.entries(instance.state?.network ?? {}).filter(([, nic]) => nic.type !== "loopback");
  return nics.flatMap(([, nic]) =>
    nic.addresses
      .filter((found) => found.family === family && found.scope === "global")
      .map((found) => found.address),
  );
}

export function systemOf(instance: Instance): string {
  const config = instance.config;
  return (
    [config["image.os"], config["image.release"]].filter(Boolean).join(" ") ||
    (config["image.description"] ?? "")
  );
}

// Whether an instance has every word of the filter somewhere in what the list shows.
function matches(instance: Instance, words: string[]): boolean {
  const text = [
    instance.name,
    instance.description,
    instance.status,
    systemOf(instance),
    ...instance.profiles,
    ...addressesOf(instance, "inet"),
  ]
    .join("\n")
    .toLowerCase();
  return words.every((word) => text.includes(word));
}

function columns(): Column<Instance>[] {
  return [
    {
      title: t("name"),
      order: (row) => row.name,
      cell: (row) => (
        <>
          <a class="name" href={href({ page: "instances", name: row.name })}>
            {row.name}
          </a>
          {row.description && <div class="note">{row.description}</div>}
        </>
      ),
      class: "clip",
    },
    { title: t("status"), order: (row) => row.status, cell: (row) => <Status status={row.status} /> },
    {
      title: t("address"),
      order: (row) => addressesOf(row, "inet")[0] ?? "",
      cell: (row) => <span class="mono">{addressesOf(row, "inet")[0] ?? ""}</span>,
      class: "wide",
    },
    { title: t("system"), order: systemOf, cell: systemOf, class: "wide clip" },
    {
      title: t("memory"),
      order: (row) => row.state?.memory.usage ?? 0,
      cell: (row) => (row.state?.memory.usage ? bytes(row.state.memory.usage) : ""),
      class: "number wide",
    },
    {
      title: t("snapshots"),
      order: (row) => row.snapshots?.length ?? 0,
      cell: (row) => row.snapshots?.length || "",
      class: "number wide",
    },
    {
      title: "",
      cell: (row) => (
        <div class="rowbuttons few">
          {row.status === "Running" ? (
            <a
              class="button quiet icon"
              href={href({ page: "instances", name: row.name, tab: "terminal" })}
              data-command={command(row.project, "exec", row.name, "--", "bash")}
              aria-label={t("actionOf", { action: t("terminal"), name: row.name })}
              title={t("actionOf", { action: t("terminal"), name: row.name })}
            >
              <Icon name="terminal" />
            </a>
          ) : (
            <span class="slot" />
          )}
          <StateActions instance={row} bare />
          <SnapshotAction instance={row} bare />
          <DeleteAction instance={row} bare />
        </div>
      ),
    },
  ];
}

export function InstancesPage({ project }: { project: string }) {
  const { list, error } = useInstances(project);
  const [filter, setFilter] = useState("");
  const [launching, setLaunching] = useState(false);
  const shown = useMemo(() => {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    return (list ?? []).filter((instance) => matches(instance, words));
  }, [list, filter]);

  const button = (
    <button
      type="button"
      class="button primary"
      data-command={command(project, "launch", t("imageWord"), t("nameWord"))}
      onClick={() => setLaunching(true)}
    >
      <Icon name="plus" />
      {t("launch")}
    </button>
  );

  return (
    <>
      <Head title={t("instances")}>
        {list && list.length > 0 && (
          <span class="muted" role="status">
            {filter
              ? t("countOf", { shown: count(shown.length), all: count(list.length) })
              : count(list.length)}
          </span>
        )}
        <span class="space" />
        <input
          class="search"
          type="search"
          aria-label={t("filter")}
          placeholder={t("filter")}
          value={filter}
          onInput={(event) => setFilter(event.currentTarget.value)}
        />
        {button}
      </Head>
      {error && <Problem error={error} />}
      {!list && !error && <Loading />}
      {list && list.length === 0 && (
        <Empty>
          <p>{t("noInstances")}</p>
        </Empty>
      )}
      {list && list.length > 0 && shown.length === 0 && (
        <Empty>
          <p>{t("noMatches")}</p>
        </Empty>
      )}
      {shown.length > 0 && (
        <Table label={t("instances")} rows={shown} columns={columns()} keyOf={(row) => row.name} />
      )}
      {launching && <Launch project={project} onClose={() => setLaunching(false)} />}
    </>
  );
}
