"""The config keys of projects: so far `features.*`. Limits and restrictions are not supported yet."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core.config_keys import ConfigKey, KeyTable

_FEATURES = (
    ConfigKey("features.images", "bool", "true", help="Whether the project has images of its own."),
    ConfigKey("features.networks", "bool", "true", help="Whether the project has networks of its own."),
    ConfigKey("features.profiles", "bool", "true", help="Whether the project has profiles of its own."),
    ConfigKey("features.storage.volumes", "bool", "true", help="Whether the project has volumes of its own."),
)

PROJECT_KEY_GROUPS: Mapping[str, tuple[ConfigKey, ...]] = {"features": _FEATURES}

PROJECT_KEYS = KeyTable("projects", _FEATURES)
