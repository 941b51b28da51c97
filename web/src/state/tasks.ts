// What the page is doing: each action is a task with its command, its progress and its end.
import { useEffect, useState } from "preact/hooks";
import { type ApiError, change, finished, path } from "../api/client";
import { onEvent } from "../api/events";
import type { Operation } from "../api/types";

export interface Task {
  id: number;
  title: string;
  command: string;
  state: "running" | "done" | "failed";
  detail: string;
  operation: Operation | undefined;
}

const SHOWN = 4000; // milliseconds for which a task that has succeeded is shown
const listeners = new Set<() => void>();
let tasks: Task[] = [];
let lastCommand = "";
let next = 1;

function update(id: number, fields: Partial<Task>): void {
  tasks = tasks.map((task) => (task.id === id ? { ...task, ...fields } : task));
  for (const listener of listeners) listener();
}

export function dismiss(id: number): void {
  tasks = tasks.filter((task) => task.id !== id);
  for (const listener of listeners) listener();
}

// Do something as a task; returns whether it succeeded. A failure is shown, not thrown.
export async function run(
  title: string,
  command: string,
  work: () => Promise<Operation | undefined>,
): Promise<boolean> {
  const id = next++;
  lastCommand = command;
  tasks = [...tasks, { id, title, command, state: "running", detail: "", operation: undefined }];
  for (const listener of listeners) listener();
  try {
    const operation = await work();
    if (operation) {
      update(id, { operation });
      await finished(operation);
    }
  } catch (error) {
    update(id, { state: "failed", detail: (error as ApiError).message, operation: undefined });
    return false;
  }
  update(id, { state: "done", detail: "", operation: undefined });
  setTimeout(() => dismiss(id), SHOWN);
  return true;
}

export async function cancel(task: Task): Promise<void> {
  if (!task.operation) return;
  try {
    await change("DELETE", path("operations", task.operation.id));
  } catch (error) {
    update(task.id, { detail: (error as ApiError).message });
  }
}

// What an operation says of its progress, such as `rootfs: 42%`.
export function progressOf(operation: Operation): string {
  const found = Object.entries(operation.metadata ?? {}).find(([name]) => name.endsWith("_progress"));
  return found ? String(found[1]) : "";
}

onEvent((event) => {
  if (event.type !== "operation") return;
  const task = tasks.find((one) => one.operation?.id === event.metadata.id);
  if (task?.state === "running")
    update(task.id, { operation: event.metadata, detail: progressOf(event.metadata) });
});

export function useTasks(): { tasks: Task[]; lastCommand: string } {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = () => redraw((value) => value + 1);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return { tasks, lastCommand };
}
