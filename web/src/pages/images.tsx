// The images of this server: downloaded from image servers, named, described, deleted.
import { useState } from "preact/hooks";
import { change, path, withQuery } from "../api/client";
import type { Image } from "../api/types";
import { command } from "../command";
import { Ask } from "../components/ask";
import { ConfigEditor } from "../components/config-editor";
import { DeleteButton } from "../components/delete-button";
import { Dialog } from "../components/dialog";
import { Check, SelectField, TextField } from "../components/fields";
import { type Column, Table } from "../components/table";
import { Card, Empty, Facts, Head, Loading, Problem, Tags } from "../components/view";
import { bytes, moment } from "../format";
import { t } from "../i18n";
import { imageSource, REMOTES } from "../remotes";
import { href } from "../router";
import { attempt } from "../state/attempt";
import { concerns, useResource } from "../state/resource";
import { run } from "../state/tasks";

function nameOf(image: Image): string {
  return image.aliases[0]?.name ?? image.fingerprint.slice(0, 12);
}

function describe(image: Image): string {
  return image.properties.description ?? image.properties.os ?? "";
}

export function ImagesPage({ project }: { project: string }) {
  const url = withQuery(path("images"), { recursion: 1, project });
  const { data, error } = useResource<Image[]>(url, concerns("images"));
  const columns: Column<Image>[] = [
    {
      title: t("alias"),
      order: (row) => row.aliases[0]?.name ?? "",
      cell: (row) => (row.aliases.length ? <Tags values={row.aliases.map((alias) => alias.name)} /> : ""),
    },
    { title: t("description"), order: describe, cell: describe, class: "clip" },
    {
      title: t("fingerprint"),
      cell: (row) => (
        <a class="name" href={href({ page: "images", name: row.fingerprint })}>
          <code>{row.fingerprint.slice(0, 12)}</code>
        </a>
      ),
    },
    { title: t("architecture"), cell: (row) => row.architecture, class: "wide" },
    { title: t("size"), order: (row) => row.size, cell: (row) => bytes(row.size), class: "number" },
    {
      title: t("uploaded"),
      order: (row) => row.uploaded_at,
      cell: (row) => moment(row.uploaded_at),
      class: "wide",
    },
    {
      title: "",
      cell: (row) => (
        <div class="rowbuttons">
          <DeleteButton
            name={nameOf(row)}
            confirm={t("deleteImageAsk")}
            command={command(project, "image", "delete", row.fingerprint.slice(0, 12))}
            work={() => change("DELETE", withQuery(path("images", row.fingerprint), { project }))}
          />
        </div>
      ),
    },
  ];
  return (
    <>
      <Head title={t("images")}>
        <span class="space" />
        <Ask
          primary
          label={t("downloadImage")}
          icon="download"
          command={command(project, "image", "copy", `images:${t("imageWord")}`, "local:")}
        >
          {(close) => <DownloadImage project={project} onClose={close} />}
        </Ask>
      </Head>
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && !data.length && <Empty>{t("noImages")}</Empty>}
      {data && data.length > 0 && (
        <Table label={t("images")} rows={data} columns={columns} keyOf={(row) => row.fingerprint} />
      )}
    </>
  );
}

function DownloadImage({ project, onClose }: { project: string; onClose: () => void }) {
  const [remote, setRemote] = useState("images");
  const [image, setImage] = useState("");
  const [alias, setAlias] = useState("");
  const [updated, setUpdated] = useState(true);
  const source = `${remote}:${image || t("imageWord")}`;
  const said = command(
    project,
    "image",
    "copy",
    source,
    "local:",
    ...(alias ? ["--alias", alias] : []),
    ...(updated ? ["--auto-update"] : []),
  );
  const submit = () =>
    attempt(async () => {
      const operation = await change("POST", withQuery(path("images"), { project }), {
        source: imageSource(remote, image),
        auto_update: updated,
        aliases: alias ? [{ name: alias }] : [],
      });
      void run(t("downloading", { name: source }), said, async () => operation);
    });
  return (
    <Dialog
      title={t("downloadImage")}
      submit={t("download")}
      command={said}
      ready={image !== ""}
      onClose={onClose}
      onSubmit={submit}
    >
      <div class="fields">
        <div class="pair">
          <SelectField
            label={t("imageFrom")}
            value={remote}
            options={Object.keys(REMOTES).map((value) => ({ value, label: `${value}:` }))}
            onChange={setRemote}
          />
          <TextField
            label={t("image")}
            value={image}
            onInput={setImage}
            placeholder="debian/12"
            required
            autofocus
          />
        </div>
        <TextField label={t("alias")} value={alias} onInput={setAlias} />
        <Check label={t("autoUpdate")} checked={updated} onChange={setUpdated} />
      </div>
    </Dialog>
  );
}

function AddAlias({ image, project }: { image: Image; project: string }) {
  const [alias, setAlias] = useState("");
  const short = image.fingerprint.slice(0, 12);
  const said = (name: string) => command(project, "image", "alias", "create", name, short);
  return (
    <Ask label={t("addAlias")} icon="plus" command={said(t("aliasWord"))}>
      {(close) => (
        <Dialog
          title={t("addAlias")}
          submit={t("add")}
          command={said(alias || t("aliasWord"))}
          ready={alias !== ""}
          onClose={close}
          onSubmit={() =>
            attempt(() =>
              change("POST", withQuery(path("images", "aliases"), { project }), {
                name: alias,
                target: image.fingerprint,
              }),
            )
          }
        >
          <TextField label={t("alias")} value={alias} onInput={setAlias} required autofocus />
        </Dialog>
      )}
    </Ask>
  );
}

function Aliases({ image, project }: { image: Image; project: string }) {
  return (
    <Card title={t("aliases")}>
      <ul class="rows">
        {image.aliases.map(({ name }) => (
          <li key={name}>
            <span class="name">{name}</span>
            <DeleteButton
              name={name}
              command={command(project, "image", "alias", "delete", name)}
              work={() => change("DELETE", withQuery(path("images", "aliases", name), { project }))}
            />
          </li>
        ))}
      </ul>
      <AddAlias image={image} project={project} />
    </Card>
  );
}

export function ImagePage({ project, fingerprint }: { project: string; fingerprint: string }) {
  const url = withQuery(path("images", fingerprint), { project });
  const { data, error, reload } = useResource<Image>(url, concerns("images"));
  return (
    <>
      <Head
        title={data ? nameOf(data) : fingerprint.slice(0, 12)}
        above={{ label: t("images"), place: { page: "images" } }}
      />
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      {data && (
        <div class="stack">
          <div class="cards">
            <Card title={t("about")}>
              <Facts
                facts={[
                  [t("fingerprint"), <code key="fingerprint">{data.fingerprint}</code>],
                  [t("architecture"), data.architecture],
                  [t("size"), bytes(data.size)],
                  [t("uploaded"), moment(data.uploaded_at)],
                  [t("public"), data.public ? t("yes") : t("no")],
                ]}
              />
            </Card>
            <Aliases image={data} project={project} />
          </div>
          <h2>{t("properties")}</h2>
          <ConfigEditor
            kind="image"
            url={url}
            project={project}
            config={data.properties}
            words={["image", "set-property", data.fingerprint.slice(0, 12)]}
            field="properties"
            title={t("saving", { name: nameOf(data) })}
            onSaved={reload}
          />
        </div>
      )}
    </>
  );
}
