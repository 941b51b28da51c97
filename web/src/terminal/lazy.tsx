// The terminal, loaded when one is opened: it is most of what the page weighs.
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Instance } from "../api/types";
import { Empty, Loading } from "../components/view";
import { t } from "../i18n";
import type { Kind } from "./terminal";

interface Props {
  instance: Instance;
  kind: Kind;
}

function Lazy(props: Props) {
  const [Loaded, setLoaded] = useState<ComponentType<Props>>();
  useEffect(() => {
    void import("./terminal").then((module) => setLoaded(() => module.TerminalView));
  }, []);
  return Loaded ? <Loaded {...props} /> : <Loading />;
}

export function lazyTerminal(instance: Instance, kind: Kind) {
  if (instance.status !== "Running") return <Empty>{t("terminalNeedsRunning")}</Empty>;
  return <Lazy key={`${instance.project}/${instance.name}/${kind}`} instance={instance} kind={kind} />;
}
