"""The YAML of `init --preseed`, in LXD's format."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

from utsuwa.core.config_keys import without_volatile
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.wire.codec import explain

MAX_SIZE = 1024 * 1024
"""Maximum size of the YAML in bytes."""
MAX_ALIASES = 100
"""Maximum number of aliases (`*anchor`), each of which may repeat a large part of the text."""

_SECRET_PLACEHOLDER = ("core.trust_password", "true")
"""How servers show a password that is set; contained in LXD's dumps."""

_STATE_FOLDERS = ("/var/lib/lxd", "/var/snap/lxd/common/lxd", "/var/lib/incus")

Config = dict[str, str]


class PoolSeed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A storage pool; an empty driver means the server's default."""

    name: str = ""
    driver: str = ""
    description: str = ""
    config: Config = {}


class NetworkSeed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A network; an empty type means the server's default."""

    name: str = ""
    type: str = ""
    description: str = ""
    config: Config = {}
    project: str = DEFAULT_PROJECT


class ProjectSeed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str = ""
    description: str = ""
    config: Config = {}


class ProfileSeed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A profile; devices are merged by key, so that a part of one can be specified."""

    name: str = ""
    description: str = ""
    config: Config = {}
    devices: dict[str, Config] = {}
    project: str = DEFAULT_PROJECT


class Preseed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The desired configuration; other objects and keys are not changed."""

    config: Config = {}
    storage_pools: list[PoolSeed] = []
    networks: list[NetworkSeed] = []
    projects: list[ProjectSeed] = []
    profiles: list[ProfileSeed] = []


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "storage_pools": PoolSeed,
    "networks": NetworkSeed,
    "projects": ProjectSeed,
    "profiles": ProfileSeed,
}


class _Loader(yaml.SafeLoader):
    """Loads every scalar as a string, as LXD does for maps of strings; `~` is null."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])


def parse(text: str) -> Preseed:
    """Parse a preseed. Raises InvalidRequest with reason and location."""
    content = _load(text)
    if content.pop("cluster", None):
        raise InvalidRequest("This version does not support clustering: remove 'cluster' from the preseed")
    _refuse_unknown("the preseed", content, Preseed)
    for section, record in _SECTIONS.items():
        _check_section(section, content, record)
    try:
        preseed = msgspec.convert(content, Preseed)
    except msgspec.ValidationError as error:
        place, reason = explain(error, content, Preseed)
        raise InvalidRequest(f"Invalid preseed: {place or 'document'}: {reason}") from error
    for network in preseed.networks:
        network.config = without_volatile(network.config)
    for pool in preseed.storage_pools:
        pool.config = without_volatile(pool.config)
        if _is_place_of_lxd(pool):
            del pool.config["source"]
    key, shown = _SECRET_PLACEHOLDER
    if preseed.config.get(key) == shown:
        raise InvalidRequest(f"{key}: {shown} is the placeholder of a dump: set the real value, or remove it")
    return preseed


def _is_place_of_lxd(pool: PoolSeed) -> bool:
    """Return whether a pool is at the default location of LXD or Incus, which their dumps contain."""
    return pool.config.get("source") in {f"{folder}/storage-pools/{pool.name}" for folder in _STATE_FOLDERS}


def _load(text: str) -> dict[str, Any]:
    """Load the top-level mapping without null values; an empty document is an empty preseed."""
    if len(text) > MAX_SIZE:
        raise InvalidRequest(f"The preseed is longer than {MAX_SIZE} bytes")
    try:
        aliases = sum(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)
        )
        if aliases > MAX_ALIASES:
            raise InvalidRequest(f"The preseed uses more than {MAX_ALIASES} aliases")
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader with fewer types
    except yaml.YAMLError as error:
        raise InvalidRequest(f"The preseed is not valid YAML: {_one_line(error)}") from error
    except RecursionError:
        raise InvalidRequest("The preseed is nested too deeply") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidRequest("The preseed must be a YAML mapping with sections such as config and profiles")
    return _without_nulls(content)


def _check_section(section: str, content: dict[str, Any], record: type[msgspec.Struct]) -> None:
    """Check names and fields of one section's entries; types are checked later."""
    entries = content.get(section)
    if not isinstance(entries, list):
        return
    content[section] = [_without_nulls(entry) if isinstance(entry, dict) else entry for entry in entries]
    for number, entry in enumerate(content[section], 1):
        if isinstance(entry, dict):
            name = entry.get("name")
            where = f"entry {number} of {section}" + (f" ({name!r})" if name else "")
            _refuse_unknown(where, entry, record)
            if not name:
                raise InvalidRequest(f"Invalid preseed: {where} has no name")


def _refuse_unknown(where: str, content: dict[str, Any], record: type[msgspec.Struct]) -> None:
    unknown = [str(key)[:60] for key in content if key not in record.__struct_fields__]
    if unknown:
        raise InvalidRequest(
            f"Invalid preseed: unknown field {', '.join(map(repr, unknown))} in {where}; "
            f"known fields are {', '.join(record.__struct_fields__)}"
        )


def _without_nulls(content: dict[str, Any]) -> dict[str, Any]:
    """Remove nulls from records; in config and devices, replace them by "" (which unsets a key)."""
    kept = {key: value for key, value in content.items() if value is not None}
    if isinstance(config := kept.get("config"), dict):
        kept["config"] = _emptied(config)
    if isinstance(devices := kept.get("devices"), dict):
        kept["devices"] = {
            name: _emptied(device) if isinstance(device, dict) else {} if device is None else device
            for name, device in devices.items()
        }
    return kept


def _emptied(config: dict[str, Any]) -> dict[str, Any]:
    return {key: "" if value is None else value for key, value in config.items()}


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
