"""Limits of instances, under load."""

from __future__ import annotations

import time
from pathlib import Path

from tests.stock.checks.asking import (
    DAEMON,
    TIMEOUT,
    Ended,
    begin,
    configure,
    inside,
    launch,
    state_of,
    wait_for,
)
from tests.stock.checks.check import Checks, expect

checks, processors = Checks(), Checks()
"""Those that need a second processor run late: once the kernel has it, emulation is a fifth slower."""

SECOND_PROCESSOR = Path("/sys/devices/system/cpu/cpu1/online")
LOW = {"limits.memory": "48MiB", "limits.cpu.allowance": "20ms/100ms", "limits.processes": "20"}
HIGH = {"limits.memory": "400MiB", "limits.cpu.allowance": "80ms/100ms", "limits.processes": "200"}
SPIN = "while :; do :; done"
LOOPS = "/root/loops"
"""A file with their processes, inside."""
SECONDS = 3
BEGUN = 0.5
"""Seconds of processor time after which a loop runs and its shell has started."""


FILL_MEMORY = "awk 'BEGIN { s = \"x\"; while (length(s) < 134217728) s = s s; print length(s) }'"
"""128 MiB of text; busybox's awk holds up to twice that."""


def fill_memory() -> Ended:
    return inside("limited", FILL_MEMORY)


def _used(container: str, loops: int = 1) -> float:
    """How many processors endless loops get for a while, by the instance's state and this machine's clock.

    Both are read while the loops run: how late they begin and end on a busy machine does not count.
    """
    script = f"for i in $(seq {loops}); do sh -c '{SPIN}' & echo $! >>{LOOPS}; done; wait"
    before = _usage(container)[1]
    running = begin(container, "sh", "-c", script)
    try:
        wait_for("the loops' start", lambda: _usage(container)[1] > before + BEGUN * loops)
        earlier, before = _usage(container)
        time.sleep(SECONDS)
        later, after = _usage(container)
    finally:
        inside(container, f"kill $(cat {LOOPS}); rm {LOOPS}")
        DAEMON.wait(running, timeout=TIMEOUT)
    return (after - before) / (later - earlier)


def _usage(container: str) -> tuple[float, float]:
    """The time, and the processor time that the container has used so far, both in seconds."""
    begin = time.monotonic()
    usage = state_of(container)["cpu"]["usage"] / 1e9
    return (begin + time.monotonic()) / 2, usage


def _processes() -> Ended:
    """Sixty processes at once. Only their end makes room for another `exec` where the limit was hit."""
    ended = inside("limited", "for i in $(seq 60); do sleep 6 >/dev/null 2>&1 & done; echo started")
    wait_for("their end", lambda: state_of("limited")["processes"] < 10)
    return ended


def no_memory(ended: Ended) -> str:
    expect(ended.code == 137 and not ended.out, f"256 MiB fit in: {ended}")
    return f"the program was ended with {ended.code}"


@checks("memory: limits.memory holds under load")
def memory_low() -> str:
    launch("limited", LOW)
    return no_memory(fill_memory())


@checks("cpu: limits.cpu.allowance holds under load")
def cpu_low() -> str:
    got = _used("limited")
    expect(0.1 < got < 0.3, f"{got:.2f} processors, to be 0.2")
    return f"{got:.2f} processors"


@checks("processes: limits.processes holds under load")
def processes_low() -> str:
    ended = _processes()
    expect("can't fork" in ended.err and "started" not in ended.out, ended)
    return ended.err


@checks("memory: limits.memory raised live holds under load")
def memory_high() -> str:
    configure("limited", HIGH)
    ended = fill_memory()
    expect(ended.out == "134217728\n", ended)
    return ended.out


@checks("cpu: limits.cpu.allowance raised live holds under load", long=True)
def cpu_high() -> str:
    got = _used("limited")
    expect(0.5 < got < 0.95, f"{got:.2f} processors, to be 0.8")
    return f"{got:.2f} processors"


@checks("processes: limits.processes raised live holds under load", long=True)
def processes_high() -> str:
    ended = _processes()
    expect(ended.code == 0 and ended.out == "started\n", ended)
    return ended.out


@checks("memory: limits.memory lowered live holds under load")
def memory_lowered() -> str:
    configure("limited", LOW)
    return no_memory(fill_memory())


@checks("processes: limits.processes lowered live holds under load", long=True)
def processes_lowered() -> str:
    return processes_low() or ""


@processors("cpu: a processor that comes online while containers run can be used by them")
def second_processor() -> str:
    """The machine starts with one: see `machine.KERNEL`."""
    expect(inside("limited", "nproc").out == "1\n", "there were more already")
    SECOND_PROCESSOR.write_text("1")
    ended = inside("limited", "nproc")
    expect(ended.out == "2\n", ended)
    return ended.out


@processors("cpu: limits.cpu holds under load, also changed live")
def cpu_count() -> str:
    launch("resting", {"limits.cpu": "1", "boot.autostart": "false"})
    one = _used("resting", loops=2)
    configure("resting", {"limits.cpu": "2"})
    two = _used("resting", loops=2)
    expect(0.6 < one < 1.2, f"{one:.2f} processors, to be 1")
    expect(two > 1.3, f"{two:.2f} processors, to be 2")
    return f"{one:.2f}, then {two:.2f} processors"
