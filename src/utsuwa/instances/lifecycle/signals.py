"""The signals by which a container's init is stopped: as configured, or as init handles them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from utsuwa.core.threads import in_thread
from utsuwa.instances.context import Context
from utsuwa.instances.model import Running

_HANDLER_TRIES = 100
_HANDLER_DELAY = 0.02
"""Seconds between two checks whether init handles the signal: two seconds in total."""
_UNSTOPPABLE = (signal.SIGKILL, signal.SIGSTOP)


async def configured(ctx: Context, container: Running, *names: str) -> int | None:
    """Return the first of the signals `lxc.signal.NAME` that is configured, or None.

    liblxc parses them, as it supports several notations and included files. The file is unchanged since the
    container's start.
    """
    conf = ctx.runtime_paths(container).conf
    if not await in_thread(_may_have_signals, conf):
        return None
    values = await ctx.helper.config(conf, [f"lxc.signal.{name}" for name in names])
    return next((int(value) for value in values if int(value)), None)


def _may_have_signals(conf: Path) -> bool:
    try:
        text = conf.read_text(errors="replace")
    except FileNotFoundError:
        return False
    return "lxc.signal." in text or "lxc.include" in text


async def wait_for_handler(container: Running, wanted: int | None) -> int:
    """Return the signal that halts an init, once init handles it, or after a timeout.

    The kernel discards signals that init does not handle, and the container would not stop. An init that was
    just started may not have set up its handlers yet.
    """
    for _ in range(_HANDLER_TRIES):
        number = await in_thread(handled_signal, container.init_pid, wanted)
        if number is not None:
            return number
        if container.forced or container.ended.is_set():
            break
        await asyncio.sleep(_HANDLER_DELAY)
    return wanted or signal.SIGPWR


def handled_signal(init_pid: int, wanted: int | None = None) -> int | None:
    """Return the signal to halt an init, or None if init does not handle it yet.

    It is `wanted`, if given; otherwise SIGRTMIN+3 for systemd, which blocks it to read it from a signalfd,
    and SIGPWR for other inits.
    """
    try:
        status = Path(f"/proc/{init_pid}/status").read_text()
    except OSError:  # init has ended
        return wanted or signal.SIGPWR
    masks = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Sig"))
    blocked, caught = int(masks["SigBlk"], 16), int(masks["SigCgt"], 16)
    if wanted is None:
        systemd = signal.SIGRTMIN + 3
        if blocked >> (systemd - 1) & 1:
            return systemd
        wanted = signal.SIGPWR
    handled = wanted in _UNSTOPPABLE or (blocked | caught) >> (wanted - 1) & 1
    return wanted if handled else None
