"""Limits of the host, of which the daemon warns."""

from __future__ import annotations

from tests.stock.checks.asking import must, run, wait_for
from tests.stock.checks.check import Checks, expect

checks = Checks()


@checks("daemon: it warns of a limit of the host that is nearly reached")
def near_limit() -> str:
    """The quota of keys was lowered when the quick start had been checked; what follows needs more again."""
    command = (
        "journalctl",
        "--unit",
        "utsuwa",
        "--grep",
        "near these limits: .*kernel.keys.maxkeys",
        "--output",
        "cat",
    )
    wait_for("a warning", lambda: run(*command).code == 0)
    must("sysctl", "--load=/etc/sysctl.d/60-utsuwa.conf")
    warned = must(*command)
    expect(len(warned.splitlines()) == 1, warned)
    return warned
