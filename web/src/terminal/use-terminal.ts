// xterm.js in an element, connected to a shell.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import type { RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Connect, Connection, Handlers, Size, State } from "./connection";

export type { State };

export interface UsedTerminal {
  box: RefObject<HTMLDivElement | null>;
  state: State;
  // Connect anew.
  again: () => void;
  // End what runs in it, if the connection can.
  end: () => void;
  // Send as if it were typed.
  send: (text: string) => void;
  // Whether a screen reader is told what is shown, which takes time that others need not spend.
  readable: boolean;
  setReadable: (wanted: boolean) => void;
  focus: () => void;
}

const THEME = {
  background: "#101412",
  foreground: "#e5eae7",
  cursor: "#86cfbb",
  selectionBackground: "#3d5f55",
};

const STORED = "utsuwa.screenreader";
const encoder = new TextEncoder();

function sizeOf(terminal: Terminal): Size {
  return { columns: terminal.cols, rows: terminal.rows };
}

function wasReadable(): boolean {
  return localStorage.getItem(STORED) === "yes";
}

function newTerminal(box: HTMLElement): [Terminal, FitAddon] {
  const terminal = new Terminal({
    // A cursor that blinks is an animation, for which the browser draws 60 frames a second; after a key, it lets what the
    // server sends wait for the next of them.
    cursorBlink: false,
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
    fontSize: 13,
    scrollback: 10_000,
    screenReaderMode: wasReadable(),
    theme: THEME,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(box);
  fit.fit();
  terminal.focus();
  return [terminal, fit];
}

// Whether a key is Ctrl+Shift+C, which copies in terminals, where Ctrl+C interrupts; in a page, browsers mean their own
// tools by it. To paste by Ctrl+Shift+V is theirs.
function copies(event: KeyboardEvent, terminal: Terminal): boolean {
  if (event.code !== "KeyC" || !event.ctrlKey || !event.shiftKey) return false;
  event.preventDefault();
  if (event.type === "keydown" && terminal.hasSelection())
    void navigator.clipboard?.writeText(terminal.getSelection());
  return true;
}

// Show in `box` what `connect` opens. F6 calls `onLeave`, for whoever has no other way out of a terminal than a key.
export function useTerminal(connect: Connect, onLeave?: () => void): UsedTerminal {
  const box = useRef<HTMLDivElement>(null);
  const screen = useRef<Terminal>(undefined);
  const connection = useRef<Connection>(undefined);
  const repeating = useRef(0);
  const [state, setState] = useState<State>({ kind: "starting" });
  const [attempt, setAttempt] = useState(0);
  const [readable, setReadable] = useState(wasReadable);

  useEffect(() => {
    if (!box.current) return undefined;
    const [terminal, fit] = newTerminal(box.current);
    screen.current = terminal;
    const send = (data: Uint8Array<ArrayBuffer>) => {
      if (repeating.current === 0) connection.current?.send(data);
    };
    terminal.onData((text) => send(encoder.encode(text)));
    terminal.onBinary((text) => send(Uint8Array.from(text, (char) => char.charCodeAt(0))));
    terminal.onResize(() => connection.current?.resize(sizeOf(terminal)));
    terminal.attachCustomKeyEventHandler((event) => {
      if (copies(event, terminal)) return false;
      if (event.key !== "F6" || !onLeave) return true;
      event.preventDefault();
      if (event.type === "keydown") onLeave();
      return false;
    });
    const observer = new ResizeObserver(() => fit.fit());
    observer.observe(box.current);
    return () => {
      observer.disconnect();
      terminal.dispose();
    };
  }, []);

  useEffect(() => {
    const terminal = screen.current;
    if (!terminal) return undefined;
    let live = true;
    let fresh = true;
    setState({ kind: "starting" });
    // What is on the screen stays until there is something new.
    const onData: Handlers["onData"] = (data, { repeated = false, shown } = {}) => {
      if (!live) return;
      if (fresh) terminal.reset();
      fresh = false;
      if (repeated) repeating.current += 1;
      terminal.write(data, () => {
        if (repeated) repeating.current -= 1;
        shown?.();
      });
    };
    const onState = (told: State) => {
      if (live) setState(told);
    };
    const handlers: Handlers = {
      onData,
      onNote: (text) => terminal.write(`\r\n\x1b[2m${text}\x1b[0m\r\n`),
      onEnd: (status) => onState(status === undefined ? { kind: "lost" } : { kind: "ended", status }),
      onState,
      size: () => sizeOf(terminal),
    };
    const opening = connect(sizeOf(terminal), handlers);
    if (!(opening instanceof Promise)) {
      connection.current = opening;
      return () => {
        live = false;
        opening.close();
        connection.current = undefined;
      };
    }
    opening.then(
      (opened) => {
        if (!live) return opened.close();
        connection.current = opened;
        setState({ kind: "open" });
        opened.resize(sizeOf(terminal));
      },
      (error: Error) => live && setState({ kind: "failed", why: error.message }),
    );
    return () => {
      live = false;
      connection.current?.close();
      connection.current = undefined;
    };
  }, [connect, attempt]);

  return {
    box,
    state,
    again: () => setAttempt((count) => count + 1),
    end: () => connection.current?.end?.(),
    send: (text) => connection.current?.send(encoder.encode(text)),
    readable,
    setReadable: (wanted) => {
      localStorage.setItem(STORED, wanted ? "yes" : "no");
      if (screen.current) screen.current.options.screenReaderMode = wanted;
      setReadable(wanted);
    },
    focus: () => screen.current?.focus(),
  };
}
