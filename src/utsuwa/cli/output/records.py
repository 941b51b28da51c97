"""The order in which fields of records are printed, which is that of the `lxc` client."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_INSTANCE = (
    "architecture config devices ephemeral profiles stateful description created_at expanded_config "
    "expanded_devices name status status_code last_used_at location type project"
)
_ORDERS = {
    "instance": _INSTANCE + " backups state snapshots",
    "instance-settings": "architecture config devices ephemeral profiles stateful description",
    "snapshot": "expires_at architecture config created_at devices ephemeral expanded_config "
    "expanded_devices last_used_at name profiles stateful size",
    "snapshot-settings": "expires_at",
    "profile": "config description devices name used_by",
    "image": "auto_update properties public expires_at profiles aliases architecture cached filename "
    "fingerprint size update_source type created_at last_used_at uploaded_at",
    "image-settings": "auto_update properties public expires_at profiles",
    "metadata": "architecture creation_date expiry_date properties templates",
    "alias": "description target name type",
    "network": "config description name type used_by managed status locations",
    "pool": "config description name driver used_by status locations",
    "volume": "config description name type used_by location content_type project created_at",
    "volume-snapshot": "description expires_at name config content_type created_at",
    "project": "config description name used_by",
    "project-state": "resources",
    "operation": "id class description created_at updated_at status status_code resources metadata "
    "may_cancel err location",
    "certificate": "name type restricted projects certificate fingerprint",
    "certificate-settings": "name type restricted projects certificate",
    "token": "ClientName Token ExpiresAt",
    "server-settings": "config",
    "server": "config api_extensions api_status api_version auth public auth_methods environment",
    "event": "location metadata project timestamp type",
    "warning": "status uuid location project type count first_seen_at last_seen_at last_message severity "
    "entity_url",
    "usage": "name project cpu_percent cpu_seconds memory swap processes received_per_second sent_per_second",
    "lease": "hostname hwaddr address type location",
}
ORDERS = {kind: tuple(fields.split()) for kind, fields in _ORDERS.items()}

# Maps with arbitrary keys, which are sorted.
_MAPS = frozenset(
    ("config", "devices", "expanded_config", "expanded_devices", "properties", "network", "disk")
    + ("metadata", "resources", "kernel_features", "lxc_features")
)
_LISTS = frozenset(
    ("profiles", "backups", "snapshots", "used_by", "locations", "aliases", "projects", "addresses")
)


class Time(str):
    """A timestamp of the API, which is printed in YAML without quotes."""


def arrange(value: Any, kind: str, *, nulls: bool = False) -> Any:
    """Return a record, or a list of records, with the fields in order.

    With `nulls`, null lists and maps are kept, as in JSON; otherwise they become empty, as in YAML.
    """
    if isinstance(value, list | tuple):
        return [arrange(item, kind, nulls=nulls) if isinstance(item, dict) else item for item in value]
    known = ORDERS.get(kind, ())
    names = [name for name in known if name in value] + [name for name in value if name not in known]
    return {name: _field(name, value[name], nulls) for name in names}


def settings(record: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return only the fields of a record that belong to `kind`: the editable ones."""
    return {name: record[name] for name in ORDERS[kind] if name in record}


def _field(name: str, value: Any, nulls: bool) -> Any:
    if value is None and not nulls:
        return {} if name in _MAPS else [] if name in _LISTS else None
    if name in _MAPS and isinstance(value, dict):
        return sorted_map(value, nulls, top=name)
    if isinstance(value, dict):
        return {inner: _field(inner, part, nulls) for inner, part in value.items()}
    if isinstance(value, list):
        return [_field("", item, nulls) for item in value]
    if name.endswith("_at") and isinstance(value, str):
        return Time(_trimmed(value))
    return value


def _trimmed(time: str) -> str:
    """Remove trailing zeros of a timestamp's fraction, as Go does."""
    if "." not in time or not time.endswith("0Z"):
        return time
    return time[:-1].rstrip("0").rstrip(".") + "Z"


def _go_order(key: str) -> list[tuple[int, int, str]]:
    """Sort key of Go's YAML: sequences of digits by value, and letters last."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for character in f"{key}\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits), digits))
            digits = ""
        if character != "\0":
            parts.append((2 if character.isalpha() else 1, 0, character))
    return parts


def sorted_map(value: dict[str, Any], nulls: bool = False, top: str = "") -> dict[str, Any]:
    """Return a map sorted by key; the values of a network map are records."""
    nested = top not in ("network", "disk")
    found = {}
    for key in sorted(value, key=_go_order):
        part = value[key]
        if isinstance(part, dict):
            found[key] = sorted_map(part, nulls, top) if nested else _field("", part, nulls)
        elif isinstance(part, list):
            found[key] = [sorted_map(p, nulls, top) if isinstance(p, dict) else p for p in part]
        else:
            found[key] = part
    return found
