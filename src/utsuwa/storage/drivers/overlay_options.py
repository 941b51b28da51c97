"""The options of overlay mounts that a pool may fix: they shape what is on disk."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from utsuwa.core.errors import InvalidConfig
from utsuwa.host.mounts import overlays
from utsuwa.host.mounts.userns import in_user_namespace

_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "redirect_dir": ("on", "off", "follow", "nofollow"),
        "index": ("on", "off"),
        "nfs_export": ("on", "off"),
        "metacopy": ("on", "off"),
        "xino": ("on", "off", "auto"),
    }
)

DEFAULT_OPTIONS = ",".join(
    f"{name}={value}" for name, value in overlays.default_options().items() if name != overlays.USERXATTR
)


def mount_options(text: str) -> dict[str, str]:
    """Return the options with which the overlays of a new pool are mounted. Raises InvalidConfig."""
    options = parse_options(text or DEFAULT_OPTIONS)
    if in_user_namespace():
        options[overlays.USERXATTR] = "on"
    return options


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
