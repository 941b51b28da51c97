// The language: the browser's, or the one that was chosen.

export type Language = "en" | "ja";
export type Texts<Key extends string> = Record<Language, Record<Key, string>>;
export type Values = Record<string, string | number>;

const STORED = "utsuwa.language";

function chosen(): Language {
  const stored = localStorage.getItem(STORED);
  if (stored === "en" || stored === "ja") return stored;
  return navigator.language.startsWith("ja") ? "ja" : "en";
}

let current = chosen();

export function language(): Language {
  return current;
}

export function setLanguage(wanted: Language): void {
  localStorage.setItem(STORED, wanted);
  current = wanted;
  document.documentElement.lang = wanted;
}

// A text with `{name}` replaced by the value of that name.
export function fill(text: string, values: Values): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

// Returns what looks up a text and fills it.
export function translator<Key extends string>(texts: Texts<Key>): (key: Key, values?: Values) => string {
  return (key, values = {}) => fill(texts[current][key], values);
}
