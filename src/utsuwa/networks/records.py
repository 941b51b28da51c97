"""Networks and interfaces as returned to callers of the manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from utsuwa.db.networks import NetworkRow
from utsuwa.host.network.bridges import Link


@dataclass(frozen=True)
class Network:
    """A managed network; `available` is False if it could not be brought up."""

    row: NetworkRow
    used_by: Sequence[str]
    available: bool


@dataclass(frozen=True)
class Interface:
    """An interface of the host that is not a managed network."""

    link: Link
    used_by: Sequence[str]
