// The page's address: /ui/PROJECT/PAGE/NAME/TAB.
import { useEffect, useState } from "preact/hooks";

export interface Place {
  project: string;
  page: string;
  name: string;
  tab: string;
}

const BASE = "/ui/";
const DEFAULT_PROJECT = "default";
const DEFAULT_PAGE = "instances";
const listeners = new Set<() => void>();

export function parse(pathname: string): Place {
  const [project = "", page = "", name = "", tab = ""] = pathname
    .slice(BASE.length)
    .split("/")
    .map((part) => decodeURIComponent(part));
  return { project: project || DEFAULT_PROJECT, page: page || DEFAULT_PAGE, name, tab };
}

export function href(place: Partial<Place>): string {
  const here = parse(location.pathname);
  const parts = [place.project ?? here.project, place.page ?? here.page, place.name ?? "", place.tab ?? ""];
  while (parts.at(-1) === "") parts.pop();
  return BASE + parts.map(encodeURIComponent).join("/");
}

export function go(place: Partial<Place>): void {
  history.pushState(null, "", href(place));
  for (const listener of listeners) listener();
}

export function usePlace(): Place {
  const [place, setPlace] = useState(() => parse(location.pathname));
  useEffect(() => {
    const update = () => setPlace(parse(location.pathname));
    listeners.add(update);
    addEventListener("popstate", update);
    return () => {
      listeners.delete(update);
      removeEventListener("popstate", update);
    };
  }, []);
  return place;
}

// Follow links of the page without loading it anew; modified clicks are the browser's.
export function followLinks(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0) return;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = event.target instanceof Element ? event.target.closest("a") : null;
  if (!link || link.target || link.origin !== location.origin || !link.pathname.startsWith(BASE)) return;
  if (link.hasAttribute("download") || link.pathname.endsWith(".txt")) return;
  event.preventDefault();
  history.pushState(null, "", link.pathname);
  for (const listener of listeners) listener();
}
