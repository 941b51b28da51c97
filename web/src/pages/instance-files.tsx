// The files of an instance: browsed, downloaded, uploaded, edited, deleted.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "../api/client";
import * as files from "../api/files";
import type { Instance } from "../api/types";
import { command } from "../command";
import { Action } from "../components/action";
import { Ask } from "../components/ask";
import { DeleteButton } from "../components/delete-button";
import { Dialog } from "../components/dialog";
import { TextField } from "../components/fields";
import { Icon } from "../components/icon";
import { type Column, Table } from "../components/table";
import { Empty, Loading, Problem } from "../components/view";
import { join, lastPart, parent, resolve, shownName } from "../files/names";
import { openPath } from "../files/opening";
import { t } from "../i18n";
import { attempt } from "../state/attempt";
import { run } from "../state/tasks";

const HOME = "/root";

interface Folder {
  names: string[] | undefined;
  error: ApiError | undefined;
  reload: () => void;
}

function useFolder(instance: Instance, folder: string): Folder {
  const [listed, setListed] = useState<{ folder: string; names: string[] }>();
  const [error, setError] = useState<ApiError>();
  const [round, setRound] = useState(0);
  useEffect(() => {
    let wanted = true;
    setError(undefined);
    const fail = (problem: ApiError) => {
      if (!wanted) return;
      setListed(undefined);
      setError(problem);
    };
    files.list(instance, folder).then((names) => {
      if (!names) fail(new ApiError(t("notAFolder", { name: shownName(folder) }), 0));
      else if (wanted) setListed({ folder, names: names.sort() });
    }, fail);
    return () => {
      wanted = false;
    };
  }, [instance.name, instance.project, folder, round]);
  const names = listed?.folder === folder ? listed.names : undefined;
  return { names, error, reload: () => setRound((count) => count + 1) };
}

// Hand a file to the browser, under its name.
function save(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

interface EntryProps {
  instance: Instance;
  file: string;
  onOpen: (path: string) => void;
  onChanged: () => void;
}

// One file, whose attributes are asked for when it is shown.
function useAttributes(instance: Instance, file: string): files.Attributes | undefined {
  const [found, setFound] = useState<files.Attributes>();
  useEffect(() => {
    let wanted = true;
    files.attributes(instance, file).then(
      (attributes) => wanted && setFound(attributes),
      () => undefined, // it is gone, or of a type that cannot be read
    );
    return () => {
      wanted = false;
    };
  }, [instance.name, instance.project, file]);
  return found;
}

function Name({ instance, file, onOpen }: EntryProps) {
  return (
    <button
      type="button"
      class="link name"
      data-command={command(instance.project, "file", "edit", instance.name + file)}
      onClick={() => onOpen(file)}
    >
      {shownName(lastPart(file))}
    </button>
  );
}

function Facts({ instance, file }: { instance: Instance; file: string }) {
  const found = useAttributes(instance, file);
  if (!found) return <span class="muted">…</span>;
  return (
    <code>
      {t(found.type === "directory" ? "folder" : found.type === "symlink" ? "symlink" : "file")} {found.mode}{" "}
      {found.uid}:{found.gid} {found.modified.slice(0, 16)}
    </code>
  );
}

function EntryActions({ instance, file, onChanged }: EntryProps) {
  const shown = shownName(lastPart(file));
  const { name, project } = instance;
  const download = async () => {
    const { type } = await files.attributes(instance, file);
    const content = await files.read(instance, file, type);
    save(type === "directory" ? `${shown}.tar` : shown, content);
    return undefined;
  };
  return (
    <div class="rowbuttons">
      <Action
        bare
        icon="download"
        label={t("actionOf", { action: t("download"), name: shown })}
        title={t("downloading", { name: shown })}
        command={command(project, "file", "pull", "-r", name + file, ".")}
        work={download}
      />
      <DeleteButton
        name={shown}
        confirm={t("deleteFileAsk", { name: shown })}
        command={command(project, "file", "delete", name + file)}
        work={async () => void (await files.remove(instance, file))}
        onDone={onChanged}
      />
    </div>
  );
}

interface EditorProps {
  instance: Instance;
  file: string;
  text: string;
  onClose: () => void;
}

function Editor({ instance, file, text, onClose }: EditorProps) {
  const [draft, setDraft] = useState(text);
  return (
    <Dialog
      title={shownName(file)}
      submit={t("save")}
      command={command(instance.project, "file", "edit", instance.name + file)}
      ready={draft !== text}
      onClose={onClose}
      onSubmit={() => attempt(() => files.write(instance, file, new Blob([draft])))}
    >
      <textarea
        class="editor"
        aria-label={shownName(file)}
        rows={20}
        value={draft}
        spellcheck={false}
        onInput={(event) => setDraft(event.currentTarget.value)}
      />
    </Dialog>
  );
}

function NewFolder({
  instance,
  folder,
  onChanged,
}: {
  instance: Instance;
  folder: string;
  onChanged: () => void;
}) {
  const [name, setName] = useState("");
  const words = (last: string) =>
    command(instance.project, "file", "create", "--type", "directory", instance.name + join(folder, last));
  return (
    <Ask label={t("newFolder")} icon="folder" command={words(t("nameWord"))}>
      {(close) => (
        <Dialog
          title={t("newFolder")}
          submit={t("create")}
          command={words(name || t("nameWord"))}
          ready={name !== "" && !name.includes("/")}
          onClose={close}
          onSubmit={() =>
            attempt(async () => {
              await files.makeFolder(instance, join(folder, name));
              onChanged();
            })
          }
        >
          <TextField label={t("name")} value={name} onInput={setName} required autofocus />
        </Dialog>
      )}
    </Ask>
  );
}

function Upload({
  instance,
  folder,
  onChanged,
}: {
  instance: Instance;
  folder: string;
  onChanged: () => void;
}) {
  const chooser = useRef<HTMLInputElement>(null);
  const { name, project } = instance;
  const said = (word: string) => command(project, "file", "push", word, `${name}${join(folder, "")}`);
  const upload = async (chosen: File[]) => {
    for (const file of chosen) {
      await run(t("uploading", { name: file.name }), said(file.name), async () => {
        await files.write(instance, join(folder, file.name), file);
        return undefined;
      });
    }
    onChanged();
  };
  return (
    <>
      <button
        type="button"
        class="button"
        data-command={said(t("fileWord"))}
        onClick={() => chooser.current?.click()}
      >
        <Icon name="upload" />
        {t("upload")}
      </button>
      <input
        type="file"
        multiple
        hidden
        ref={chooser}
        aria-label={t("upload")}
        onChange={(event) => {
          const chosen = [...(event.currentTarget.files ?? [])];
          event.currentTarget.value = ""; // so that the same file can be chosen again
          void upload(chosen);
        }}
      />
    </>
  );
}

interface WayProps {
  folder: string;
  onOpen: (path: string) => void;
  onParent: () => void;
}

function Way({ folder, onOpen, onParent }: WayProps) {
  const [typed, setTyped] = useState(folder);
  useEffect(() => setTyped(folder), [folder]);
  return (
    <form
      class="buttons grow"
      onSubmit={(event) => {
        event.preventDefault();
        onOpen(typed === shownName(folder) ? folder : resolve("/", typed));
      }}
    >
      <button
        type="button"
        class="button"
        aria-label={t("parentFolder")}
        title={t("parentFolder")}
        disabled={folder === "/"}
        onClick={onParent}
      >
        ..
      </button>
      <input
        class="way mono"
        aria-label={t("folder")}
        value={shownName(typed)}
        spellcheck={false}
        onInput={(event) => setTyped(event.currentTarget.value)}
      />
    </form>
  );
}

export function Files({ instance }: { instance: Instance }) {
  const [folder, setFolder] = useState(HOME);
  const [editing, setEditing] = useState<{ file: string; text: string }>();
  const [problem, setProblem] = useState("");
  const { names, error, reload } = useFolder(instance, folder);
  const openAny = async (path: string) => {
    const failure = await attempt(async () => {
      const opened = await openPath(instance, path);
      if (opened.kind === "folder") setFolder(opened.path);
      else if (opened.kind === "text") setEditing({ file: opened.path, text: opened.text });
      else save(shownName(lastPart(opened.path)), opened.content);
    });
    setProblem(failure ?? "");
  };
  const openParent = () => {
    setProblem("");
    setFolder(parent(folder));
  };
  const propsOf = (file: string): EntryProps => ({
    instance,
    file,
    onOpen: (path) => void openAny(path),
    onChanged: reload,
  });
  const columns: Column<string>[] = [
    { title: t("name"), order: (file) => file, cell: (file) => <Name {...propsOf(file)} /> },
    { title: t("attributes"), cell: (file) => <Facts instance={instance} file={file} />, class: "wide" },
    { title: "", cell: (file) => <EntryActions {...propsOf(file)} /> },
  ];
  return (
    <div class="stack">
      <div class="buttons">
        <Way folder={folder} onOpen={(path) => void openAny(path)} onParent={openParent} />
        <Upload instance={instance} folder={folder} onChanged={reload} />
        <NewFolder instance={instance} folder={folder} onChanged={reload} />
      </div>
      {error && <Problem error={error} />}
      {problem && (
        <p class="error" role="alert">
          {problem}
        </p>
      )}
      {!names && !error && <Loading />}
      {names && !names.length && <Empty>{t("emptyFolder")}</Empty>}
      {names && names.length > 0 && (
        <Table
          label={t("files")}
          rows={names.map((name) => join(folder, name))}
          columns={columns}
          keyOf={(file) => file}
        />
      )}
      {editing && <Editor instance={instance} {...editing} onClose={() => setEditing(undefined)} />}
    </div>
  );
}
