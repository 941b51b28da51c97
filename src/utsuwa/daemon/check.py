"""`utsuwad check`: which requirements this host meets, the effect of those it does not, and remedies.

`evaluate` is a pure function from facts to verdicts. It works without a daemon, and with the standard library
only, so that problems are reported before anything is installed.
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
    """Print the verdicts; return 1 if containers cannot run at all. Raises HostError for non-root users.

    `before_install` omits what the installation provides.
    """
    _require_root()
    verdicts = evaluate(probe(StatePaths.from_environment()))
    if before_install:
        verdicts = [verdict for verdict in verdicts if verdict.source is Source.HOST]
    sys.stdout.write(as_json(verdicts) if json_format else as_table(verdicts))
    return int(any(verdict.fatal for verdict in verdicts))


def raise_limits() -> int:
    """Raise kernel limits that are too low and report it; return 1 if some of them are still too low."""
    _require_root()
    said, done = sysctl_file.raise_limits()
    sys.stdout.writelines(f"{line}\n" for line in said)
    return int(not done)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise HostError("Checking the host requires root privileges: run this as root")


def probe(paths: StatePaths) -> Subject:
    """Probe the host; moves this process into a new mount namespace."""
    ids, mode = idmap.read_host_ids(), apparmor.probe().mode
    return Subject(probes.gather(paths.root), ids, mode)


def evaluate(subject: Subject) -> list[Verdict]:
    """Return a verdict on every requirement, the essential ones first."""
    facts = subject.facts
    return [
        *essentials.evaluate(subject),
        *storage.file_systems(facts),
        *confinement.evaluate(subject),
        *network.evaluate(facts),
        *limits.evaluate(facts),
        *storage.squashfs_tools(facts),
        checkpoints.evaluate(facts),
    ]


# ---- output


def as_json(verdicts: Iterable[Verdict]) -> str:
    """Format as an object with `usable` (containers can run) and `requirements`."""
    shown = list(verdicts)
    usable = not any(verdict.fatal for verdict in shown)
    return json.dumps({"usable": usable, "requirements": [asdict(v) for v in shown]}, indent=2) + "\n"


def as_table(verdicts: Iterable[Verdict]) -> str:
    """Format one line per requirement, with cost and remedy of those that are not met, and a summary."""
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
