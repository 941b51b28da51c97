// Trusted certificates of clients, and tokens for new ones.
import { useState } from "preact/hooks";
import { change, path, withQuery } from "../api/client";
import type { Certificate } from "../api/types";
import { command } from "../command";
import { CommandLine } from "../components/command-line";
import { DeleteButton } from "../components/delete-button";
import { Dialog } from "../components/dialog";
import { TextField } from "../components/fields";
import { Icon } from "../components/icon";
import { Table } from "../components/table";
import { Card, Empty, Head, Loading, Problem, Tags } from "../components/view";
import { t } from "../i18n";
import { attempt } from "../state/attempt";
import { concerns, useResource } from "../state/resource";

interface Request {
  secret: string;
  fingerprint: string;
  addresses: string[];
}

// A token as text: what `utsuwa config trust add` prints.
function tokenText(name: string, found: Request): string {
  const { secret, fingerprint, addresses } = found;
  const text = JSON.stringify({ client_name: name, fingerprint, addresses, secret });
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

function IssueToken({
  project,
  onIssued,
  onClose,
}: {
  project: string;
  onIssued: (token: string) => void;
  onClose: () => void;
}) {
  const [name, setName] = useState("");
  return (
    <Dialog
      title={t("issueToken")}
      submit={t("issueToken")}
      command={command(project, "config", "trust", "add", "--name", name || t("nameWord"))}
      ready={name !== ""}
      onClose={onClose}
      onSubmit={() =>
        attempt(async () => {
          const operation = await change("POST", path("certificates"), { name, type: "client", token: true });
          if (operation) onIssued(tokenText(name, operation.metadata as unknown as Request));
        })
      }
    >
      <div class="fields">
        <TextField
          label={t("clientName")}
          value={name}
          onInput={setName}
          help={t("tokenHelp")}
          required
          autofocus
        />
      </div>
    </Dialog>
  );
}

export function CertificatesPage({ project }: { project: string }) {
  const url = withQuery(path("certificates"), { recursion: 1 });
  const { data, error } = useResource<Certificate[]>(url, concerns("certificates"));
  const [issuing, setIssuing] = useState(false);
  const [token, setToken] = useState("");
  return (
    <>
      <Head title={t("certificates")}>
        <span class="space" />
        <button type="button" class="button primary" onClick={() => setIssuing(true)}>
          <Icon name="plus" />
          {t("issueToken")}
        </button>
      </Head>
      {error && <Problem error={error} />}
      {!data && !error && <Loading />}
      <div class="stack">
        {token && (
          <Card title={t("tokenIssued")}>
            <CommandLine command={`utsuwa remote add ${t("nameWord")} ${token}`} />
          </Card>
        )}
        {data && !data.length && <Empty>{t("noCertificates")}</Empty>}
        {data && data.length > 0 && (
          <Table
            label={t("certificates")}
            rows={data}
            keyOf={(row) => row.fingerprint}
            columns={[
              {
                title: t("name"),
                order: (row) => row.name,
                cell: (row) => <span class="name">{row.name}</span>,
              },
              { title: t("type"), cell: (row) => row.type },
              {
                title: t("fingerprint"),
                cell: (row) => <code>{row.fingerprint.slice(0, 12)}</code>,
                class: "wide",
              },
              {
                title: t("projects"),
                cell: (row) => (row.restricted ? <Tags values={row.projects} /> : t("all")),
              },
              {
                title: "",
                cell: (row) => (
                  <div class="rowbuttons">
                    <DeleteButton
                      name={row.name}
                      confirm={t("deleteCertificateAsk", { name: row.name })}
                      command={command(project, "config", "trust", "remove", row.fingerprint.slice(0, 12))}
                      work={() => change("DELETE", path("certificates", row.fingerprint))}
                    />
                  </div>
                ),
              },
            ]}
          />
        )}
      </div>
      {issuing && <IssueToken project={project} onIssued={setToken} onClose={() => setIssuing(false)} />}
    </>
  );
}
