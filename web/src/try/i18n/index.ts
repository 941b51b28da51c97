// The texts of the site.
import { common } from "../../i18n/common";
import { translator } from "../../i18n/language";
import { en } from "./en";
import { ja } from "./ja";

export type Key = keyof typeof en | keyof typeof common.en;

export const t = translator<Key>({ en: { ...common.en, ...en }, ja: { ...common.ja, ...ja } });
