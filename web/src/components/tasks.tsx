// The tasks that run, have just ended or have failed.
import { t } from "../i18n";
import { cancel, dismiss, useTasks } from "../state/tasks";
import { Icon } from "./icon";

const DOTS = { running: "busy", done: "ok", failed: "bad" };

export function Tasks() {
  const { tasks } = useTasks();
  return (
    <div class="tasks" role="status">
      {tasks.map((task) => (
        <div key={task.id} class={`task ${task.state}`}>
          <span class={`dot ${DOTS[task.state]}`} />
          <strong>
            {task.title}
            {task.state !== "running" && <span class="hidden"> {t(task.state)}</span>}
          </strong>
          {task.state === "running" ? (
            task.operation?.may_cancel && (
              <button type="button" class="button quiet" onClick={() => void cancel(task)}>
                {t("cancel")}
              </button>
            )
          ) : (
            <button
              type="button"
              class="button quiet icon"
              aria-label={t("close")}
              onClick={() => dismiss(task.id)}
            >
              <Icon name="close" />
            </button>
          )}
          {task.detail && <p>{task.detail}</p>}
        </div>
      ))}
    </div>
  );
}
