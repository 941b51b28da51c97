"""The filters of `utsuwa list`."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

from utsuwa.cli.errors import UsageError

Instance = dict[str, Any]


def matches(instance: Instance, filters: list[str]) -> bool:
    """Return whether an instance matches all filters. Raises UsageError."""
    return all(_fits(instance, text) for text in filters)


def _fits(instance: Instance, text: str) -> bool:
    key, equals, value = text.partition("=")
    if equals:
        if key in _SHORTHANDS:
            return any(_SHORTHANDS[key](instance, part) for part in value.split(","))
        return any(_config_fits(name, had, key, value) for name, had in instance["expanded_config"].items())
    name = str(instance["name"])
    return text == name or bool(re.search(text if _is_expression(text) else f"^{text}", name))


def _is_expression(text: str) -> bool:
    """Return whether it is a regular expression instead of a prefix. Raises UsageError if it is invalid."""
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is not a valid regular expression: {error}") from error
    return re.escape(text).replace("\\-", "-") != text


def _config_fits(name: str, had: str, key: str, value: str) -> bool:
    """Return whether `key`, whose namespaces may be abbreviated, means `name`, and the value matches."""
    parts, shorts = name.split("."), key.split(".")
    if len(parts) != len(shorts) or parts[-1] != shorts[-1]:
        return False
    if not all(part.startswith(short) for part, short in zip(parts, shorts, strict=True)):
        return False
    if had == value:
        return True
    try:
        return re.fullmatch(value, had) is not None
    except re.error:
        return False


def _address_fits(family: str, instance: Instance, wanted: str) -> bool:
    try:
        network = ip_network(wanted if "/" in wanted else str(ip_address(wanted)), strict=False)
    except ValueError as error:
        raise UsageError(f"{wanted!r} is not a valid address or network: {error}") from error
    for nic in ((instance.get("state") or {}).get("network") or {}).values():
        for found in nic["addresses"]:
            if found["family"] == family and ip_address(found["address"]) in network:
                return True
    return False


_SHORTHANDS: dict[str, Callable[[Instance, str], bool]] = {
    "type": lambda i, v: i["type"] == v.lower(),
    "status": lambda i, v: i["status"].lower() == v.lower(),
    "architecture": lambda i, v: i["architecture"].lower() == v.lower(),
    "location": lambda i, v: i["location"].lower() == v.lower(),
    "ipv4": lambda i, v: _address_fits("inet", i, v),
    "ipv6": lambda i, v: _address_fits("inet6", i, v),
}
