// The bar with the command that does what is pointed at.
import { useEffect, useState } from "preact/hooks";
import { t } from "../i18n";
import { useTasks } from "../state/tasks";
import { CopyButton } from "./command-line";

export function CommandBar() {
  const { lastCommand } = useTasks();
  const [pointed, setPointed] = useState("");

  useEffect(() => {
    const look = (event: Event) => {
      const near = event.target instanceof Element ? event.target.closest("[data-command]") : null;
      if (event.target instanceof Element && event.target.closest(".commandbar")) return;
      setPointed(near?.getAttribute("data-command") ?? "");
    };
    document.addEventListener("pointerover", look);
    document.addEventListener("focusin", look);
    return () => {
      document.removeEventListener("pointerover", look);
      document.removeEventListener("focusin", look);
    };
  }, []);

  const shown = pointed || lastCommand;
  return (
    <section class="commandbar" aria-label={t("commandBar")}>
      {shown ? (
        <>
          <code>{shown}</code>
          <CopyButton text={shown} />
        </>
      ) : (
        <span class="note">{t("commandBarHint")}</span>
      )}
    </section>
  );
}
