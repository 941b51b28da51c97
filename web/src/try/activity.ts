// When something may have been done in the terminal: a command was entered, and there was output since.

const QUIET = 300; // milliseconds without output after which a command may be done
const PERIOD = 1000; // between two calls of the listener, at least

export class Activity {
  private entered = false;
  private since = 0;
  private last = Number.NEGATIVE_INFINITY;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private listener: (() => void) | undefined;

  // There is one listener: the step that is shown. Returns what stops it.
  listen(listener: () => void): () => void {
    this.listener = listener;
    return () => {
      clearTimeout(this.timer);
      this.timer = undefined;
      this.listener = undefined;
    };
  }

  // What is being typed is echoed, which is no sign of anything.
  typed(text: string): void {
    this.entered = text.includes("\r");
  }

  output(): void {
    if (!this.entered || !this.listener) return;
    const now = performance.now();
    if (this.timer === undefined) this.since = now;
    clearTimeout(this.timer);
    const due = Math.max(this.last + PERIOD, Math.min(now + QUIET, this.since + PERIOD));
    this.timer = setTimeout(() => this.tell(), due - now);
  }

  private tell(): void {
    this.timer = undefined;
    this.last = performance.now();
    this.listener?.();
  }
}
