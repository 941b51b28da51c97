"""The request that runs a command inside an instance."""

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


class ExecControl(msgspec.Struct, kw_only=True):
    """A message on the control websocket of a running command."""

    command: str
    args: dict[str, str] | None = None
    """`width` and `height` with the command `window-resize`."""
    signal: int = 0
    """With the command `signal`."""
