"""The server's config: keys and values of `core.server_keys`."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from utsuwa.db.schema import config
from utsuwa.db.transaction import Transaction


def load(tx: Transaction) -> dict[str, str]:
    query = sa.select(config.c.key, config.c.value).order_by(config.c.key)
    return {key: value or "" for key, value in tx.execute(query)}


def replace(tx: Transaction, values: Mapping[str, str]) -> None:
    """Store the whole config; an empty value says that a key is not set."""
    tx.execute(config.delete())
    new = [{"key": key, "value": value} for key, value in values.items() if value]
    if new:
        tx.execute(config.insert(), new)
