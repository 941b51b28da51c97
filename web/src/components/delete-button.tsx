// The button that deletes one object of a list: an icon, with a label that says which object that is.
import type { ComponentProps } from "preact";
import { t } from "../i18n";
import { Action } from "./action";

type Deletion = Pick<ComponentProps<typeof Action>, "command" | "work" | "confirm" | "disabled" | "onDone">;

interface Props extends Deletion {
  name: string;
  // What the task is about, where the name in the list does not say it: a snapshot with its instance.
  whole?: string;
}

export function DeleteButton({ name, whole = name, ...deletion }: Props) {
  return (
    <Action
      bare
      danger
      icon="trash"
      label={t("actionOf", { action: t("delete"), name })}
      title={t("deleting", { name: whole })}
      {...deletion}
    />
  );
}
