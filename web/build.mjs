// Build the page into a folder of compressed static files:
//
//     node build.mjs [FOLDER]      (default ../src/utsuwa/page)
//
// `npm ci --omit=dev` comes before. Prints the size of what a browser fetches.
import { createHash } from "node:crypto";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const target = path.resolve(process.argv[2] ?? path.join(here, "../src/utsuwa/page"));
const assets = "assets";

// What xterm.js does against a strict Content-Security-Policy, and what it does here in place of that: style elements
// become sheets that are adopted by the document, and attributes become properties. Each must be found as often as
// is said, so that another version cannot bring back what the policy forbids.
const replacements = [
  [/\b[\w.]+\.createElement\("style"\)/g, "sheetElement()", 3],
  [
    /(\w)\.setAttribute\("style",`\$\{\1\.getAttribute\("style"\)\|\|""\}\$\{(\w)\};`\)/g,
    "$1.style.cssText+=$2+';'",
    1,
  ],
];

const xtermUnderPolicy = {
  name: "xterm under the policy",
  setup(run) {
    run.onLoad({ filter: /@xterm\/xterm\/lib\/xterm\.mjs$/ }, async ({ path: file }) => {
      let text = await readFile(file, "utf8");
      for (const [pattern, replacement, times] of replacements) {
        const found = text.match(pattern)?.length ?? 0;
        if (found !== times) throw new Error(`${pattern} is ${found} times in xterm.js, and not ${times}`);
        text = text.replace(pattern, replacement);
      }
      const sheets = path.join(here, "src/terminal/sheets.ts");
      return { contents: `import { sheetElement } from ${JSON.stringify(sheets)};\n${text}` };
    });
  },
};

// The page of the daemon, and the public site where anyone tries Utsuwa: what is named in a document is an entry.
// Documents wait for those that are `early`, which are no modules.
const SITES = [
  {
    document: "index.html",
    base: "/ui/",
    entries: { app: "src/main.tsx", style: "src/styles/index.css" },
    early: { early: "src/early.ts" },
  },
  {
    document: "try.html",
    base: "/",
    entries: { try: "src/try/main.tsx", "try-style": "src/try/style.css" },
    early: {},
  },
];

async function bundle(kind, options) {
  return build({
    absWorkingDir: here,
    entryPoints: Object.fromEntries(SITES.flatMap((site) => Object.entries(site[kind]))),
    entryNames: `${assets}/[name]-[hash]`,
    chunkNames: `${assets}/[name]-[hash]`,
    assetNames: `${assets}/[name]-[hash]`,
    outdir: target,
    write: false,
    metafile: true,
    bundle: true,
    ...options,
    minify: true,
    target: ["es2022"],
    jsx: "automatic",
    jsxImportSource: "preact",
    legalComments: "none",
    plugins: [xtermUnderPolicy],
    logLevel: "warning",
  });
}

// The licences of all packages of which code is in the bundle.
async function licences(metafile) {
  const packages = new Set();
  for (const input of Object.keys(metafile.inputs)) {
    const found = input.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//);
    if (found) packages.add(found[1]);
  }
  const texts = [];
  for (const folder of [...packages].sort()) {
    const about = JSON.parse(await readFile(path.join(here, folder, "package.json"), "utf8"));
    const licence = await readFile(path.join(here, folder, "LICENSE"), "utf8");
    texts.push(`${about.name} ${about.version} (${about.license})\n\n${licence.trim()}\n`);
  }
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}

const modules = await bundle("entries", { splitting: true, format: "esm" });
const scripts = await bundle("early", { format: "iife" });
const outputs = { ...modules.metafile.outputs, ...scripts.metafile.outputs };

function outputOf(entry) {
  return Object.keys(outputs).find((name) => outputs[name].entryPoint === entry);
}

// An output's name below the page's address.
function addressOf(name) {
  return path.relative(target, path.resolve(here, name)).split(path.sep).join("/");
}

// The modules that an output needs before it runs; a browser would find them one after the other.
function importsOf(name, found = new Set()) {
  for (const { path: imported, kind } of outputs[name].imports) {
    if (kind !== "import-statement" || found.has(imported)) continue;
    found.add(imported);
    importsOf(imported, found);
  }
  return found;
}

const files = new Map();
for (const file of [...modules.outputFiles, ...scripts.outputFiles]) {
  files.set(addressOf(file.path), Buffer.from(file.contents));
}
for (const { document, base, entries, early } of SITES) {
  let text = await readFile(path.join(here, "src", document), "utf8");
  const preloads = [];
  for (const [name, entry] of Object.entries({ ...entries, ...early })) {
    const output = outputOf(entry);
    text = text.replace(`"${base}${name}${path.extname(output)}"`, `"${base}${addressOf(output)}"`);
    for (const needed of importsOf(output)) {
      preloads.push(`    <link rel="modulepreload" href="${base}${addressOf(needed)}" />\n`);
    }
  }
  files.set(document, Buffer.from(text.replace("  </head>", `${preloads.join("")}  </head>`)));
}
files.set("icon.svg", await readFile(path.join(here, "src/icon.svg")));
files.set("licences.txt", Buffer.from(await licences(modules.metafile)));

// A page that is half written would be served: it is complete before it takes the place of the old one.
const fresh = `${target}.new`;
await rm(fresh, { recursive: true, force: true });
let total = 0;
for (const [name, content] of files) {
  const packed = gzipSync(content, { level: 9 });
  if (name !== "licences.txt") total += packed.length;
  const file = path.join(fresh, `${name}.gz`);
  await mkdir(path.dirname(file), { recursive: true });
  await writeFile(file, packed);
}
const digest = createHash("sha256");
for (const name of [...files.keys()].sort()) digest.update(name).update(files.get(name));
await rm(target, { recursive: true, force: true });
await rename(fresh, target);
console.log(
  `${files.size} files, ${(total / 1000).toFixed(1)} kB compressed, ${digest.digest("hex").slice(0, 12)}`,
);
