"""Saving the running state of containers."""

from __future__ import annotations

from utsuwa.daemon.checks.verdicts import Source, Status, Verdict, numbers
from utsuwa.host.checkpoint.program import OLDEST, OLDEST_TEXT
from utsuwa.host.system.probes import Facts

_COST = "stateful stops and stateful snapshots of containers are not possible"
_REMEDY = "utsuwad criu install"


def evaluate(facts: Facts) -> Verdict:
    version = facts.programs.get("criu")
    if version is None:
        return Verdict("CRIU", Status.MISSING, "not installed", _COST, _REMEDY, Source.SETUP)
    if version == "?" or numbers(version) < OLDEST:
        detail = f"version {version}, and {OLDEST_TEXT} or newer is needed"
        return Verdict("CRIU", Status.DEGRADED, detail, _COST, _REMEDY, Source.SETUP)
    if facts.criu_failure:
        detail = f"version {version} does not work on this kernel: {facts.criu_failure}"
        return Verdict("CRIU", Status.DEGRADED, detail, _COST, f"a newer version: {_REMEDY}", Source.SETUP)
    return Verdict("CRIU", Status.FOUND, f"version {version}, works", source=Source.SETUP)
