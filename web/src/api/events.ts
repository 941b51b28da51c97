// The events websocket, one for the whole page. It connects again by itself, and says when something was missed.
import * as session from "./session";
import type { ApiEvent } from "./types";

type Listener = (event: ApiEvent) => void;
export type Connection = "connecting" | "open" | "lost";

const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 5000;
const LONGEST_WAIT = 2000; // until what is shown is read although no events come
const listeners = new Set<Listener>();
const resumed = new Set<() => void>();
const watchers = new Set<(state: Connection) => void>();

let socket: WebSocket | undefined;
let again: ReturnType<typeof setTimeout> | undefined;
let pause = FIRST_PAUSE;
let current: Connection = "connecting";
let begun = false; // whether anything may have been read, of which changes can be missed
let begin: () => void;
let beginning: Promise<void>;
let patience: ReturnType<typeof setTimeout> | undefined;
hold();

export function onEvent(listener: Listener): () => void {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

// Call `listener` when events may have been missed, so that what is shown is read anew.
export function onResume(listener: () => void): () => void {
  resumed.add(listener);
  return () => void resumed.delete(listener);
}

export function onConnection(watcher: (state: Connection) => void): () => void {
  watchers.add(watcher);
  watcher(current);
  return () => void watchers.delete(watcher);
}

function hold(): void {
  begun = false;
  beginning = new Promise((done) => {
    begin = () => {
      begun = true;
      done();
    };
  });
}

// Wait until events come, or cannot: what is read afterwards changes only with an event, or `onResume`.
export function listening(): Promise<void> {
  return beginning;
}

function tell(state: Connection): void {
  current = state;
  begin();
  for (const watcher of watchers) watcher(state);
}

export function socketTo(url: string): WebSocket {
  const address = new URL(url, location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const key = session.key();
  return new WebSocket(address, key ? ["utsuwa", `utsuwa.key.${key}`] : ["utsuwa"]);
}

export function connect(): void {
  const fresh = socketTo("/1.0/events?type=lifecycle,operation&all-projects=true");
  socket = fresh;
  clearTimeout(patience);
  patience = setTimeout(begin, LONGEST_WAIT);
  fresh.onopen = () => {
    pause = FIRST_PAUSE;
    const missed = begun;
    tell("open");
    if (missed) for (const listener of resumed) listener();
  };
  fresh.onmessage = (message: MessageEvent<string>) => {
    const event = JSON.parse(message.data) as ApiEvent;
    for (const listener of listeners) listener(event);
  };
  fresh.onclose = () => {
    if (socket !== fresh) return;
    tell("lost");
    again = setTimeout(connect, pause);
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  };
}

export function disconnect(): void {
  const old = socket;
  socket = undefined;
  clearTimeout(again);
  clearTimeout(patience);
  // Whoever signs in next begins anew.
  pause = FIRST_PAUSE;
  current = "connecting";
  hold();
  old?.close();
}
