"""Checkpointing of running containers."""

from __future__ import annotations

from utsuwa.daemon.checks.verdicts import Source, Status, Verdict, no_program, numbers
from utsuwa.host.system.probes import Facts

_OLDEST_CRIU = (4, 0)


def evaluate(facts: Facts) -> Verdict:
    cost = "stateful stop and stateful snapshots of containers are not possible"
    version = facts.programs.get("criu")
    if version is None:
        return no_program("CRIU", "criu", cost, "version 4.0 or newer; Debian 12 has none, Debian 13 does")
    if version != "?" and numbers(version) < _OLDEST_CRIU:
        remedy = "install version 4.0 or newer (Debian 13 has it)"
        return Verdict("CRIU", Status.DEGRADED, f"version {version}", cost, remedy, Source.SETUP)
    return Verdict("CRIU", Status.FOUND, f"version {version}", source=Source.SETUP)
