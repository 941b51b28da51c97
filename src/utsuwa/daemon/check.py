"""`utsuwad check`: what this host can do, what it lacks, what that costs, and what to do about it.

Judging is pure: `judge` takes facts and gives verdicts. It works without a daemon, and with nothing
but the standard library, so that a host hears of a lack before anything is installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.checks import checkpoints, confinement, essentials, limits, network, storage
from utsuwa.daemon.checks.verdicts import Source, Status, Subject, Verdict
from utsuwa.host.system import probes, sysctl_file
from utsuwa.security import apparmor, idmap


def run(*, json_format: bool, before_install: bool) -> int:
    """Print the verdicts; gives 1 where containers cannot run at all. Raises HostError for non-root users.

    `before_install` leaves out what the installation brings.
    """
    _require_root()
    verdicts = judge(look(StatePaths.from_environment()))
    if before_install:
        verdicts = [verdict for verdict in verdicts if verdict.source is Source.HOST]
    sys.stdout.write(as_json(verdicts) if json_format else as_table(verdicts))
    return int(any(verdict.fatal for verdict in verdicts))


def raise_limits() -> int:
    """Raise the kernel's limits that are too low, and say so; gives 1 where some of them stay low."""
    _require_root()
    said, done = sysctl_file.raise_limits()
    sys.stdout.writelines(f"{line}\n" for line in said)
    return int(not done)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise HostError("What the host can do is found by trying it, which only root may: run this as root")


def look(paths: StatePaths) -> Subject:
    """Try the host out; moves this process into a mount namespace of its own."""
    ids, mode = idmap.read_host_ids(), apparmor.probe().mode
    return Subject(probes.gather(paths.root), ids, mode)


def judge(subject: Subject) -> list[Verdict]:
    """A verdict on every requirement, the essential ones first."""
    facts = subject.facts
    return [
        *essentials.judge(subject),
        *storage.file_systems(facts),
        *confinement.judge(subject),
        *network.judge(facts),
        *limits.judge(facts),
        *storage.squashfs_tools(facts),
        checkpoints.judge(facts),
    ]


# ---- showing it


def as_json(verdicts: Iterable[Verdict]) -> str:
    """An object with `usable` (containers can run) and `requirements`."""
    shown = list(verdicts)
    usable = not any(verdict.fatal for verdict in shown)
    return json.dumps({"usable": usable, "requirements": [asdict(v) for v in shown]}, indent=2) + "\n"


def as_table(verdicts: Iterable[Verdict]) -> str:
    """A line for each requirement; cost and remedy below those that are not met; then what it comes to."""
    shown = list(verdicts)
    width = max((len(v.name) for v in shown), default=0)
    lines = []
    for verdict in shown:
        lines.append(f"{verdict.status.value:<8}  {verdict.name:<{width}}  {verdict.detail}")
        if verdict.status is not Status.FOUND:
            lines += [f"{'':<10}cost: {verdict.cost}", f"{'':<10}remedy: {verdict.remedy}"]
    return "\n".join([*lines, "", _summary(shown)]) + "\n"


def _summary(verdicts: Iterable[Verdict]) -> str:
    shown = list(verdicts)
    fatal = [v.name for v in shown if v.fatal]
    if fatal:
        return f"Containers cannot run on this host: {', '.join(fatal)} missing."
    less = sum(v.status is not Status.FOUND for v in shown)
    return f"Containers can run on this host; {less} of {len(shown)} requirements are not met in full."
