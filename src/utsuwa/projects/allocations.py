"""Resource allocations of a project: the sums of its instances' limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from utsuwa.core.config_keys import check_integer
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.layering import lay_over
from utsuwa.core.units import parse_bytes
from utsuwa.db.instances import InstanceRow
from utsuwa.db.profiles import ProfileRow

RESOURCES = ("cpu", "disk", "memory", "processes")


def allocated(instances: Iterable[InstanceRow], profiles: Mapping[int, ProfileRow]) -> dict[str, int]:
    """Return CPUs, bytes of disk and memory, and processes, summed over the instances with such limits.

    `profiles` are those of the instances, by id. Limits that are not amounts (a set of CPUs, a percentage of
    memory) are ignored.
    """
    sums = dict.fromkeys(RESOURCES, 0)
    for instance in instances:
        layers = [(profiles[one].config, profiles[one].devices) for one in instance.profile_ids]
        config, devices = lay_over([*layers, (instance.config, instance.devices)])
        sums["cpu"] += _count(config.get("limits.cpu", ""))
        sums["processes"] += _count(config.get("limits.processes", ""))
        sums["memory"] += _bytes(config.get("limits.memory", ""))
        sums["disk"] += sum(_bytes(device.get("size", "")) for device in devices.values())
    return sums


def _count(text: str) -> int:
    try:
        check_integer(text)
    except InvalidConfig:
        return 0
    return int(text)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except InvalidConfig:
        return 0
