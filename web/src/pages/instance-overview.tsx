// What an instance is, and what it uses now.
import type { Instance } from "../api/types";
import { Chart } from "../components/chart";
import { Card, Facts, Tags } from "../components/view";
import { bytes, moment, percent } from "../format";
import { t } from "../i18n";
import { useUsage } from "../state/usage";
import { instanceUrl } from "./instance-actions";
import { systemOf } from "./instances";

function Charts({ instance }: { instance: Instance }) {
  const usage = useUsage(instanceUrl(instance, "state"));
  const last = usage.at(-1);
  const line = (value: (moment: (typeof usage)[number]) => number) => usage.map(value);
  return (
    <div class="cards charts">
      <Chart title={t("cpu")} now={last ? percent(last.cpu) : "–"} lines={[line((u) => u.cpu)]} />
      <Chart title={t("memory")} now={last ? bytes(last.memory) : "–"} lines={[line((u) => u.memory)]} />
      <Chart
        title={t("networkRates")}
        now={last ? `↓ ${bytes(last.received)}/s  ↑ ${bytes(last.sent)}/s` : "–"}
        lines={[line((u) => u.received), line((u) => u.sent)]}
      />
      <Chart
        title={t("disk")}
        now={last && last.disk > 0 ? bytes(last.disk) : "–"}
        lines={[line((u) => u.disk)]}
      />
    </div>
  );
}

function Addresses({ instance }: { instance: Instance }) {
  const nics = Object.entries(instance.state?.network ?? {}).filter(([, nic]) => nic.type !== "loopback");
  if (!nics.length) return <p class="muted">{t("noAddresses")}</p>;
  return (
    <Facts
      facts={nics.map(([name, nic]) => [
        name,
        <ul key={name} class="mono">
          {nic.addresses
            .filter((found) => found.scope === "global")
            .map((found) => (
              <li key={found.address}>
                {found.address}/{found.netmask}
              </li>
            ))}
          <li class="muted">{nic.hwaddr}</li>
        </ul>,
      ])}
    />
  );
}

export function Overview({ instance }: { instance: Instance }) {
  const running = instance.status === "Running" || instance.status === "Frozen";
  return (
    <div class="stack">
      {running && <Charts instance={instance} />}
      <div class="cards">
        <Card title={t("about")}>
          <Facts
            facts={[
              [t("description"), instance.description || "–"],
              [t("system"), systemOf(instance) || "–"],
              [t("architecture"), instance.architecture],
              [t("created"), moment(instance.created_at)],
              [t("profiles"), <Tags key="profiles" values={instance.profiles} />],
              [t("processes"), running ? String(instance.state?.processes ?? "–") : "–"],
              [t("ephemeralShort"), instance.ephemeral ? t("yes") : t("no")],
              [
                t("privileged"),
                instance.expanded_config["security.privileged"] === "true" ? t("yes") : t("no"),
              ],
            ]}
          />
        </Card>
        <Card title={t("network")}>
          <Addresses instance={instance} />
        </Card>
        <Card title={t("limits")}>
          <Facts
            facts={[
              [t("cpu"), instance.expanded_config["limits.cpu"] || t("unlimited")],
              [t("memory"), instance.expanded_config["limits.memory"] || t("unlimited")],
              [t("processes"), instance.expanded_config["limits.processes"] || t("unlimited")],
              [t("disk"), instance.expanded_devices.root?.size || t("unlimited")],
            ]}
          />
        </Card>
      </div>
    </div>
  );
}
