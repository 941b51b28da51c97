// The session: its cookie is the browser's own business, its key is kept in the storage of this origin.

const STORED = "utsuwa.key";

export function key(): string {
  return localStorage.getItem(STORED) ?? "";
}

export function keep(value: string): void {
  localStorage.setItem(STORED, value);
}

export function forget(): void {
  localStorage.removeItem(STORED);
}

// Take the token out of the address, so that it stays neither there nor in the history.
export function tokenOfAddress(): string {
  const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  return token;
}
