// The shell in the visitor's container: one websocket, whose text frames tell the size. The shell lives on when the
// connection is lost; the next one begins with the end of what it has said.
import { type Connection, type Handlers, Pauses, type Size } from "../terminal/connection";
import type { Activity } from "./activity";

const REPLACED = 4001; // the close code if the terminal was opened in another window
const decoder = new TextDecoder();

function address({ columns, rows }: Size): URL {
  const url = new URL(`/api/session/terminal?width=${columns}&height=${rows}`, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

export class VisitorShell implements Connection {
  private socket: WebSocket | undefined;
  private left = false;
  private readonly pauses = new Pauses();

  constructor(
    private readonly handlers: Handlers,
    private readonly activity: Activity,
    // The session may have ended.
    private readonly onDoubt: () => void,
  ) {
    handlers.onState({ kind: "starting" });
    this.connect();
  }

  send(data: Uint8Array<ArrayBuffer>): void {
    this.tell(data);
    this.activity.typed(decoder.decode(data));
  }

  resize({ columns, rows }: Size): void {
    this.tell(JSON.stringify({ resize: [columns, rows] }));
  }

  close(): void {
    this.left = true;
    const { socket } = this;
    // The browser complains about a websocket that is closed before it is open.
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
  }

  private tell(message: string | Uint8Array<ArrayBuffer>): void {
    const { socket } = this;
    if (socket?.readyState === WebSocket.OPEN) socket.send(message);
    // What is clicked on at once is not lost.
    if (socket?.readyState === WebSocket.CONNECTING)
      socket.addEventListener("open", () => socket.send(message), { once: true });
  }

  private connect(): void {
    const socket = new WebSocket(address(this.handlers.size()));
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    let first = true;
    socket.onopen = () => {
      this.pauses.reset();
      this.resize(this.handlers.size());
      this.handlers.onState({ kind: "open" });
    };
    socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
      if (typeof data === "string") return;
      this.handlers.onData(new Uint8Array(data), { repeated: first });
      if (!first) this.activity.output();
      first = false;
    };
    socket.onclose = ({ code }) => {
      if (this.left) return;
      if (code === REPLACED) this.handlers.onState({ kind: "replaced" });
      else void this.lost();
    };
  }

  private async lost(): Promise<void> {
    this.handlers.onState({ kind: "lost" });
    this.onDoubt();
    await this.pauses.wait();
    if (!this.left) this.connect();
  }
}

// What is typed to run a command: whatever is on the line already is taken away first.
export function typed(command: string): string {
  return `\x15${command}\r`;
}
