// What the visitor is told of an error.
import { t } from "./i18n";
import { type SiteError, UNREACHABLE } from "./site";

export function saidOf({ code, message }: SiteError): string {
  switch (code) {
    case "full":
      return t("full");
    case "too-many":
      return t("tooMany");
    case UNREACHABLE:
      return t("unreachable");
    default:
      return message;
  }
}
