"""The requests that run a command inside an instance, or attach to its console."""

from __future__ import annotations

import msgspec


class InstanceExecPost(msgspec.Struct, kw_only=True):
    """A command, and how its streams are wanted."""

    command: list[str]
    environment: dict[str, str] = {}
    wait_for_websocket: bool = msgspec.field(name="wait-for-websocket", default=False)
    record_output: bool = msgspec.field(name="record-output", default=False)
    interactive: bool = False
    """One pty in place of three pipes; only with websockets."""
    width: int = 0
    height: int = 0
    user: int = 0
    group: int = 0
    cwd: str = ""


class InstanceConsolePost(msgspec.Struct, kw_only=True):
    """How the console is wanted."""

    type: str = "console"
    width: int = 0
    """The sizes are taken and not passed on: a console has the size that the instance gives it."""
    height: int = 0
    force: bool = False
    """Take it over where another session has it."""


class ExecControl(msgspec.Struct, kw_only=True):
    """A message on the control websocket of a running command."""

    command: str
    args: dict[str, str] | None = None
    """`width` and `height` with the command `window-resize`."""
    signal: int = 0
    """With the command `signal`."""
