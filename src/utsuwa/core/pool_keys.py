"""The config keys of storage pools and volumes that all drivers have in common; a driver's record adds its
own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from utsuwa.core import key_checks as checks
from utsuwa.core import schedules
from utsuwa.core.config_keys import ConfigKey, parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.snapshot_names import check_pattern
from utsuwa.core.units import parse_bytes


def _source(value: str) -> None:
    if not value.startswith("/") or any(part in (".", "..") for part in value.split("/")):
        raise InvalidConfig("must be the absolute path of a directory, without '.' and '..'")


def bytes_per_second(value: str) -> int:
    """Return an rsync bandwidth limit in bytes: a number of KiB, or a size with a unit; 0 means none.

    Raises InvalidConfig.
    """
    if value.isascii() and value.isdigit():
        return int(value) * 1024
    return parse_bytes(value) if value else 0


def _rate(value: str) -> None:
    bytes_per_second(value)


def _schedule(value: str) -> None:
    if schedules.runs_at_start(value):
        raise InvalidConfig(f"cannot contain {schedules.STARTUP}: a volume is not started")


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

INITIAL_UID, INITIAL_GID, INITIAL_MODE = "initial.uid", "initial.gid", "initial.mode"
INITIAL_MODE_DEFAULT = "711"

VOLUME_KEYS = (
    ConfigKey("size", type="size", help="Size of the volume."),
    *(
        ConfigKey(
            name,
            "integer",
            "0",
            live=False,
            help=f"The {owner} of a new volume's root",
            validate=checks.user_id,
        )
        for name, owner in ((INITIAL_UID, "owner"), (INITIAL_GID, "group"))
    ),
    ConfigKey(
        INITIAL_MODE,
        default=INITIAL_MODE_DEFAULT,
        live=False,
        help="The mode of a new volume's root, octal",
        validate=checks.mode,
    ),
    ConfigKey("snapshots.expiry", help="How long snapshots are kept, such as `3d`.", validate=checks.expiry),
    ConfigKey(
        "snapshots.expiry.manual",
        help="How long snapshots are kept that are not taken by schedule.",
        validate=checks.expiry,
    ),
    ConfigKey(
        "snapshots.schedule",
        help="When snapshots are taken: cron expressions, or aliases such as `@daily`.",
        validate=_schedule,
    ),
    ConfigKey("snapshots.pattern", help="Name pattern of snapshots.", validate=check_pattern),
    ConfigKey(
        "security.shifted",
        type="bool",
        help="Whether instances with different id maps can share a custom volume.",
    ),
    ConfigKey("security.unmapped", type="bool", help="Whether a custom volume is used without an id map."),
)


SHIFTED, UNMAPPED = "security.shifted", "security.unmapped"


def is_shifted(config: Mapping[str, str]) -> bool:
    """Whether each instance sees a volume through its own id map."""
    return parse_bool(config.get(SHIFTED, ""))


def is_unmapped(config: Mapping[str, str]) -> bool:
    """Whether instances see the owners of a volume as they are on the host."""
    return parse_bool(config.get(UNMAPPED, ""))


def default_of_volumes(key: ConfigKey) -> ConfigKey:
    """Return the pool key that sets the default of a key of new volumes."""
    return replace(key, name=f"volume.{key.name}", live=True, help=f"Default for new volumes. {key.help}")


MEMBER_KEYS = frozenset({"source", "volatile.initial_source"})
"""Keys of pools that are set per member; the others are the same on all members."""
