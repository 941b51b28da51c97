// A button that changes something: it names the command that does the same, and may ask before.
import { useState } from "preact/hooks";
import type { Operation } from "../api/types";
import { run } from "../state/tasks";
import { Dialog } from "./dialog";
import { Icon, type IconName } from "./icon";

interface Props {
  label: string;
  icon?: IconName;
  // Show the icon only; the label is for those who do not see it.
  bare?: boolean;
  command: string;
  title: string;
  work: () => Promise<Operation | undefined>;
  confirm?: string;
  danger?: boolean;
  disabled?: boolean;
  onDone?: () => void;
}

export function Action(props: Props) {
  const {
    label,
    icon,
    bare = false,
    command,
    title,
    work,
    confirm,
    danger = false,
    disabled = false,
  } = props;
  const [asking, setAsking] = useState(false);

  const act = async () => {
    if (await run(title, command, work)) props.onDone?.();
  };

  return (
    <>
      <button
        type="button"
        class={`button ${bare ? "quiet icon" : ""} ${danger ? "danger" : ""}`}
        data-command={command}
        title={bare ? label : undefined}
        aria-label={bare ? label : undefined}
        disabled={disabled}
        onClick={() => (confirm ? setAsking(true) : void act())}
      >
        {icon && <Icon name={icon} />}
        {!bare && label}
      </button>
      {asking && (
        <Dialog
          title={label}
          submit={label}
          command={command}
          danger={danger}
          onClose={() => setAsking(false)}
          onSubmit={() => {
            void act();
            return undefined;
          }}
        >
          <p>{confirm}</p>
        </Dialog>
      )}
    </>
  );
}
