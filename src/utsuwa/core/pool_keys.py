"""The config keys of storage pools: what all drivers know, and what each adds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from utsuwa.core.config_keys import ConfigKey, KeyTable
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.units import parse_bytes

OVERLAY_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "redirect_dir": ("on", "off", "follow", "nofollow"),
        "index": ("on", "off"),
        "nfs_export": ("on", "off"),
        "metacopy": ("on", "off"),
        "xino": ("on", "off", "auto"),
    }
)
"""Options of overlay mounts that a pool may fix, with their values."""

DEFAULT_OVERLAY_OPTIONS = "redirect_dir=on,index=on,nfs_export=on,metacopy=off"


def parse_overlay_options(text: str) -> dict[str, str]:
    """`index=on,metacopy=off` as a dictionary; raises InvalidConfig for what `OVERLAY_OPTIONS` lacks."""
    options = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        allowed = OVERLAY_OPTIONS.get(name)
        if allowed is None:
            raise InvalidConfig(f"overlay option {name!r} is not one of {', '.join(OVERLAY_OPTIONS)}")
        if value not in allowed:
            raise InvalidConfig(f"overlay option {name!r} must be one of {', '.join(allowed)}")
        options[name] = value
    return options


def _overlay_options(value: str) -> None:
    parse_overlay_options(value)


def _source(value: str) -> None:
    if not value.startswith("/") or any(part in (".", "..") for part in value.split("/")):
        raise InvalidConfig("must be the absolute path of a folder, without '.' and '..'")


def _rate(value: str) -> None:
    """rsync's limit: a number of KiB a second, or a size with a unit."""
    if not value.isascii() or not value.isdigit():
        parse_bytes(value)


def _volume_default(value: str) -> None:
    if len(value) > 1024:
        raise InvalidConfig("is longer than 1024 characters")


_COMMON = (
    ConfigKey(
        "source",
        live=False,
        help="The folder that holds the pool; without one it lies in the state folder. Fixed at creation.",
        validate=_source,
    ),
    ConfigKey(
        "volatile.initial_source",
        live=False,
        help="The source as it was given when the pool was made.",
    ),
    ConfigKey(
        "rsync.bwlimit",
        default="0",
        help="How much data a second rsync may move between servers; 0 is without a limit.",
        validate=_rate,
    ),
    ConfigKey(
        "rsync.compression",
        type="bool",
        default="true",
        help="Whether rsync compresses what it moves between servers.",
    ),
    ConfigKey("volume.size", type="size", help="The size of new volumes that name none."),
    ConfigKey(
        "volume.snapshots.expiry", help="When snapshots of new volumes expire.", validate=_volume_default
    ),
    ConfigKey("volume.snapshots.schedule", help="When new volumes get snapshots.", validate=_volume_default),
    ConfigKey(
        "volume.snapshots.pattern", help="How snapshots of new volumes are named.", validate=_volume_default
    ),
    ConfigKey(
        "volume.security.shifted",
        type="bool",
        help="Whether new custom volumes can be shared by instances with different id maps.",
    ),
    ConfigKey(
        "volume.security.unmapped",
        type="bool",
        help="Whether new custom volumes are left without an id map.",
    ),
)

_OVERLAY = (
    ConfigKey(
        "overlay.mount_options",
        default=DEFAULT_OVERLAY_OPTIONS,
        live=False,
        help="Options of the overlay mounts. They shape what is on disk, so they are fixed at creation.",
        validate=_overlay_options,
    ),
    ConfigKey(
        "overlay.unpack_images",
        type="bool",
        default="true",
        help=(
            "Whether images are unpacked for new instances, not mounted as squashfs. A mounted image takes "
            "no space, but ACLs cannot be set on those of its files that nothing changed yet."
        ),
    ),
)

POOL_KEYS: Mapping[str, KeyTable] = MappingProxyType(
    {
        "dir": KeyTable("storage pools of the driver 'dir'", _COMMON),
        "overlay": KeyTable("storage pools of the driver 'overlay'", (*_COMMON, *_OVERLAY)),
    }
)
"""The table of every driver that pools can have."""

MEMBER_KEYS = frozenset({"source", "volatile.initial_source"})
"""Keys that each member has itself; it has the others in common with all."""

FIXED_KEYS = frozenset({"source", "volatile.initial_source", "overlay.mount_options"})
"""Keys that cannot be changed once the pool is there."""
