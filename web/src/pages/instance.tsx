// One instance, with its tabs.

import { path, withQuery } from "../api/client";
import type { Instance } from "../api/types";
import { ConfigEditor } from "../components/config-editor";
import { DevicesEditor } from "../components/devices-editor";
import { Status } from "../components/status";
import { Head, Loading, Problem, Tabs } from "../components/view";
import { t } from "../i18n";
import { concerns, useResource } from "../state/resource";
import { lazyTerminal } from "../terminal/lazy";
import { DeleteAction, instanceUrl, RenameAction, SnapshotAction, StateActions } from "./instance-actions";
import { CopyAction, PublishAction } from "./instance-copies";
import { Files } from "./instance-files";
import { Logs } from "./instance-logs";
import { Overview } from "./instance-overview";
import { Snapshots } from "./instance-snapshots";

interface Props {
  project: string;
  name: string;
  tab: string;
}

export function InstancePage({ project, name, tab }: Props) {
  const url = withQuery(path("instances", name), { project, recursion: 1 });
  const {
    data: instance,
    error,
    reload,
  } = useResource<Instance>(url, concerns(`instances/${encodeURIComponent(name)}`));
  const place = { page: "instances", name };
  const current = tab || "overview";

  return (
    <>
      <Head title={name} above={{ label: t("instances"), place: { page: "instances" } }}>
        {instance && <Status status={instance.status} />}
        <span class="space" />
        {instance && (
          <div class="buttons">
            <StateActions instance={instance} />
            <SnapshotAction instance={instance} />
            <CopyAction instance={instance} />
            <PublishAction instance={instance} />
            <RenameAction instance={instance} />
            <DeleteAction instance={instance} />
          </div>
        )}
      </Head>
      {error && <Problem error={error} />}
      {!instance && !error && <Loading />}
      {instance && (
        <>
          <Tabs
            label={t("views")}
            current={current}
            place={place}
            tabs={[
              { tab: "overview", label: t("overview") },
              { tab: "terminal", label: t("terminal") },
              { tab: "console", label: t("console") },
              { tab: "config", label: t("configuration") },
              { tab: "devices", label: t("devices") },
              { tab: "files", label: t("files") },
              { tab: "snapshots", label: t("snapshots") },
              { tab: "logs", label: t("logs") },
            ]}
          />
          {current === "overview" && <Overview instance={instance} />}
          {current === "terminal" && lazyTerminal(instance, "shell")}
          {current === "console" && lazyTerminal(instance, "console")}
          {current === "config" && (
            <ConfigEditor
              kind="instance"
              url={instanceUrl(instance)}
              project={project}
              config={instance.config}
              inherited={instance.expanded_config}
              words={["config", "set", name]}
              title={t("saving", { name })}
              onSaved={reload}
            />
          )}
          {current === "devices" && (
            <DevicesEditor
              url={instanceUrl(instance)}
              project={project}
              name={name}
              own={instance.devices}
              inherited={instance.expanded_devices}
              words={["config"]}
              onChanged={reload}
            />
          )}
          {current === "files" && <Files key={`${instance.project}/${instance.name}`} instance={instance} />}
          {current === "snapshots" && <Snapshots instance={instance} />}
          {current === "logs" && <Logs instance={instance} />}
        </>
      )}
    </>
  );
}
