"""Records of keys that only virtual machines have, and of keys that have no effect yet."""

from __future__ import annotations

from utsuwa.core.config_keys import ConfigKey, KeyType, Scope, Validator


def later(
    name: str,
    type: KeyType = "string",
    *,
    default: str = "",
    live: bool = True,
    scope: Scope = "",
    help: str,
    part: str = ConfigKey.part,
    validate: Validator | None = None,
) -> ConfigKey:
    """Return a key that is validated and stored, but not yet in effect."""
    return ConfigKey(name, type, default, live, help, validate, scope=scope, part=part, in_force=False)


def for_vms(name: str, type: KeyType = "string", default: str = "", help: str = "") -> ConfigKey:
    return later(name, type, default=default, scope="virtual-machine", help=help)
