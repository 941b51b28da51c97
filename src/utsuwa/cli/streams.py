"""The streams of a running command between its websockets and this process, until it ends.

Nothing waits for one direction alone: what a websocket does not take yet is kept while the other streams
go on, so that a command like `cat` gets and gives any amount. An empty text message ends a stream.
"""

from __future__ import annotations

import json
import os
import selectors
import signal

from utsuwa.client.websocket import TEXT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from utsuwa.client.server import Server
    from utsuwa.client.websocket import WebSocket

_CHUNK = 128 * 1024
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def pump(server: Server, operation: dict[str, Any], descriptors: tuple[int, int, int]) -> None:
    """Join a command without a terminal to three descriptors. Raises BrokenPipeError as its output does."""
    sockets = {name: server.operation_socket(operation, name) for name in ("0", "1", "2")}
    stdin, stdout, stderr = descriptors
    outputs = {sockets["1"]: stdout, sockets["2"]: stderr}
    control = Control(server, operation)
    with Signals(control, ()) as signals:
        _Pump(stdin, sockets["0"], outputs, signals).run()
    control.close()
    for socket in sockets.values():
        socket.close()


def interact(server: Server, operation: dict[str, Any], descriptors: tuple[int, int, int]) -> None:
    """Join a command on a terminal of its own to ours, which is raw until the command ends."""
    stdin, stdout, _ = descriptors
    socket = server.operation_socket(operation, "0")
    control = Control(server, operation)
    with Signals(control, (signal.SIGWINCH,)) as signals, Raw(stdin):
        control.resize()
        _Pump(stdin, socket, {socket: stdout}, signals).run()
    control.close()
    socket.close()


class Control:
    """The command's control channel, opened when there is something to say."""

    def __init__(self, server: Server, operation: dict[str, Any]) -> None:
        self._server = server
        self._operation = operation
        self._socket: WebSocket | None = None

    def signal(self, number: int) -> None:
        self._say({"command": "signal", "signal": number})

    def resize(self) -> None:
        """Tell the size of our terminal, where there is one."""
        if os.isatty(1):
            width, height = os.get_terminal_size(1)
            self._say({"command": "window-resize", "args": {"width": str(width), "height": str(height)}})

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _say(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            self._socket = self._server.operation_socket(self._operation, "control")
        try:
            self._socket.send_text(json.dumps(message))
        except OSError:
            pass  # the command has ended


class Signals:
    """While entered, our signals go to the command; `reader` becomes readable when one came."""

    def __init__(self, control: Control, more: tuple[signal.Signals, ...]) -> None:
        self._control = control
        self._numbers = (*_FORWARDED, *more)
        self._before: dict[int, Any] = {}
        self.reader, self._writer = os.pipe()

    def __enter__(self) -> Signals:
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _noted) for number in self._numbers}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(self.reader)
        os.close(self._writer)

    def forward(self) -> None:
        """Pass on all that came."""
        for number in os.read(self.reader, 64):
            if number == signal.SIGWINCH:
                self._control.resize()
            elif number in self._numbers:
                self._control.signal(number)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor has it."""


class Raw:
    """While entered, a terminal hands on every key as it is; nothing for what is no terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> Raw:
        if os.isatty(self._descriptor):
            import termios
            import tty

            self._before = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


class _Pump:
    """One descriptor into a websocket, websockets to descriptors."""

    def __init__(self, stdin: int, sink: WebSocket, outputs: dict[WebSocket, int], signals: Signals) -> None:
        self._stdin = stdin
        self._sink = sink
        self._outputs = dict(outputs)
        self._signals = signals
        self._selector = selectors.DefaultSelector()
        self._two_way = sink in outputs
        self._always_ready = False
        """Standard input is a plain file, which no selector watches."""
        self._watched = False

    def run(self) -> None:
        """Until every output has ended."""
        self._selector.register(self._signals.reader, _READ, self._on_signal)
        for socket in tuple(self._outputs):
            self._selector.register(socket, _READ, self._on_socket(socket))
            self._deliver(socket, read=False)
        self._start_input()
        while self._outputs:
            for key, mask in self._selector.select():
                act: Callable[[int], None] = key.data
                act(mask)
        self._selector.close()

    def _on_signal(self, _mask: int) -> None:
        self._signals.forward()

    def _on_socket(self, socket: WebSocket) -> Callable[[int], None]:
        def act(mask: int) -> None:
            if mask & _WRITE:
                self._on_room(mask)
            if mask & _READ and socket in self._outputs:
                self._deliver(socket)

        return act

    # Output.

    def _deliver(self, socket: WebSocket, *, read: bool = True) -> None:
        for kind, data in socket.receive_ready(read=read):
            if kind == TEXT and not data:
                self._end(socket)
                return
            _write(self._outputs[socket], data)
        if socket.closed:
            self._end(socket)

    def _end(self, socket: WebSocket) -> None:
        del self._outputs[socket]
        self._selector.unregister(socket)

    # Input: one piece is read, sent as the websocket takes it, and then the next one.

    def _start_input(self) -> None:
        try:
            self._selector.register(self._stdin, _READ, self._on_input)
        except PermissionError:
            self._always_ready = True
            self._on_input(_READ)
        except (OSError, ValueError):  # it is closed
            self._finish_input()

    def _on_input(self, _mask: int) -> None:
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal that is gone
            data = b""
        if not self._always_ready:
            self._selector.unregister(self._stdin)
        if data:
            self._sink.queue(data)
            self._flush()
        else:
            self._finish_input()

    def _finish_input(self) -> None:
        """A terminal stays open: its end is a key that was sent."""
        self._stdin = -1
        if not self._two_way:
            self._sink.queue(b"", TEXT)
            self._flush()

    def _flush(self) -> None:
        try:
            done = self._sink.flush()
        except OSError:  # the command reads no more
            self._stdin, done = -1, True
        more = self._stdin >= 0
        self._watch_sink(not done or (more and self._always_ready))
        if done and more and not self._always_ready:
            self._selector.register(self._stdin, _READ, self._on_input)

    def _on_room(self, _mask: int) -> None:
        """The websocket takes more: of what is left over, or of a plain file."""
        if self._sink.unsent or not self._always_ready or self._stdin < 0:
            self._flush()
        else:
            self._on_input(_READ)

    def _watch_sink(self, wanted: bool) -> None:
        """Wait, or no longer wait, for the websocket of the input to take more."""
        known = self._sink in self._outputs
        if known:
            self._selector.modify(
                self._sink, _READ | _WRITE if wanted else _READ, self._on_socket(self._sink)
            )
        elif not self._two_way and wanted != self._watched:
            self._watched = wanted
            if wanted:
                self._selector.register(self._sink, _WRITE, self._on_room)
            else:
                self._selector.unregister(self._sink)


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, also where the descriptor does not block."""
    with memoryview(data) as view:
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                import select

                select.select([], [descriptor], [])
