// A command that does what the page does, or would do, with a button that copies it.
import { t } from "../i18n/common";
import { Icon } from "./icon";

export function CopyButton({ text }: { text: string }) {
  return (
    <button
      type="button"
      class="button quiet icon"
      aria-label={t("copyCommand")}
      title={t("copyCommand")}
      onClick={() => void navigator.clipboard?.writeText(text)}
    >
      <Icon name="copy" />
    </button>
  );
}

export function CommandLine({ command }: { command: string }) {
  return (
    <div class="commandline">
      <code>{command}</code>
      <CopyButton text={command} />
    </div>
  );
}
