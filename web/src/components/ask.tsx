// A button that opens a dialog, and names the command that does what the dialog is for.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Icon, type IconName } from "./icon";

interface Props {
  label: string;
  icon: IconName;
  command: string;
  // Show the icon only; the label is for those who do not see it.
  bare?: boolean;
  primary?: boolean;
  disabled?: boolean;
  // The dialog, which closes itself.
  children: (close: () => void) => ComponentChildren;
}

export function Ask({ label, icon, command, bare, primary, disabled, children }: Props) {
  const [asking, setAsking] = useState(false);
  return (
    <>
      <button
        type="button"
        class={`button ${bare ? "quiet icon" : ""} ${primary ? "primary" : ""}`}
        data-command={command}
        aria-label={bare ? label : undefined}
        title={bare ? label : undefined}
        disabled={disabled}
        onClick={() => setAsking(true)}
      >
        <Icon name={icon} />
        {!bare && label}
      </button>
      {asking && children(() => setAsking(false))}
    </>
  );
}
