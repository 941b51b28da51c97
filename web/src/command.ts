// The `utsuwa` command that does what an action of the page does.
import { shellWord } from "./files/names";

const PLAIN = /^[\w@%+=:,./-]+$/;

export function quote(word: string): string {
  const escaped = shellWord(word);
  if (escaped !== undefined) return escaped;
  return PLAIN.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

// `utsuwa WORDS...` with the project, unless it is the default one.
export function command(project: string, ...words: string[]): string {
  const scope = project === "default" ? [] : ["--project", project];
  return ["utsuwa", ...scope, ...words].map(quote).join(" ");
}
