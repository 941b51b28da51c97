"""The options of overlay mounts that a pool may fix: they shape what is on disk."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from utsuwa.core.errors import InvalidConfig

_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "redirect_dir": ("on", "off", "follow", "nofollow"),
        "index": ("on", "off"),
        "nfs_export": ("on", "off"),
        "metacopy": ("on", "off"),
        "xino": ("on", "off", "auto"),
    }
)

DEFAULT_OPTIONS = "redirect_dir=on,index=on,nfs_export=on,metacopy=off"


def parse_options(text: str) -> dict[str, str]:
    """`index=on,metacopy=off` as a dictionary; raises InvalidConfig for other options and values."""
    options = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        allowed = _VALUES.get(name)
        if allowed is None:
            raise InvalidConfig(f"overlay option {name!r} is not one of {', '.join(_VALUES)}")
        if value not in allowed:
            raise InvalidConfig(f"overlay option {name!r} must be one of {', '.join(allowed)}")
        options[name] = value
    return options


def check_options(text: str) -> None:
    """Raises InvalidConfig."""
    parse_options(text)
