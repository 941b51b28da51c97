// The session: its cookie is the browser's own business, its key is kept in the storage of this origin.

const STORED = "utsuwa.key";
const TRUSTED = "utsuwa.trusted";
const TOKEN = "token";

export function key(): string {
  return localStorage.getItem(STORED) ?? "";
}

export function keep(value: string): void {
  localStorage.setItem(STORED, value);
}

export function forget(): void {
  localStorage.removeItem(STORED);
}

// Remember whether the server trusts the caller, by a session or a certificate.
export function remember(trusted: boolean): void {
  if (trusted) localStorage.setItem(TRUSTED, "yes");
  else localStorage.removeItem(TRUSTED);
}

export function wasTrusted(): boolean {
  return localStorage.getItem(TRUSTED) === "yes";
}

// Whether the caller will most likely be trusted, before the server has been asked.
export function isPresumed(): boolean {
  return wasTrusted() || addressed().has(TOKEN);
}

function addressed(): URLSearchParams {
  return new URLSearchParams(location.hash.slice(1));
}

// Take the token out of the address, so that it stays neither there nor in the history.
export function tokenOfAddress(): string {
  const token = addressed().get(TOKEN) ?? "";
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  return token;
}
