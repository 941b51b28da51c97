// Projects.
import { path } from "../api/client";
import type { Project } from "../api/types";
import { ConfigEditor } from "../components/config-editor";
import { t } from "../i18n";
import { concerns, useResource } from "../state/resource";
import { type Kind, NamedPage, NamedView } from "./named";

const KIND: Kind = {
  collection: "projects",
  page: "projects",
  noun: "project",
  title: "projects",
  create: "createProject",
  ask: "deleteProjectAsk",
  // Its default profile, which goes with it, does not count.
  deletable: (found) =>
    found.name !== "default" && (found.used_by ?? []).every((url) => url.startsWith("/1.0/profiles/default")),
};

export function ProjectsPage({ project }: { project: string }) {
  return <NamedPage<Project> kind={KIND} project={project} more={[]} />;
}

export function ProjectPage({ project, name }: { project: string; name: string }) {
  const url = path("projects", name);
  const { data, error, reload } = useResource<Project>(url, concerns("projects"));
  return (
    <NamedView kind={KIND} name={name} data={data} error={error}>
      {(found) => (
        <ConfigEditor
          kind="project"
          url={url}
          project={project}
          config={found.config}
          words={["project", "set", name]}
          title={t("saving", { name })}
          onSaved={reload}
        />
      )}
    </NamedView>
  );
}
