// What a terminal shows: a shell at the other end of whatever protocol.

export interface Size {
  columns: number;
  rows: number;
}

export type State =
  | { kind: "starting" | "open" | "lost" | "replaced" }
  | { kind: "ended"; status: number | undefined }
  // `busy` is whether somebody else uses what was to be shown.
  | { kind: "failed"; why: string; busy?: boolean };

export interface Handlers {
  // `repeated` is what a terminal has shown before, to which it must not reply again. `shown` is called when the
  // data is on the screen.
  onData: (data: Uint8Array, more?: { repeated?: boolean; shown?: () => void }) => void;
  // A line of the page's own.
  onNote: (text: string) => void;
  // `status` is that of the shell; undefined if the connection was lost.
  onEnd: (status: number | undefined) => void;
  onState: (state: State) => void;
  size: () => Size;
}

export interface Connection {
  send: (data: Uint8Array<ArrayBuffer>) => void;
  resize: (size: Size) => void;
  // Nothing is told to the handlers afterwards.
  close: () => void;
  // End what runs in the terminal.
  end?: () => void;
}

// Open a connection for a terminal of that size. Throws an Error with a message for people. One that is returned at
// once tells its states by itself, also that it is open.
export type Connect = (size: Size, handlers: Handlers) => Promise<Connection> | Connection;

const FIRST_PAUSE = 100;
const LONGEST_PAUSE = 5000;

// Pauses between attempts to connect, in milliseconds.
export class Pauses {
  private next = FIRST_PAUSE;

  wait(): Promise<void> {
    const pause = this.next;
    this.next = Math.min(pause * 2, LONGEST_PAUSE);
    return new Promise((done) => setTimeout(done, pause));
  }

  reset(): void {
    this.next = FIRST_PAUSE;
  }
}
