"""Warnings about networks, by their names: drivers know nothing of rows."""

from __future__ import annotations

from collections.abc import Callable

from utsuwa.core.warning_types import WarningType
from utsuwa.db.networks import NetworkRow
from utsuwa.db.warnings import Subject
from utsuwa.operations.warnings import Warnings

Judge = Callable[[WarningType, str, str], None]
"""Called with a type, the name of a network and a message: raises a warning, or resolves it if the message is
empty."""


class Troubles:
    """The warnings about the networks of this member."""

    def __init__(self, warnings: Warnings) -> None:
        self._warnings = warnings
        self._subjects: dict[str, Subject] = {}

    def know(self, row: NetworkRow) -> None:
        """Remember the row of a network; to be called before its driver does anything."""
        self._subjects[row.name] = Subject("network", row.id, row.project)

    def judge(self, kind: WarningType, network: str, message: str) -> None:
        """Raise a warning, or resolve it if the message is empty."""
        subject = self._subjects.get(network)
        if subject is not None:
            self._warnings.judge(kind, message, subject)
