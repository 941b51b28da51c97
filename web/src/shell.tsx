// What surrounds all views: the navigation, the tasks, and the bar with the command.
import { useEffect, useRef, useState } from "preact/hooks";
import { path, signOut, withQuery } from "./api/client";
import { type Connection, onConnection } from "./api/events";
import * as session from "./api/session";
import type { Project, Warning } from "./api/types";
import { CommandBar } from "./components/command-bar";
import { Icon, type IconName } from "./components/icon";
import { Tasks } from "./components/tasks";
import { type Key, t } from "./i18n";
import { setLanguage } from "./i18n/language";
import { CertificatesPage } from "./pages/certificates";
import { ImagePage, ImagesPage } from "./pages/images";
import { InstancePage } from "./pages/instance";
import { InstancesPage } from "./pages/instances";
import { NetworkPage, NetworksPage } from "./pages/networks";
import { OperationsPage } from "./pages/operations";
import { ProfilePage, ProfilesPage } from "./pages/profiles";
import { ProjectPage, ProjectsPage } from "./pages/projects";
import { SettingsPage } from "./pages/settings";
import { PoolPage, StoragePage } from "./pages/storage";
import { VolumePage } from "./pages/volumes";
import { WARNINGS, WarningsPage, wakesWarnings } from "./pages/warnings";
import { go, href, type Place, usePlace } from "./router";
import { concerns, useResource } from "./state/resource";
import { endShells } from "./terminal/shell";

const GROUPS: { page: string; label: Key; icon: IconName }[][] = [
  [
    { page: "instances", label: "instances", icon: "box" },
    { page: "images", label: "images", icon: "disc" },
    { page: "profiles", label: "profiles", icon: "layers" },
    { page: "networks", label: "networks", icon: "network" },
    { page: "storage", label: "storage", icon: "disk" },
    { page: "projects", label: "projects", icon: "folder" },
  ],
  [
    { page: "operations", label: "operations", icon: "list" },
    { page: "warnings", label: "warnings", icon: "alert" },
    { page: "certificates", label: "certificates", icon: "key" },
    { page: "settings", label: "settings", icon: "settings" },
  ],
];

const CONNECTIONS: Record<Connection, { key: Key; dot: string }> = {
  connecting: { key: "connecting", dot: "busy" },
  open: { key: "connected", dot: "ok" },
  lost: { key: "reconnecting", dot: "busy" },
};

function View({
  place,
  onLanguage,
}: {
  place: Place;
  onLanguage: Parameters<typeof SettingsPage>[0]["onLanguage"];
}) {
  const { project, page, name, tab } = place;
  switch (page) {
    case "images":
      return name ? <ImagePage project={project} fingerprint={name} /> : <ImagesPage project={project} />;
    case "profiles":
      return name ? <ProfilePage project={project} name={name} /> : <ProfilesPage project={project} />;
    case "networks":
      return name ? <NetworkPage project={project} name={name} /> : <NetworksPage project={project} />;
    case "storage":
      if (tab) return <VolumePage key={tab} project={project} pool={name} name={tab} />;
      return name ? <PoolPage project={project} name={name} /> : <StoragePage project={project} />;
    case "projects":
      return name ? <ProjectPage project={project} name={name} /> : <ProjectsPage project={project} />;
    case "operations":
      return <OperationsPage project={project} />;
    case "warnings":
      return <WarningsPage project={project} />;
    case "certificates":
      return <CertificatesPage project={project} />;
    case "settings":
      return <SettingsPage project={project} onLanguage={onLanguage} />;
    default:
      return name ? (
        <InstancePage project={project} name={name} tab={tab} />
      ) : (
        <InstancesPage project={project} />
      );
  }
}

function Projects({ current }: { current: string }) {
  const { data } = useResource<Project[]>(
    withQuery(path("projects"), { recursion: 1 }),
    concerns("projects"),
  );
  const names = [...new Set([current, ...(data ?? []).map((project) => project.name)])].sort();
  return (
    <select
      aria-label={t("project")}
      value={current}
      onChange={(event) => go({ project: event.currentTarget.value, page: "instances" })}
    >
      {names.map((name) => (
        <option key={name} value={name}>
          {name}
        </option>
      ))}
    </select>
  );
}

function ConnectionState() {
  const [state, setState] = useState<Connection>("connecting");
  useEffect(() => onConnection(setState), []);
  const { key, dot } = CONNECTIONS[state];
  return (
    <p class="connection" role="status">
      <span class={`dot ${dot}`} />
      {t(key)}
    </p>
  );
}

function Side({ place, onSignedOut }: { place: Place; onSignedOut: () => void }) {
  const [open, setOpen] = useState(false);
  const warnings = useResource<Warning[]>(WARNINGS, wakesWarnings).data ?? [];
  const leave = async () => {
    await endShells();
    await signOut();
    onSignedOut();
  };
  const fresh = warnings.filter((warning) => warning.status === "new").length;
  useEffect(() => setOpen(false), [place]);

  return (
    <header class={`side ${open ? "open" : ""}`}>
      <a class="brand" href={href({ page: "instances" })}>
        <img src="/ui/icon.svg" alt="" />
        Utsuwa
      </a>
      <button
        type="button"
        class="button quiet icon menu-button"
        aria-label={t("menu")}
        aria-expanded={open}
        onClick={() => setOpen(!open)}
      >
        <Icon name="menu" />
      </button>
      <Projects current={place.project} />
      <nav aria-label={t("pages")}>
        {GROUPS.map((group) => (
          <ul key={group[0]?.page}>
            {group.map(({ page, label, icon }) => (
              <li key={page}>
                <a href={href({ page })} aria-current={page === place.page ? "page" : undefined}>
                  <Icon name={icon} />
                  {t(label)}
                  {page === "warnings" && fresh > 0 && <span class="count">{fresh}</span>}
                </a>
              </li>
            ))}
          </ul>
        ))}
      </nav>
      <ConnectionState />
      {session.key() && (
        <button type="button" class="button quiet leave" onClick={() => void leave()}>
          <Icon name="exit" />
          {t("signOut")}
        </button>
      )}
    </header>
  );
}

export function Shell({ onSignedOut }: { onSignedOut: () => void }) {
  const place = usePlace();
  const [, redraw] = useState(0);
  const main = useRef<HTMLElement>(null);
  const where = `${place.project}/${place.page}/${place.name}`;
  const before = useRef(where);

  // Whoever uses a screen reader or the keyboard goes on in the new view.
  useEffect(() => {
    if (before.current !== where) main.current?.focus();
    before.current = where;
  }, [where]);

  return (
    <div class="shell">
      <Side place={place} onSignedOut={onSignedOut} />
      <main class="main" tabIndex={-1} ref={main}>
        <View
          key={where}
          place={place}
          onLanguage={(wanted) => {
            setLanguage(wanted);
            redraw((count) => count + 1);
          }}
        />
      </main>
      <CommandBar />
      <Tasks />
    </div>
  );
}
