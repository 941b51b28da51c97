"""The types of networks, one record each."""

from __future__ import annotations

from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.networks.base import NetworkType
from utsuwa.networks.drivers.bridge import BRIDGE

__all__ = ["DEFAULT_TYPE", "NETWORK_TYPES", "network_type"]

DEFAULT_TYPE = BRIDGE.name

NETWORK_TYPES: tuple[NetworkType, ...] = (BRIDGE,)
_BY_NAME = {kind.name: kind for kind in NETWORK_TYPES}

_LATER = frozenset({"macvlan", "sriov", "ovn", "physical"})
"""Types of the API that are not supported yet."""


def network_type(name: str) -> NetworkType:
    """Return the type of a request; an empty name means the default.

    Raises InvalidRequest, or NotSupportedYet for types of later versions.
    """
    found = _BY_NAME.get(name or DEFAULT_TYPE)
    if found is not None:
        return found
    known = " or ".join(map(repr, _BY_NAME))
    if name in _LATER:
        raise NotSupportedYet(f"Networks of the type {name!r} are not supported yet: use {known}")
    raise InvalidRequest(f"Unknown network type {name[:40]!r}: use {known}")
