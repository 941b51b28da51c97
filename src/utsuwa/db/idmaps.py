"""The id maps of instances as they are stored, for the choice of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import sqlalchemy as sa

from utsuwa.db.schema import instances, instances_config
from utsuwa.db.transaction import Prepared, Transaction

KEYS = ("volatile.idmap.next", "volatile.idmap.current", "volatile.last_state.power")
"""The keys that tell which ids an instance has, and will have."""


StoredMaps = tuple[str, str, str]
"""The values of `KEYS` of an instance, empty if unset."""


def stored_maps(config: Mapping[str, str]) -> StoredMaps:
    next_map, current_map, power = (config.get(key, "") for key in KEYS)
    return next_map, current_map, power


def _query() -> Prepared:
    source: sa.FromClause = instances
    values = []
    for key in KEYS:
        config = instances_config.alias()
        source = source.outerjoin(
            config, sa.and_(config.c.instance_id == instances.c.id, config.c.key == key)
        )
        values.append(sa.func.coalesce(config.c.value, ""))
    return Prepared(
        sa.select(*values)
        .select_from(source)
        .where(
            instances.c.member_id == sa.bindparam("member", type_=sa.Integer),
            instances.c.id != sa.bindparam("but", type_=sa.Integer),
        )
    )


_HERE = _query()


def of_others(tx: Transaction, instance_id: int) -> set[StoredMaps]:
    """Return the maps of this member's instances without one of them.

    They are read whenever an isolated map is chosen. The database would take longer to find equal ones.
    """
    return set(cast(list[StoredMaps], tx.fetch(_HERE, member=tx.member, but=instance_id)))
