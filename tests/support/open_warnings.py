"""Warnings that are kept in memory, for tests of what raises them."""

from __future__ import annotations

from typing import Any

from utsuwa.core.warning_types import WarningType
from utsuwa.db.warnings import HOST, Subject
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.operations.events import EventHub
from utsuwa.operations.retries import Retries
from utsuwa.operations.warnings import Warnings


class OpenWarnings(Warnings):
    """`messages` are those of the warnings that are not resolved, by the text of their type."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(nothing, EventHub())
        self.reported: list[str] = []
        """Every message that was reported, also repeatedly."""

    @property
    def messages(self) -> dict[str, str]:
        return {kind.text: message for (kind, _), message in self._open.items()}

    def report(self, kind: WarningType, message: str, subject: Subject = HOST) -> None:
        self.reported.append(message)
        super().report(kind, message, subject)

    def _soon(self, write: object) -> None:
        """Store nothing."""


class Judged(dict[str, str]):
    """A driver's `judge`: the messages of the warnings that it has raised, by the text of their type."""

    def __call__(self, kind: WarningType, network: str, message: str) -> None:
        if message:
            self[kind.text] = message
        else:
            self.pop(kind.text, None)


def no_retries() -> Retries:
    """For tests in which nothing is tried again, or on a host without link events."""
    return Retries(LinkEvents(), OpenWarnings())
