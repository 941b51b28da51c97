// Profiles.
import { path, withQuery } from "../api/client";
import type { Profile } from "../api/types";
import { ConfigEditor } from "../components/config-editor";
import { DevicesEditor } from "../components/devices-editor";
import { Tags } from "../components/view";
import { t } from "../i18n";
import { concerns, useResource } from "../state/resource";
import { type Kind, NamedPage, NamedView } from "./named";

const KIND: Kind = {
  collection: "profiles",
  page: "profiles",
  noun: "profile",
  title: "profiles",
  create: "createProfile",
  ask: "deleteProfileAsk",
  deletable: (found) => found.name !== "default" && !found.used_by?.length,
};

export function ProfilesPage({ project }: { project: string }) {
  return (
    <NamedPage<Profile>
      kind={KIND}
      project={project}
      more={[
        { title: t("devices"), cell: (row) => <Tags values={Object.keys(row.devices)} />, class: "wide" },
      ]}
    />
  );
}

export function ProfilePage({ project, name }: { project: string; name: string }) {
  const url = withQuery(path("profiles", name), { project });
  const { data, error, reload } = useResource<Profile>(url, concerns("profiles"));
  return (
    <NamedView kind={KIND} name={name} data={data} error={error}>
      {(profile) => (
        <>
          <h2>{t("configuration")}</h2>
          <ConfigEditor
            kind="instance"
            url={url}
            project={project}
            config={profile.config}
            words={["profile", "set", name]}
            title={t("saving", { name })}
            onSaved={reload}
          />
          <h2>{t("devices")}</h2>
          <DevicesEditor
            url={url}
            project={project}
            name={name}
            own={profile.devices}
            words={["profile"]}
            onChanged={reload}
          />
        </>
      )}
    </NamedView>
  );
}
