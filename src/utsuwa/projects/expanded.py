"""The instances of a project with their config and devices expanded by their profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from utsuwa.core.layering import Config, Devices, lay_over
from utsuwa.db import instances as instance_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db.instances import InstanceRow
from utsuwa.db.transaction import Transaction

Expanded = tuple[Config, Devices]


def expanded(
    tx: Transaction, project: str, changed: Mapping[int, Expanded] | None = None
) -> Iterator[tuple[InstanceRow, Config, Devices]]:
    """Yield the instances of a project in a constant number of queries.

    `changed` replaces what is stored of instances, by id: what they are about to become.
    """
    instances = instance_rows.get_all(tx, project)
    if not instances:
        return
    profiles = {row.id: (row.config, row.devices) for row in profile_rows.get_all(tx, None)}
    for row in instances:
        layers = [*(profiles[one] for one in row.data.profile_ids), (row.data.config, row.data.devices)]
        config, devices = (changed or {}).get(row.id) or lay_over(layers)
        yield row, config, devices
