"""Changes of instances' devices that are under way, noted in the instance's config.

While the host is changed the rows still have the devices as they were. The note keeps others from taking the
addresses of those to be, and tells the next start of a daemon that is killed what to take back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from utsuwa.db import rows
from utsuwa.db.nics import NicsRow
from utsuwa.db.schema import IS_CHANGE, instances, instances_config, projects
from utsuwa.db.transaction import Prepared, Transaction

KEY = "volatile.last_state.change"


@dataclass(frozen=True)
class DeviceChange:
    """What becomes of one device."""

    after: dict[str, str] | None
    """Its config to be; None where it goes."""
    reserved: dict[str, str] = field(default_factory=dict)
    """Volatile keys that name what is made for it on the host."""


Changes = Mapping[str, DeviceChange]


def read(config: Mapping[str, str]) -> Changes:
    """What is under way by an instance's config; empty where nothing is."""
    return _decode(config[KEY]) if config.get(KEY) else {}


def note(tx: Transaction, changes: Mapping[int, Changes]) -> None:
    """Note changes, by the instances' ids."""
    for instance_id, change in changes.items():
        text = msgspec.json.encode(change).decode()
        rows.patch_config(tx, instances_config, "instance_id", instance_id, {KEY: text})


def forget(tx: Transaction, instance_ids: Iterable[int]) -> None:
    """They are done, or taken back."""
    for instance_id in instance_ids:
        rows.patch_config(tx, instances_config, "instance_id", instance_id, {KEY: None})


def nics_to_be(tx: Transaction) -> list[NicsRow]:
    """The nics that instances are just getting, by project and name."""
    found = []
    for project, name, text in tx.fetch(_NOTED):
        devices = {device: change.after for device, change in _decode(text).items() if change.after}
        nics = {device: config for device, config in devices.items() if config["type"] == "nic"}
        if nics:
            found.append(NicsRow(project, name, nics, {}))
    return found


_decode = msgspec.json.Decoder(dict[str, DeviceChange]).decode
_NOTED = Prepared(
    sa.select(projects.c.name, instances.c.name, instances_config.c.value)
    .select_from(
        instances_config.join(instances, instances.c.id == instances_config.c.instance_id).join(
            projects, projects.c.id == instances.c.project_id
        )
    )
    .where(IS_CHANGE)
    .order_by(projects.c.name, instances.c.name)
)
