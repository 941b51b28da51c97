// The texts of the page.
import { common } from "./common";
import { en } from "./en";
import { ja } from "./ja";
import { translator } from "./language";

export type Key = keyof typeof en | keyof typeof common.en;

export const t = translator<Key>({ en: { ...common.en, ...en }, ja: { ...common.ja, ...ja } });
