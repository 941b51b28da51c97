// The console of an instance. It goes on by itself; a lost connection is replaced by another one.
import { type ApiError, getText, path, post, withQuery } from "../api/client";
import { socketTo } from "../api/events";
import type { Instance, Operation } from "../api/types";
import { type Connection, type Handlers, Pauses } from "./connection";

const CONFLICT = 409;
const BAD_REQUEST = 400;
const EARLIER = 64 * 1024; // of what the console has shown before, in characters

export class Console implements Connection {
  private data: WebSocket | undefined;
  private control: WebSocket | undefined;
  private left = false;
  private readonly pauses = new Pauses();
  private readonly url: string;

  // With `force`, the console is taken from whoever uses it.
  constructor(
    instance: Instance,
    private readonly handlers: Handlers,
    force: boolean,
  ) {
    this.url = withQuery(path("instances", instance.name, "console"), { project: instance.project });
    void this.begin(force);
  }

  send(data: Uint8Array<ArrayBuffer>): void {
    if (this.data?.readyState === WebSocket.OPEN) this.data.send(data);
  }

  // The instance determines the size of its console.
  resize(): void {}

  close(): void {
    this.left = true;
    this.data?.close();
    this.control?.close();
  }

  end(): void {
    this.close();
    this.handlers.onState({ kind: "ended", status: undefined });
  }

  private async begin(force: boolean): Promise<void> {
    this.handlers.onState({ kind: "starting" });
    const earlier = await getText(this.url).catch(() => ""); // nothing has been shown yet
    if (this.left) return;
    this.handlers.onData(new TextEncoder().encode(earlier.slice(-EARLIER)), { repeated: true });
    await this.attach(force);
  }

  private async attach(force: boolean): Promise<void> {
    try {
      const operation = await post<Operation>(this.url, { type: "console", force });
      if (!this.left) this.connect(operation);
    } catch (error) {
      const { status, message } = error as ApiError;
      if (this.left) return;
      if (status === 0) await this.again();
      else if (status === BAD_REQUEST) this.handlers.onState({ kind: "ended", status: undefined });
      else this.handlers.onState({ kind: "failed", why: message, busy: status === CONFLICT });
    }
  }

  private connect(operation: Operation): void {
    const secrets = operation.metadata?.fds as Record<"0" | "control", string>;
    const to = (secret: string) =>
      socketTo(withQuery(`${path("operations", operation.id)}/websocket`, { secret }));
    const control = to(secrets.control);
    const data = to(secrets["0"]);
    let complete = false;
    this.control = control;
    this.data = data;
    data.binaryType = "arraybuffer";
    data.onopen = () => {
      this.pauses.reset();
      this.handlers.onState({ kind: "open" });
    };
    data.onmessage = ({ data: message }: MessageEvent<ArrayBuffer | string>) => {
      if (typeof message === "string") complete = true;
      else this.handlers.onData(new Uint8Array(message));
    };
    data.onclose = () => {
      control.close();
      if (this.data !== data || this.left) return;
      if (complete) this.handlers.onState({ kind: "ended", status: undefined });
      else void this.again();
    };
  }

  private async again(): Promise<void> {
    this.handlers.onState({ kind: "lost" });
    await this.pauses.wait();
    if (!this.left) await this.attach(true);
  }
}
