"""Requests that run a command in an instance, or attach to its console."""

from __future__ import annotations

import msgspec


class InstanceExecPost(msgspec.Struct, kw_only=True):
    """A command, and how to connect its streams."""

    command: list[str]
    environment: dict[str, str] = {}
    wait_for_websocket: bool = msgspec.field(name="wait-for-websocket", default=False)
    record_output: bool = msgspec.field(name="record-output", default=False)
    interactive: bool = False
    """A single pty instead of three pipes; only with websockets."""
    width: int = 0
    height: int = 0
    user: int = 0
    group: int = 0
    cwd: str = ""
    linger: int = 0
    """Seconds for which a terminal and its command outlive their websockets, which may be connected again."""


class InstanceConsolePost(msgspec.Struct, kw_only=True):
    """How to attach to the console."""

    type: str = "console"
    width: int = 0
    """The size is accepted but ignored: the instance determines the size of its console."""
    height: int = 0
    force: bool = False
    """Take over the console from another session."""


class ExecControl(msgspec.Struct, kw_only=True):
    """A message on the control websocket of a running command."""

    command: str
    args: dict[str, str] | None = None
    """`width` and `height` with the command `window-resize`, `offset` with `acknowledge`."""
    signal: int = 0
    """With the command `signal`."""
