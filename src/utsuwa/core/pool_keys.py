"""The config keys of storage pools and volumes that all drivers have in common; a driver's record adds its
own."""

from __future__ import annotations

from dataclasses import replace

from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.units import parse_bytes


def _source(value: str) -> None:
    if not value.startswith("/") or any(part in (".", "..") for part in value.split("/")):
        raise InvalidConfig("must be the absolute path of a directory, without '.' and '..'")


def _rate(value: str) -> None:
    """An rsync bandwidth limit: a number of KiB per second, or a size with a unit."""
    if not value.isascii() or not value.isdigit():
        parse_bytes(value)


def _not_too_long(value: str) -> None:
    if len(value) > 1024:
        raise InvalidConfig("is longer than 1024 characters")


POOL_KEYS = (
    ConfigKey(
        "source",
        live=False,
        help="Directory of the pool; by default below the state directory. Fixed at creation.",
        validate=_source,
    ),
    ConfigKey(
        "volatile.initial_source",
        live=False,
        help="The source as specified when the pool was created.",
    ),
    ConfigKey(
        "rsync.bwlimit",
        default="0",
        help="Bandwidth limit per second of rsync between servers; 0 means no limit.",
        validate=_rate,
    ),
    ConfigKey(
        "rsync.compression",
        type="bool",
        default="true",
        help="Whether rsync compresses transfers between servers.",
    ),
)

VOLUME_KEYS = (
    ConfigKey("size", type="size", help="Size of the volume."),
    ConfigKey("snapshots.expiry", help="When snapshots expire.", validate=_not_too_long),
    ConfigKey("snapshots.schedule", help="Snapshot schedule.", validate=_not_too_long),
    ConfigKey("snapshots.pattern", help="Name pattern of snapshots.", validate=_not_too_long),
    ConfigKey(
        "security.shifted",
        type="bool",
        help="Whether instances with different id maps can share a custom volume.",
    ),
    ConfigKey("security.unmapped", type="bool", help="Whether a custom volume is used without an id map."),
)


def default_of_volumes(key: ConfigKey) -> ConfigKey:
    """Return the pool key that sets the default of a key of new volumes."""
    return replace(key, name=f"volume.{key.name}", live=True, help=f"Default for new volumes. {key.help}")


MEMBER_KEYS = frozenset({"source", "volatile.initial_source"})
"""Keys of pools that are set per member; the others are the same on all members."""
