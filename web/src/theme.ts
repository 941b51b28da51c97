// Light or dark: the system's choice, unless one is made in the settings.

export type Theme = "" | "light" | "dark";

const STORED = "utsuwa.theme";

export function theme(): Theme {
  const stored = localStorage.getItem(STORED);
  return stored === "light" || stored === "dark" ? stored : "";
}

export function setTheme(wanted: Theme): void {
  if (wanted) localStorage.setItem(STORED, wanted);
  else localStorage.removeItem(STORED);
  applyTheme();
}

export function applyTheme(): void {
  const wanted = theme();
  if (wanted) document.documentElement.dataset.theme = wanted;
  else delete document.documentElement.dataset.theme;
}
