"""Pending changes of instances' devices, recorded in the instance's config.

While the host is being changed, the rows still contain the previous devices. The record reserves the
addresses of the new devices, and after a crash the next start of the daemon uses it to revert the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from utsuwa.core.refs import InstanceRef
from utsuwa.db import rows
from utsuwa.db.nics import NicsRow
from utsuwa.db.schema import IS_CHANGE, instances, instances_config, projects
from utsuwa.db.transaction import Prepared, Transaction

KEY = "volatile.last_state.change"


@dataclass(frozen=True)
class DeviceChange:
    """The change of one device."""

    after: dict[str, str] | None
    """The new config; None if the device is removed."""
    reserved: dict[str, str] = field(default_factory=dict)
    """Volatile keys that name the host's objects of the new device."""
    again: bool = False
    """Whether it is detached and attached again although it could be changed in place."""


Changes = Mapping[str, DeviceChange]


def read(config: Mapping[str, str]) -> Changes:
    """Return the pending changes in an instance's config, by device name."""
    return _decode(config[KEY]) if config.get(KEY) else {}


def note(tx: Transaction, changes: Mapping[int, Changes]) -> None:
    """Record pending changes, by the instances' ids."""
    for instance_id, change in changes.items():
        rows.patch_config(tx, instances_config, "instance_id", instance_id, noted({}, change))


def noted(config: Mapping[str, str], changes: Changes) -> dict[str, str]:
    """Return an instance's config as it is stored while these changes are pending."""
    return {**config, KEY: _encode(changes)}


def forget(tx: Transaction, instance_ids: Iterable[int]) -> None:
    """Remove the records of changes that are completed or reverted."""
    for instance_id in instance_ids:
        rows.patch_config(tx, instances_config, "instance_id", instance_id, {KEY: None})


def nics_to_be(tx: Transaction) -> list[NicsRow]:
    """Return the nics of pending changes, sorted by project and name."""
    found = []
    for project, name, text in tx.fetch(_NOTED):
        devices = {device: change.after for device, change in _decode(text).items() if change.after}
        nics = {device: config for device, config in devices.items() if config["type"] == "nic"}
        if nics:
            found.append(NicsRow(InstanceRef(project, name), nics, {}))
    return found


def _encode(changes: Changes) -> str:
    return msgspec.json.encode(changes).decode()


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
