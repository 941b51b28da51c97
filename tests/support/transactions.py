"""Transactions in tests of entity modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from utsuwa.db.transaction import Answer, Prepared, PreparedChange, Transaction, Values


class CountedTransaction(Transaction):
    """A transaction that counts statements."""

    statements = 0

    def execute(self, statement: sa.Executable, values: Values | None = None) -> Answer:
        self.statements += 1
        return super().execute(statement, values)

    def fetch(self, query: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        self.statements += 1
        return super().fetch(query, **values)

    def run(self, change: PreparedChange, rows: Iterable[Mapping[str, Any]]) -> None:
        self.statements += 1
        super().run(change, rows)


@contextmanager
def refused(tx: Transaction, error: type[Exception], match: str | None = None) -> Iterator[None]:
    """Expect the block to raise `error`; the transaction continues as if it had not run."""
    with pytest.raises(error, match=match), tx.connection.begin_nested():
        yield
