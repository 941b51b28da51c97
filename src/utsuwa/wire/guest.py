"""Records of the guest API."""

from __future__ import annotations

import msgspec


class Guest(msgspec.Struct, kw_only=True):
    """What the guest API says of itself and of the instance."""

    api_version: str
    location: str
    """The name of the instance's server, `none` if it is the only one."""
    instance_type: str
    state: str
    """`Ready` if the instance has said so, otherwise `Started`."""


class GuestPatch(msgspec.Struct, kw_only=True):
    """The state that an instance reports."""

    state: str


class ConfigChange(msgspec.Struct, kw_only=True):
    """The content of an event of the type `config`; values are empty for a key that is not set."""

    key: str
    old_value: str
    value: str


class DeviceChange(msgspec.Struct, kw_only=True):
    """The content of an event of the type `device`; a removed device with its last config."""

    action: str
    name: str
    config: dict[str, str]
