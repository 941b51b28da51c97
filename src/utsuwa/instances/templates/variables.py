"""What is rendered: a template, and the variables by which it knows its instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from utsuwa.instances.templates import plain

Trigger = Literal["create", "copy", "rename", "start"]


@dataclass(frozen=True)
class Facts:
    """The facts about an instance that are available to its templates."""

    name: str
    architecture: str
    ephemeral: bool
    privileged: bool
    config: Mapping[str, str]
    """The expanded config."""
    devices: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Rendering:
    """One template with all that it needs to be rendered."""

    source: str
    trigger: Trigger
    path: str
    """The file that is generated."""
    properties: Mapping[str, str]
    facts: Facts


class Flag(str):
    """`true` or `false` as a string for comparisons in templates, with the corresponding truth value."""

    __slots__ = ()

    def __new__(cls, value: bool) -> Flag:
        return super().__new__(cls, "true" if value else "false")

    def __bool__(self) -> bool:
        return self == "true"


class _ConfigGet:
    """`config_get(key, default)`; rendered as an empty string."""

    def __init__(self, config: Mapping[str, str]) -> None:
        self._config = config

    def __call__(self, key: object, default: object = "") -> object:
        found = self._config.get(str(key))
        return default if found is None else found.rstrip(plain.LINE_ENDS)

    def __str__(self) -> str:
        return ""


def variables(of: Rendering) -> dict[str, Any]:
    """Return the variables of a template."""
    facts = of.facts
    instance = {
        "name": facts.name,
        "type": "container",
        "architecture": facts.architecture,
        "ephemeral": Flag(facts.ephemeral),
        "privileged": Flag(facts.privileged),
    }
    return {
        "trigger": of.trigger,
        "path": of.path,
        "container": instance,
        "instance": instance,
        "config": dict(facts.config),
        "devices": {name: dict(device) for name, device in facts.devices.items()},
        "properties": dict(of.properties),
        "config_get": _ConfigGet(facts.config),
    }
