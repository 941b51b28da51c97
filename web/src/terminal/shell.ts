// A shell that outlives its connection: the API keeps it for a while, and repeats what was missed.
//
// Where it is found again is kept in the tab's own storage, so that it is taken up after the page was loaded anew.
import { type ApiError, change, get, path, post, withQuery } from "../api/client";
import { socketTo } from "../api/events";
import type { Instance, Operation } from "../api/types";
import { t } from "../i18n";
import { type Connection, type Handlers, Pauses, type Size } from "./connection";

// bash if there is one; a login shell in either case.
const SHELL = ["/bin/sh", "-c", 'exec "$(command -v bash || echo /bin/sh)" -l'];
const LINGER = 600; // seconds for which a shell is kept that nobody looks at
const WINDOW = 128 * 1024; // bytes that the server sends ahead of what is shown
const REPLACED = 4001; // the close code if the shell was taken up elsewhere
const ATTEMPTS = 5; // to connect to a shell that runs, before another one is started
const STORED = "utsuwa.shell.";

interface Kept {
  id: string;
  data: string;
  control: string;
}

// End the shells of this tab, of which nobody else knows.
export async function endShells(): Promise<void> {
  const keys = Object.keys(sessionStorage).filter((key) => key.startsWith(STORED));
  for (const key of keys) {
    const { id } = JSON.parse(sessionStorage.getItem(key) ?? "{}") as Kept;
    sessionStorage.removeItem(key);
    await change("DELETE", path("operations", id)).catch(() => undefined); // it may have ended
  }
}

export class Shell implements Connection {
  private kept: Kept | undefined;
  private data: WebSocket | undefined;
  private control: WebSocket | undefined;
  private received = 0; // offset in the shell's output
  private shown = 0;
  private acknowledged = 0;
  private left = false;
  private over = false; // it was ended, perhaps before it had started
  private starting = false;
  private failures = 0;
  private readonly pauses = new Pauses();
  private readonly key: string;

  constructor(
    private readonly instance: Instance,
    private readonly handlers: Handlers,
  ) {
    this.key = `${STORED}${instance.project}/${instance.name}`;
    const stored = sessionStorage.getItem(this.key);
    if (stored) this.kept = JSON.parse(stored) as Kept;
    void this.open();
  }

  send(data: Uint8Array<ArrayBuffer>): void {
    if (this.data?.readyState === WebSocket.OPEN) this.data.send(data);
  }

  resize({ columns, rows }: Size): void {
    this.command("window-resize", { width: String(columns), height: String(rows) });
  }

  close(): void {
    this.left = true;
    this.disconnect();
  }

  end(): void {
    this.over = true;
    this.close();
    if (this.kept) void this.cancel(this.kept);
    else if (!this.starting) this.handlers.onState({ kind: "ended", status: undefined });
  }

  // Take the shell up again, or start one.
  private async open(): Promise<void> {
    this.handlers.onState({ kind: "starting" });
    try {
      const running = this.kept && (await this.isRunning(this.kept));
      if (this.left) return;
      if (this.kept && !running) {
        this.forget();
        if (this.received) this.handlers.onNote(t("terminalGone"));
      }
      const kept = this.kept ?? (await this.start());
      if (this.over) await this.cancel(kept);
      else if (!this.left) this.connect(kept);
    } catch (error) {
      await this.failed(error as ApiError);
    }
  }

  // Only then is it said to have ended: whoever leaves the page earlier would leave it running.
  private async cancel({ id }: Kept): Promise<void> {
    this.forget();
    await change("DELETE", path("operations", id)).catch(() => undefined); // it has ended
    this.handlers.onState({ kind: "ended", status: undefined });
  }

  private async start(): Promise<Kept> {
    const { columns, rows } = this.handlers.size();
    this.starting = true;
    const operation = await post<Operation>(
      withQuery(path("instances", this.instance.name, "exec"), { project: this.instance.project }),
      {
        command: SHELL,
        environment: { TERM: "xterm-256color", HOME: "/root", USER: "root", LANG: "C.UTF-8" },
        interactive: true,
        "wait-for-websocket": true,
        width: columns,
        height: rows,
        linger: LINGER,
      },
    ).finally(() => {
      this.starting = false;
    });
    const secrets = operation.metadata?.fds as Record<"0" | "control", string>;
    const kept = { id: operation.id, data: secrets["0"], control: secrets.control };
    this.kept = kept;
    this.received = this.shown = this.acknowledged = 0;
    sessionStorage.setItem(this.key, JSON.stringify(kept));
    return kept;
  }

  private async isRunning(kept: Kept): Promise<boolean> {
    try {
      return (await get<Operation>(path("operations", kept.id))).status_code === 103;
    } catch (error) {
      if ((error as ApiError).status === 404) return false;
      throw error;
    }
  }

  private connect(kept: Kept): void {
    const to = (secret: string, more = {}) =>
      socketTo(withQuery(`${path("operations", kept.id)}/websocket`, { secret, ...more }));
    // The control channel comes first: a short command would have ended before.
    const control = to(kept.control);
    const data = to(kept.data, { offset: this.received, window: WINDOW });
    this.control = control;
    this.data = data;
    data.binaryType = "arraybuffer";
    control.onopen = () => {
      this.resize(this.handlers.size());
      this.acknowledge(this.shown);
    };
    control.onclose = () => data.close(); // without it nothing could be acknowledged
    let repeatedUntil = 0;
    let complete = false;
    data.onmessage = ({ data: message }: MessageEvent<ArrayBuffer | string>) => {
      if (typeof message !== "string") this.show(message, this.received < repeatedUntil);
      else if (message) {
        const { offset, end } = JSON.parse(message) as { offset: number; end: number };
        repeatedUntil = this.received === 0 ? end : 0;
        if (offset > this.received) this.redraw();
        this.received = this.shown = this.acknowledged = offset;
        this.failures = 0;
        this.pauses.reset();
        this.handlers.onState({ kind: "open" });
      } else complete = true;
    };
    data.onclose = ({ code }) => {
      control.onclose = null;
      control.close();
      if (this.data !== data || this.left) return;
      if (code === REPLACED) this.handlers.onState({ kind: "replaced" });
      else if (complete) void this.ended(kept);
      else void this.lost();
    };
  }

  private show(message: ArrayBuffer, repeated: boolean): void {
    const data = new Uint8Array(message);
    this.received += data.length;
    const shown = () => {
      this.shown += data.length;
      if (this.shown - this.acknowledged >= WINDOW / 4) this.acknowledge(this.shown);
    };
    this.handlers.onData(data, { repeated, shown });
  }

  private acknowledge(offset: number): void {
    this.acknowledged = offset;
    this.command("acknowledge", { offset: String(offset) });
  }

  private command(command: string, args: Record<string, string>): void {
    if (this.control?.readyState === WebSocket.OPEN) this.control.send(JSON.stringify({ command, args }));
  }

  // A change of the size has programs draw anew what was not kept.
  private redraw(): void {
    const { columns, rows } = this.handlers.size();
    this.resize({ columns, rows: Math.max(1, rows - 1) });
    this.resize({ columns, rows });
  }

  private async ended(kept: Kept): Promise<void> {
    this.forget();
    const url = withQuery(`${path("operations", kept.id)}/wait`, { timeout: 10 });
    const status = await get<Operation>(url).then(
      (operation) => operation.metadata?.return as number | undefined,
      () => undefined,
    );
    if (!this.left) this.handlers.onState({ kind: "ended", status });
  }

  private async lost(): Promise<void> {
    this.handlers.onState({ kind: "lost" });
    this.failures += 1;
    if (this.failures > ATTEMPTS) this.forget();
    await this.pauses.wait();
    if (!this.left) await this.open();
  }

  private async failed(error: ApiError): Promise<void> {
    if (this.over) this.handlers.onState({ kind: "ended", status: undefined });
    if (this.left) return;
    if (error.status === 0) {
      this.handlers.onState({ kind: "lost" });
      await this.pauses.wait();
      if (!this.left) await this.open();
    } else this.handlers.onState({ kind: "failed", why: error.message });
  }

  private forget(): void {
    this.kept = undefined;
    sessionStorage.removeItem(this.key);
  }

  private disconnect(): void {
    this.data?.close();
    this.control?.close();
  }
}
