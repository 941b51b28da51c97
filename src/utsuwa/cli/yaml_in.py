"""Parsing of YAML input for API objects: values are strings, `limits.cpu: 2` is "2"."""

from __future__ import annotations

from typing import Any

import yaml

from utsuwa.cli.errors import UsageError

# Fields outside maps whose values are not strings.
_SWITCHES = ("ephemeral", "stateful", "public", "auto_update", "restricted", "managed", "cached")
_TRUE = ("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y")
_FALSE = ("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N", "")
_NULLS = ("", "~", "null", "Null", "NULL")


class _Loader(yaml.SafeLoader):
    """Loads every scalar as a string; null (without quotes) as the empty string."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def _scalar(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    plain = node.style is None
    return "" if plain and node.value in _NULLS else str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:str", _scalar)


def parse(text: str) -> dict[str, Any]:
    """Parse a map, empty for empty input. Raises UsageError with the location of the error."""
    try:
        found = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"Invalid YAML: {' '.join(str(error).split())}") from error
    if found in (None, ""):
        return {}
    if not isinstance(found, dict):
        raise UsageError("The YAML must be a mapping of `key: value` lines")
    for name in _SWITCHES:
        if name in found:
            found[name] = switch(name, found[name])
    for name in ("config", "devices", "properties", "templates"):
        if found.get(name) == "":
            found[name] = {}
    return found


def switch(name: str, value: object) -> bool:
    """Return the value of a switch. Raises UsageError."""
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"{name} must be true or false, not {value!r}")
