"""The signals that ask a container's init to end: its own configuration's, or what it listens to."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from utsuwa.instances.context import Context
from utsuwa.instances.model import Running, RuntimePaths

_LISTEN_ROUNDS = 100
_LISTEN_DELAY = 0.02
"""Seconds between two looks at whether an init listens: for two seconds in all."""
_UNSTOPPABLE = (signal.SIGKILL, signal.SIGSTOP)


async def configured(ctx: Context, container: Running, *names: str) -> int | None:
    """The signal of `lxc.signal.NAME`, the first that is set; None where there is none.

    liblxc is asked, which knows all spellings of signals, and included files. The file is as it was at the
    container's start.
    """
    paths = RuntimePaths(ctx.paths.instance_logs(container.storage_name))
    if not await asyncio.to_thread(_may_have_signals, paths.conf):
        return None
    values = await ctx.helper.config(paths.conf, [f"lxc.signal.{name}" for name in names])
    return next((int(value) for value in values if int(value)), None)


def _may_have_signals(conf: Path) -> bool:
    try:
        text = conf.read_text(errors="replace")
    except FileNotFoundError:
        return False
    return "lxc.signal." in text or "lxc.include" in text


async def ask_to_end(container: Running, wanted: int | None) -> int:
    """The signal that asks an init to halt; one that has just been started may still need a moment.

    The kernel drops what an init does not listen to, and its container would not stop at all.
    """
    for _ in range(_LISTEN_ROUNDS):
        heard = await asyncio.to_thread(heard_signal, container.init_pid, wanted)
        if heard is not None:
            return heard
        if container.forced or container.ended.is_set():
            break
        await asyncio.sleep(_LISTEN_DELAY)
    return wanted or signal.SIGPWR


def heard_signal(init_pid: int, wanted: int | None = None) -> int | None:
    """`wanted`; without one SIGRTMIN+3 for systemd, which blocks it to read it from a descriptor, and
    SIGPWR for all others. None where init does not listen to it yet.
    """
    try:
        status = Path(f"/proc/{init_pid}/status").read_text()
    except OSError:  # it has just ended by itself
        return wanted or signal.SIGPWR
    masks = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Sig"))
    blocked, caught = int(masks["SigBlk"], 16), int(masks["SigCgt"], 16)
    if wanted is None:
        systemd = signal.SIGRTMIN + 3
        if blocked >> (systemd - 1) & 1:
            return systemd
        wanted = signal.SIGPWR
    listens = wanted in _UNSTOPPABLE or (blocked | caught) >> (wanted - 1) & 1
    return wanted if listens else None
