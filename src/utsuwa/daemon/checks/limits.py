"""The kernel's limits that all containers of a host share."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.daemon.checks.verdicts import Source, Status, Verdict
from utsuwa.host.system.kernel_limits import GROUPS, Group
from utsuwa.host.system.probes import Facts


def evaluate(facts: Facts) -> Iterator[Verdict]:
    """Yield a verdict on each group of limits that the kernel has."""
    for group in GROUPS:
        present = {key: facts.limits[key] for key in group.values if key in facts.limits}
        if present:
            yield _verdict(group, {k: v for k, v in present.items() if v < group.values[k]}, facts)


def _verdict(group: Group, low: dict[str, int], facts: Facts) -> Verdict:
    if not low:
        return Verdict(group.name, Status.FOUND, "enough for a hundred containers", source=Source.SETUP)
    wanted = " ".join(f"{key}={group.values[key]}" for key in low)
    return Verdict(
        group.name,
        Status.DEGRADED,
        "; ".join(f"{key} is {value}, should be {group.values[key]}" for key, value in low.items()),
        group.cost,
        "utsuwad check --raise-limits"
        if facts.limits_writable
        else f"on the machine that this system runs on: sysctl -w {wanted}",
        Source.SETUP,
    )
