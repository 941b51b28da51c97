"""The server's config: keys and values of `core.server_keys`."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from utsuwa.core.server_keys import LOCAL_KEYS
from utsuwa.db.schema import IS_SHARED, config
from utsuwa.db.transaction import Transaction


def load(tx: Transaction) -> dict[str, str]:
    """Return the config of this member: the shared keys, and its own `LOCAL_KEYS`."""
    query = sa.select(config.c.key, config.c.value).where(_visible(tx)).order_by(config.c.key)
    return {key: value or "" for key, value in tx.execute(query)}


def replace(tx: Transaction, values: Mapping[str, str]) -> None:
    """Replace the complete config of this member; an empty value means that a key is not set."""
    tx.execute(config.delete().where(_visible(tx)))
    new = [
        {"member_id": tx.member if key in LOCAL_KEYS else None, "key": key, "value": value}
        for key, value in values.items()
        if value
    ]
    if new:
        tx.execute(config.insert(), new)


def _visible(tx: Transaction) -> sa.ColumnElement[bool]:
    return sa.or_(IS_SHARED, config.c.member_id == tx.member)
