// The choice whether a screen reader is told what the terminal shows.
import { Check } from "../components/fields";
import { t } from "../i18n/common";
import type { UsedTerminal } from "./use-terminal";

export function ReaderCheck({ terminal }: { terminal: UsedTerminal }) {
  return <Check label={t("screenReader")} checked={terminal.readable} onChange={terminal.setReadable} />;
}
