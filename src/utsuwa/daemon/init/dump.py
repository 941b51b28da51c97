"""`init --dump`: the configuration of a daemon as YAML for `init --preseed`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from utsuwa.core.config_keys import without_volatile
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.daemon.init.preseed import (
    NetworkSeed,
    PoolSeed,
    Preseed,
    ProfileSeed,
    ProjectSeed,
)
from utsuwa.daemon.local_api import LocalApi

_ODD_BREAKS = re.compile("[\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Writes repeated values in full instead of using anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Use double quotes for Unicode line breaks, which PyYAML would otherwise read back as spaces."""
    style = '"' if _ODD_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def dump(api: LocalApi, pools_folder: Path) -> str:
    """Return the YAML. Secrets are replaced by comments; values chosen by the daemon are omitted.

    `pools_folder` is the daemon's default location of pools.
    """
    config = api.get("/1.0")["config"]
    secrets = [key for key, value in config.items() if value is True]
    preseed = Preseed(
        config={key: value for key, value in config.items() if value is not True},
        storage_pools=[_pool(pool, pools_folder) for pool in api.get("/1.0/storage-pools?recursion=1")],
        networks=[_network(n) for n in api.get("/1.0/networks?recursion=1") if n["managed"]],
        projects=[_project(project) for project in api.get("/1.0/projects?recursion=1")],
        profiles=[_profile(profile) for profile in api.get("/1.0/profiles?recursion=1")],
    )
    hidden = "".join(f"# {key} is set, but not shown: add its value here\n" for key in secrets)
    return hidden + to_yaml(preseed)


def to_yaml(preseed: Preseed) -> str:
    """Format as YAML; the default project is omitted, as LXD does not accept a project in profiles."""
    content = msgspec.to_builtins(preseed)
    for entry in (*content["networks"], *content["profiles"]):
        if entry["project"] == DEFAULT_PROJECT:
            del entry["project"]
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _pool(found: Mapping[str, Any], pools_folder: Path) -> PoolSeed:
    config = without_volatile(found["config"])
    if config.get("source") == str(pools_folder / found["name"]):
        del config["source"]
    return PoolSeed(
        name=found["name"], driver=found["driver"], description=found["description"], config=config
    )


def _network(found: Mapping[str, Any]) -> NetworkSeed:
    return NetworkSeed(
        name=found["name"],
        type=found["type"],
        description=found["description"],
        config=without_volatile(found["config"]),
    )


def _project(found: Mapping[str, Any]) -> ProjectSeed:
    return ProjectSeed(name=found["name"], description=found["description"], config=found["config"])


def _profile(found: Mapping[str, Any]) -> ProfileSeed:
    return ProfileSeed(
        name=found["name"],
        description=found["description"],
        config=found["config"],
        devices=found["devices"],
    )
