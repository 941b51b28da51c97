"""Limits of a project: on numbers of objects, and on the sums of its instances' limits.

They are checked after a change, in its transaction: `check` raises if the project as a whole exceeds one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from utsuwa.core.config_keys import check_integer
from utsuwa.core.errors import Forbidden, InvalidConfig
from utsuwa.core.units import parse_bytes
from utsuwa.db import codes
from utsuwa.db import networks as network_rows
from utsuwa.db import projects as rows
from utsuwa.db import storage_volumes as volume_rows
from utsuwa.db.transaction import Transaction
from utsuwa.projects.expanded import Expanded, expanded

SUMS = ("limits.cpu", "limits.memory", "limits.processes")
"""Limits of a project on the sum of the same key of its instances."""
DISK = "limits.disk"
_DISK_OF_POOL = f"{DISK}.pool."
_COUNTS = ("limits.containers", "limits.instances", "limits.virtual-machines", "limits.networks")
_IN_BYTES = ("limits.memory", DISK, _DISK_OF_POOL)


@dataclass
class Usage:
    """The allocations of a project.

    `amounts` are by the key of the limit, 0 if absent; `missing` says for each key what has no amount.
    """

    amounts: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, text: str, owner: str) -> None:
        """Add an amount as it was configured, or note that `owner` has none; 0 would be no limit, too."""
        amount = amount_of(key, text)
        if not amount:
            self.missing.setdefault(key, owner)
        else:
            self.amounts[key] = self.amounts.get(key, 0) + amount


def amount_of(key: str, text: str) -> int | None:
    """Return an amount in bytes or as a number; None if it is absent, a set of CPUs or a percentage."""
    try:
        if key.startswith(_IN_BYTES):
            return parse_bytes(text)
        check_integer(text)
    except InvalidConfig:
        return None
    return int(text)


def usage(tx: Transaction, project: str, changed: Mapping[int, Expanded] | None = None) -> Usage:
    """Return the allocations of a project, with instances that are about to change as in `changed`, by id."""
    found = Usage()
    instances = 0
    for row, config, devices in expanded(tx, project, changed):
        instances += 1
        owner = f"instance {row.ref.name!r}"
        for key in SUMS:
            found.add(key, config.get(key, ""), owner)
        for device in devices.values():
            if device.get("type") == "disk" and device.get("path") == "/":
                _add_disk(found, device.get("pool", ""), device.get("size", ""), f"root disk of {owner}")
    for volume in volume_rows.get_all(tx, project, type=codes.VOLUME_CUSTOM):
        if volume.new_name != volume_rows.DELETION:
            _add_disk(found, volume.pool, volume.config.get("size", ""), f"volume {volume.name!r}")
    counts = (instances, instances, 0, len(network_rows.get_all(tx, project)))
    found.amounts.update(zip(_COUNTS, counts, strict=True))
    return found


def _add_disk(found: Usage, pool: str, size: str, owner: str) -> None:
    for key in (DISK, f"{_DISK_OF_POOL}{pool}"):
        found.add(key, size, owner)


def check(tx: Transaction, project: str, changed: Mapping[int, Expanded] | None = None) -> None:
    """Raise Forbidden if a project exceeds one of its limits; `changed` as in `usage`. Raises NotFound."""
    limits = limits_of(rows.get_config(tx, project))
    if limits:
        _compare(project, limits, usage(tx, project, changed))


def limits_of(config: Mapping[str, str]) -> dict[str, str]:
    """Return the limits in a project's config that are set."""
    return {key: value for key, value in config.items() if key.startswith("limits.") and value}


def _compare(project: str, limits: Mapping[str, str], used: Usage) -> None:
    for key, text in limits.items():
        missing = used.missing.get(key)
        if missing is not None:
            wanted = "size" if key.startswith(DISK) else key
            raise Forbidden(
                f"Project {project!r} has the limit {key}={text}, but the {missing} has no {wanted} "
                "that can be added up: set it there, or in a profile"
            )
        limit, amount = amount_of(key, text), used.amounts.get(key, 0)
        if limit is not None and amount > limit:
            unit = " bytes" if key.startswith(_IN_BYTES) else ""
            raise Forbidden(
                f"Project {project!r} has the limit {key}={text}, but {amount}{unit} would be used: "
                "remove or reduce what uses it, or raise the limit"
            )


def check_all(
    tx: Transaction, projects: Collection[str], changed: Mapping[int, Expanded] | None = None
) -> None:
    """`check` several projects."""
    for project in sorted(set(projects)):
        check(tx, project, changed)


def check_image(tx: Transaction, project: str, size: int) -> None:
    """Raise Forbidden if a new image of that size exceeds what instances and volumes leave of the limit."""
    limit = amount_of(DISK, rows.get_config(tx, project).get(DISK, ""))
    if limit is not None and size > limit - usage(tx, project).amounts.get(DISK, 0):
        raise Forbidden(
            f"Project {project!r} has the limit {DISK}={limit}, which leaves no {size} bytes for the image"
        )
