"""`/1.0/metadata/configuration`: every config key, from the tables that also validate them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from utsuwa.api.http import Request, Result, Route, Sync
from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.image_properties import IMAGE_PROPERTIES
from utsuwa.core.instance_keys import INSTANCE_KEY_GROUPS
from utsuwa.core.project_keys import PROJECT_KEY_GROUPS
from utsuwa.core.server_keys import LOCAL_KEYS, SERVER_KEY_GROUPS
from utsuwa.devices import DEVICE_TYPES
from utsuwa.networks.drivers import NETWORK_TYPES
from utsuwa.storage.drivers import DRIVERS

_NO_EFFECT = "Checked and stored, without effect in this version."


async def get_configuration(request: Request) -> Result:
    return Sync(configuration())


@cache
def configuration() -> dict[str, Any]:
    """Return all keys by type of object and group, in LXD's format, with `choices` where there are few."""
    return {
        "configs": {
            "instance": _groups(INSTANCE_KEY_GROUPS, live=True),
            "project": _groups(PROJECT_KEY_GROUPS),
            "server": _groups(SERVER_KEY_GROUPS, scoped=True),
            "devices": _groups(
                {group: table.keys for kind in DEVICE_TYPES for group, table in kind.tables.items()}
            ),
            "image": _groups({"properties": IMAGE_PROPERTIES}),
            **{f"network_{kind.name}": _groups({"common": kind.keys.keys}) for kind in NETWORK_TYPES},
            **{
                f"storage_{name}": _groups({"common": kind.pool_keys.keys})
                for name, kind in sorted(DRIVERS.items())
            },
            **{
                f"storage_volume_{name}": _groups({"common": kind.custom_keys.keys})
                for name, kind in sorted(DRIVERS.items())
            },
        }
    }


def _groups(
    groups: Mapping[str, Iterable[ConfigKey]], *, live: bool = False, scoped: bool = False
) -> dict[str, Any]:
    return {
        group: {"keys": [{key.name: _shown(key, live=live, scoped=scoped)} for key in keys]}
        for group, keys in groups.items()
    }


def _shown(key: ConfigKey, *, live: bool, scoped: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "type": "string" if key.type == "size" else key.type,
        "shortdesc": key.help,
        "longdesc": "" if key.in_force else _NO_EFFECT,
    }
    if key.default:
        shown["defaultdesc"] = f"`{key.default}`"
    if key.choices:
        shown["choices"] = list(key.choices)
    if key.scope:
        shown["condition"] = key.scope.replace("-", " ")
    if live:
        shown["liveupdate"] = "yes" if key.live else "no"
    if scoped:
        shown["scope"] = "local" if key.name in LOCAL_KEYS else "global"
    return shown


ROUTES = (
    Route(
        "GET",
        "/1.0/metadata/configuration",
        get_configuration,
        "Describe every config key",
        dict[str, Any],
    ),
)
