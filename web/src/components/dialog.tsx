// A modal dialog with a form. The browser keeps the focus inside, and Escape closes it.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { t } from "../i18n/common";
import { CommandLine } from "./command-line";

interface Props {
  title: string;
  submit: string;
  // What does the same in a shell.
  command?: string;
  danger?: boolean;
  ready?: boolean;
  children?: ComponentChildren;
  onClose: () => void;
  // Returns what went wrong, to be shown in the dialog; it closes otherwise.
  onSubmit: () => Promise<string | undefined> | undefined;
}

export function Dialog(props: Props) {
  const { title, submit, command, danger = false, ready = true, children, onClose, onSubmit } = props;
  const box = useRef<HTMLDialogElement>(null);
  const heading = useId();
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);

  useEffect(() => {
    box.current?.showModal();
  }, []);

  const send = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setProblem("");
    const said = await onSubmit();
    setBusy(false);
    if (said) setProblem(said);
    else onClose();
  };

  return (
    <dialog ref={box} aria-labelledby={heading} onClose={onClose}>
      <form onSubmit={send}>
        <h2 id={heading}>{title}</h2>
        {children}
        {problem && (
          <p class="error" role="alert">
            {problem}
          </p>
        )}
        {command && <CommandLine command={command} />}
        <div class="answers">
          <button type="button" class="button" onClick={onClose}>
            {t("cancel")}
          </button>
          <button type="submit" class={`button primary ${danger ? "danger" : ""}`} disabled={busy || !ready}>
            {submit}
          </button>
        </div>
      </form>
    </dialog>
  );
}
