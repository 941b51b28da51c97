// What surrounds the views before and after a session.
import type { ComponentChildren } from "preact";
import { LanguageField, ThemeField } from "../components/appearance";
import type { Language } from "../i18n/language";

export type OnLanguage = (wanted: Language) => void;

export function Brand() {
  return (
    <p class="brand">
      <img src="/icon.svg" alt="" />
      <span>Utsuwa</span>
    </p>
  );
}

export function Frame({ onLanguage, children }: { onLanguage: OnLanguage; children: ComponentChildren }) {
  return (
    <div class="frame">
      <header class="top">
        <Brand />
        <LanguageField onChange={onLanguage} />
        <ThemeField />
      </header>
      <main class="sheet">{children}</main>
    </div>
  );
}
