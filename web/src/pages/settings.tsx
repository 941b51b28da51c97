// The server's configuration, and how the page looks.
import type { Server } from "../api/types";
import { LanguageField, ThemeField } from "../components/appearance";
import { ConfigEditor } from "../components/config-editor";
import { Card, Facts, Head, Loading, Problem } from "../components/view";
import { t } from "../i18n";
import type { Language } from "../i18n/language";
import { concerns, useResource } from "../state/resource";

export function SettingsPage({
  project,
  onLanguage,
}: {
  project: string;
  onLanguage: (wanted: Language) => void;
}) {
  const { data, error, reload } = useResource<Server>(
    "/1.0",
    (event) =>
      concerns("")(event) && event.type === "lifecycle" && event.metadata.action === "config-updated",
  );
  return (
    <>
      <Head title={t("settings")} />
      <div class="stack">
        <div class="cards">
          <Card title={t("thisPage")}>
            <div class="fields">
              <LanguageField onChange={onLanguage} />
              <ThemeField />
              <a href="/ui/licences.txt" target="_blank" rel="noreferrer">
                {t("licences")}
              </a>
            </div>
          </Card>
          {data && (
            <Card title={t("server")}>
              <Facts
                facts={[
                  [t("name"), data.environment.server_name],
                  [t("version"), data.environment.server_version],
                  [t("system"), `${data.environment.os_name} ${data.environment.os_version}`],
                  [t("kernel"), data.environment.kernel_version],
                  ["liblxc", data.environment.driver_version],
                  [t("address"), data.environment.addresses.join(", ") || t("notOnNetwork")],
                ]}
              />
            </Card>
          )}
        </div>
        {error && <Problem error={error} />}
        {!data && !error && <Loading />}
        {data && (
          <>
            <h2>{t("serverConfiguration")}</h2>
            <ConfigEditor
              kind="server"
              url="/1.0"
              project={project}
              config={data.config}
              words={["config", "set"]}
              title={t("saving", { name: t("server") })}
              onSaved={reload}
            />
          </>
        )}
      </div>
    </>
  );
}
