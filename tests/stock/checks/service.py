"""The daemon as a service: its containers outlive it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.stock.checks.asking import TIMEOUT, configure, init_of, inside, main_pid, must, wait_for
from tests.stock.checks.check import Checks, expect
from tests.stock.checks.limits import processes_low

checks = Checks()

BOXES = ("first", "limited", "resting")
"""Containers that run when the daemon is restarted and the machine rebooted."""


def _daemon() -> int:
    return main_pid("utsuwa.service")


def _untouched(disturb: Callable[[int], object]) -> str:
    """The containers' inits stay the same processes, and the new daemon rules over them."""
    before, daemon = [init_of(box) for box in BOXES], _daemon()
    disturb(daemon)
    wait_for("a new daemon", lambda: _daemon() not in (0, daemon))
    must("utsuwad", "waitready", "--timeout", f"{TIMEOUT:.0f}")
    after = [init_of(box) for box in BOXES]
    expect(before == after, f"before {before}, after {after}")
    for box in BOXES:
        ended = inside(box, "echo here")
        expect(ended.out == "here\n", ended)
    configure("limited", {"limits.processes": "21"})
    processes_low()
    return f"daemon {daemon}, now {_daemon()}; inits {before}"


@checks("daemon: restarted by systemd, it leaves the containers alone")
def restarted() -> str:
    return _untouched(lambda _: must("systemctl", "restart", "utsuwa.service"))


@checks("daemon: killed, it comes back and leaves the containers alone", long=True)
def killed() -> str:
    return _untouched(lambda daemon: os.kill(daemon, signal.SIGKILL))
