"""Forwarding of a running command's streams between its websockets and this process.

No direction blocks another: data that a websocket does not accept yet is buffered while the other streams
continue, so that a command like `cat` can process any amount. An empty text message ends a stream.
"""

from __future__ import annotations

import os
import select

from utsuwa.client import lean
from utsuwa.client.lean import signal
from utsuwa.client.websocket import TEXT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from utsuwa.client.server import Server
    from utsuwa.client.websocket import WebSocket

_CHUNK = 128 * 1024
_CTRL_A = 0x01
_READ, _WRITE = select.POLLIN, select.POLLOUT
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def pump(
    server: Server,
    operation: dict[str, Any],
    descriptors: tuple[int, int, int],
    forward: tuple[int, ...] = _FORWARDED,
) -> None:
    """Connect a command without a terminal to three descriptors, forwarding signals to it.

    Raises BrokenPipeError of its output.
    """
    sockets = server.operation_sockets(operation, ("0", "1", "2"))
    stdin, stdout, stderr = descriptors
    outputs = {sockets["1"]: stdout, sockets["2"]: stderr}
    control = Control(server, operation)
    with Signals(control, forward) as signals:
        _Pump(stdin, sockets["0"], outputs, signals).run()
    control.close()
    for socket in sockets.values():
        socket.close()


def interact(server: Server, operation: dict[str, Any], descriptors: tuple[int, int, int]) -> None:
    """Connect a command's terminal to this process's terminal, which is in raw mode until it ends."""
    stdin, stdout, _ = descriptors
    socket = server.operation_socket(operation, "0")
    control = Control(server, operation)
    with Signals(control, (*_FORWARDED, signal.SIGWINCH)) as signals, Raw(stdin):
        control.resize()
        _Pump(stdin, socket, {socket: stdout}, signals).run()
    control.close()
    socket.close()


def attend(server: Server, operation: dict[str, Any], descriptors: tuple[int, int, int]) -> None:
    """Connect a console to this process's terminal, until it ends or the user detaches."""
    stdin, stdout, _ = descriptors
    socket = server.operation_socket(operation, "0")
    control = _DetachingControl(server, operation)
    with Signals(control, _FORWARDED) as signals, Raw(stdin):
        try:
            _Pump(stdin, socket, {socket: stdout}, signals, Escape()).run()
        except Detached:
            os.write(stdout, b"\r\n")
    socket.close()


def window() -> dict[str, int]:
    """Return the terminal's size for a request; zeros without a terminal."""
    if not os.isatty(1):
        return {"width": 0, "height": 0}
    width, height = os.get_terminal_size(1)
    return {"width": width, "height": height}


class Detached(Exception):
    """The user has detached from the console."""


class Escape:
    """Detects the key sequence for detaching, Ctrl+a q, in the input. Ctrl+a twice sends it once."""

    def __init__(self) -> None:
        self._waiting = False

    def __call__(self, typed: bytes) -> bytes:
        """Return the data to send. Raises Detached."""
        passed = bytearray()
        for byte in typed:
            if not self._waiting and byte == _CTRL_A:
                self._waiting = True
                continue
            if self._waiting and byte == ord("q"):
                raise Detached
            if self._waiting and byte != _CTRL_A:
                passed.append(_CTRL_A)
            self._waiting = False
            passed.append(byte)
        return bytes(passed)


class Control:
    """The command's control channel, opened on first use."""

    def __init__(self, server: Server, operation: dict[str, Any]) -> None:
        self._server = server
        self._operation = operation
        self._socket: WebSocket | None = None

    def signal(self, number: int) -> None:
        self._say({"command": "signal", "signal": number})

    def resize(self) -> None:
        """Send the size of the terminal, if any."""
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
            self._socket.send_text(lean.dumps(message))
        except OSError:
            pass  # the command has ended


class _DetachingControl(Control):
    """A console does not accept signals: they are handled by this process."""

    def signal(self, number: int) -> None:
        raise Detached


class Signals:
    """While entered, forwards signals to the command; `reader` becomes readable when one arrives."""

    def __init__(self, control: Control, numbers: tuple[int, ...]) -> None:
        self._control = control
        self._numbers = numbers
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
        """Forward all received signals."""
        for number in os.read(self.reader, 64):
            if number == signal.SIGWINCH:
                self._control.resize()
            elif number in self._numbers:
                self._control.signal(number)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The signal is written to the wakeup descriptor."""


class Raw:
    """While entered, a terminal is in raw mode; does nothing for other descriptors."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    def __enter__(self) -> Raw:
        if os.isatty(self._descriptor):
            import termios
            import tty

            self._before = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor, termios.TCSADRAIN)  # keeps what was typed ahead
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


class _Pump:
    """Copies one descriptor to a websocket, and websockets to descriptors."""

    def __init__(
        self,
        stdin: int,
        sink: WebSocket,
        outputs: dict[WebSocket, int],
        signals: Signals,
        escape: Escape | None = None,
    ) -> None:
        self._escape = escape
        self._stdin = stdin
        self._sink = sink
        self._outputs = dict(outputs)
        self._signals = signals
        self._poll = select.poll()
        self._actions: dict[int, Callable[[int], None]] = {}
        self._two_way = sink in outputs

    def run(self) -> None:
        """Run until every output has ended."""
        self._watch(self._signals.reader, _READ, self._on_signal)
        for socket in tuple(self._outputs):
            self._watch(socket.fileno(), _READ, self._on_socket(socket))
            self._deliver(socket, read=False)
        self._watch(self._stdin, _READ, self._on_input)
        while self._outputs:
            for descriptor, events in self._poll.poll():
                if action := self._actions.get(descriptor):
                    action(events)

    def _watch(self, descriptor: int, events: int, action: Callable[[int], None]) -> None:
        self._poll.register(descriptor, events)
        self._actions[descriptor] = action

    def _leave(self, descriptor: int) -> None:
        if self._actions.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def _on_signal(self, _events: int) -> None:
        self._signals.forward()

    def _on_socket(self, socket: WebSocket) -> Callable[[int], None]:
        def act(events: int) -> None:
            if events & _WRITE:
                self._flush()
            if events & ~_WRITE and socket in self._outputs:
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
        self._leave(socket.fileno())

    # Input: a chunk is read and sent as the websocket accepts it, then the next one.

    def _on_input(self, _events: int) -> None:
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # closed, or a terminal that is gone
            data = b""
        if data and self._escape is not None:
            data = self._escape(data)
            if not data:
                return
        self._leave(self._stdin)
        if data:
            self._sink.queue(data)
        else:
            self._stdin = -1
            if not self._two_way:  # a terminal stays open: its end is a key that has been sent
                self._sink.queue(b"", TEXT)
        self._flush()

    def _flush(self) -> None:
        try:
            done = self._sink.flush()
        except OSError:  # the command no longer reads
            self._stdin, done = -1, True
        self._watch_sink(not done)
        if done and self._stdin >= 0:
            self._watch(self._stdin, _READ, self._on_input)

    def _watch_sink(self, full: bool) -> None:
        """Start or stop waiting until the input's websocket accepts more data."""
        descriptor = self._sink.fileno()
        if self._two_way:
            if self._sink in self._outputs:
                self._poll.modify(descriptor, _READ | _WRITE if full else _READ)
        elif full:
            self._watch(descriptor, _WRITE, self._on_room)
        else:
            self._leave(descriptor)

    def _on_room(self, _events: int) -> None:
        self._flush()


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, even if the descriptor is non-blocking."""
    with memoryview(data) as whole:
        done = 0
        while done < len(whole):
            try:
                done += os.write(descriptor, whole[done:])
            except BlockingIOError:
                select.select([], [descriptor], [])
