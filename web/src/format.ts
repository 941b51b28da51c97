// Numbers and times for people, in their language.
import { language } from "./i18n/language";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count: number): string {
  if (count < 0) return "–";
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function percent(part: number): string {
  return `${part >= 10 ? Math.round(part) : part.toFixed(1)} %`;
}

// A time as the API has it; times before 1971 stand for none.
export function moment(text: string): string {
  const date = new Date(text);
  if (!(date.getFullYear() > 1970)) return "–";
  return date.toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" });
}

export function count(value: number): string {
  return value.toLocaleString(language());
}

// The last part of the URL of an object.
export function nameOf(url: string): string {
  return decodeURIComponent(new URL(url, location.href).pathname.split("/").at(-1) ?? "");
}
