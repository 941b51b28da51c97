"""Generating the files of an instance, for which its image has templates."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utsuwa.core.errors import HostError, InvalidImage, OutOfSpace, TooLarge, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.threads import in_thread
from utsuwa.host.files.atomic import read_below
from utsuwa.host.files.filetree import FileTree
from utsuwa.images.metadata import Template, parse_metadata
from utsuwa.instances.templates import plain

Trigger = Literal["create", "copy", "rename", "start"]

MAX_METADATA = 1 << 20
MAX_TEMPLATE = 64 * 1024
KEPT_SIZE = 8 * 1024
"""The maximum size of metadata whose parsed form is cached."""


@dataclass(frozen=True)
class TemplateContext:
    """The facts about an instance that are available to its templates."""

    name: str
    architecture: str
    ephemeral: bool
    privileged: bool
    config: Mapping[str, str]
    """The expanded config."""
    devices: Mapping[str, Mapping[str, str]]
    idmap: IdMap
    """The id map with which the root file system is mounted."""


async def apply(triggers: Sequence[Trigger], folder: Path, rootfs: Path, context: TemplateContext) -> None:
    """Generate the files whose templates list one of `triggers`, which are applied in order.

    `folder` contains `metadata.yaml` and `templates/`; without metadata, there are no templates. Raises
    InvalidImage with the name of the template, OutOfSpace or HostError if a file cannot be written; files
    that were already generated are kept.
    """
    await in_thread(_apply_all, triggers, folder, rootfs, context)


def _apply_all(triggers: Sequence[Trigger], folder: Path, rootfs: Path, context: TemplateContext) -> None:
    for trigger in triggers:
        _apply(trigger, folder, rootfs, context)


def _apply(trigger: Trigger, folder: Path, rootfs: Path, context: TemplateContext) -> None:
    wanted = _templates_for(trigger, folder)
    if not wanted:
        return
    with FileTree(rootfs, context.idmap) as tree:
        for target, template in sorted(wanted.items()):
            try:
                if template.create_only and tree.exists(target):
                    continue
                source = _source(folder, template.template)
                values = variables(trigger, target, template.properties, context)
                tree.write(target, _render(source, values).encode(), parents=True)
            except (OutOfSpace, HostError) as error:
                raise type(error)(_failed(template, target, error)) from error
            except UtsuwaError as error:
                raise InvalidImage(_failed(template, target, error)) from error


def _failed(template: Template, target: str, error: UtsuwaError) -> str:
    return f"The template {template.template!r} for {target} failed: {error}"


def _templates_for(trigger: Trigger, folder: Path) -> dict[str, Template]:
    try:
        data = read_below(folder, "metadata.yaml", MAX_METADATA)
    except OSError as error:
        raise InvalidImage(f"The instance's metadata.yaml cannot be read: {error.strerror}") from error
    except TooLarge as error:
        raise InvalidImage(f"The instance's {error}") from error
    if data is None:
        return {}
    templates = _templates(data) if len(data) <= KEPT_SIZE else _parsed(data)
    return {target: template for target, template in templates.items() if trigger in template.when}


@functools.lru_cache(maxsize=32)
def _templates(metadata: bytes) -> Mapping[str, Template]:
    """Parse metadata. Cached, as it is usually the same for all instances of an image."""
    return _parsed(metadata)


def _parsed(metadata: bytes) -> Mapping[str, Template]:
    return parse_metadata(metadata, complete=False).templates


def _source(folder: Path, name: str) -> str:
    try:
        data = read_below(folder, f"templates/{name}", MAX_TEMPLATE)
    except OSError as error:
        raise InvalidImage(f"it cannot be read: {error.strerror}") from error
    if data is None:
        raise InvalidImage("the image does not contain it")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidImage("it is not UTF-8") from None


def _render(source: str, values: Mapping[str, Any]) -> str:
    rendered = plain.render(source, values)
    if rendered is not None:
        return rendered
    from utsuwa.instances.templates import rendering

    return rendering.render(source, values)


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
        return self._config.get(str(key), default)

    def __str__(self) -> str:
        return ""


def variables(
    trigger: Trigger, path: str, properties: Mapping[str, str], context: TemplateContext
) -> dict[str, Any]:
    """Return the variables of a template."""
    instance = {
        "name": context.name,
        "type": "container",
        "architecture": context.architecture,
        "ephemeral": Flag(context.ephemeral),
        "privileged": Flag(context.privileged),
    }
    return {
        "trigger": trigger,
        "path": path,
        "container": instance,
        "instance": instance,
        "config": dict(context.config),
        "devices": {name: dict(device) for name, device in context.devices.items()},
        "properties": dict(properties),
        "config_get": _ConfigGet(context.config),
    }
