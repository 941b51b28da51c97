// The choices of language, and of light or dark.
import { useState } from "preact/hooks";
import { t } from "../i18n/common";
import { type Language, language } from "../i18n/language";
import { setTheme, type Theme, theme } from "../theme";
import { SelectField } from "./fields";

export function LanguageField({ onChange }: { onChange: (wanted: Language) => void }) {
  return (
    <SelectField
      label={t("language")}
      value={language()}
      options={[
        { value: "en", label: "English" },
        { value: "ja", label: "日本語" },
      ]}
      onChange={(value) => onChange(value as Language)}
    />
  );
}

export function ThemeField() {
  const [look, setLook] = useState(theme());
  return (
    <SelectField
      label={t("theme")}
      value={look}
      options={[
        { value: "", label: t("themeSystem") },
        { value: "light", label: t("themeLight") },
        { value: "dark", label: t("themeDark") },
      ]}
      onChange={(value) => {
        setTheme(value as Theme);
        setLook(value as Theme);
      }}
    />
  );
}
