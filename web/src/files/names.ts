// Names of files, which are bytes. Those that are not UTF-8 are lone surrogates in the API's JSON, U+DC80 to U+DCFF.

const ODD = /[\udc80-\udcff]/;
// biome-ignore lint/suspicious/noControlCharactersInRegex: such are what is to be found
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/;

function byteOf(char: string): string {
  return (char.charCodeAt(0) & 0xff).toString(16).padStart(2, "0");
}

function isOddByte(char: string): boolean {
  return char.length === 1 && ODD.test(char);
}

// A path as a part of a URL.
export function quotedPath(path: string): string {
  return [...path].map((char) => (isOddByte(char) ? `%${byteOf(char)}` : encodeURIComponent(char))).join("");
}

// A name as text: bytes that are none, and characters that cannot be seen, are escaped.
export function shownName(name: string): string {
  return [...name]
    .map((char) => {
      if (isOddByte(char)) return `\\x${byteOf(char)}`;
      return HIDDEN.test(char) ? `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}` : char;
    })
    .join("");
}

// A word of a shell that has such bytes or characters; undefined if it has none.
export function shellWord(word: string): string | undefined {
  if (!ODD.test(word) && !HIDDEN.test(word)) return undefined;
  const escaped = shownName(word.replaceAll("\\", "\\\\").replaceAll("'", "\\'"));
  return `$'${escaped}'`;
}

export function join(folder: string, name: string): string {
  return folder.endsWith("/") ? folder + name : `${folder}/${name}`;
}

export function parent(path: string): string {
  return path.slice(0, path.lastIndexOf("/")) || "/";
}

export function lastPart(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

// The absolute path of `path`, which is relative to `folder`, without `.` and `..`.
export function resolve(folder: string, path: string): string {
  const parts: string[] = [];
  for (const part of (path.startsWith("/") ? path : join(folder, path)).split("/")) {
    if (part === "..") parts.pop();
    else if (part && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}
