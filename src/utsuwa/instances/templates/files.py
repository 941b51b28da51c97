"""Generating the files of an instance, for which its image has templates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidImage, OutOfSpace, TooLarge, UtsuwaError
from utsuwa.core.idmap import IdMap
from utsuwa.core.threads import in_thread
from utsuwa.host.files.atomic import read_below
from utsuwa.host.files.filetree import FileTree
from utsuwa.images.metadata import Template, parse_metadata
from utsuwa.instances.templates import plain
from utsuwa.instances.templates.process import TemplateProcess
from utsuwa.instances.templates.variables import Facts, Rendering, Trigger, variables

MAX_METADATA = 1 << 20
MAX_TEMPLATE = 64 * 1024
KEPT_SIZE = 8 * 1024
"""The maximum size of metadata whose parsed form is cached."""


@dataclass(frozen=True)
class Target:
    """An instance whose files are generated."""

    folder: Path
    """With `metadata.yaml` and `templates/`; without metadata, there are no templates."""
    rootfs: Path
    idmap: IdMap
    """The id map with which the root file system is mounted."""
    facts: Facts


async def apply(triggers: Sequence[Trigger], target: Target, process: TemplateProcess) -> None:
    """Generate the files whose templates list one of `triggers`, which are applied in order.

    Raises InvalidImage with the name of the template, OutOfSpace or HostError if a file cannot be written, or
    the process cannot be started; files that were already generated are kept.
    """
    await in_thread(_apply_all, triggers, target, process)


def _apply_all(triggers: Sequence[Trigger], target: Target, process: TemplateProcess) -> None:
    for trigger in triggers:
        _apply(trigger, target, process)


def _apply(trigger: Trigger, target: Target, process: TemplateProcess) -> None:
    wanted = _templates_for(trigger, target.folder)
    if not wanted:
        return
    with FileTree(target.rootfs, target.idmap) as tree:
        todo = {}
        for path, template in sorted(wanted.items()):
            with _blaming(template, path):
                if not (template.create_only and tree.exists(path)):
                    todo[path] = template
        results = _results(trigger, target, todo, process)
        for path, template in todo.items():
            with _blaming(template, path):
                result = results[path]
                if isinstance(result, UtsuwaError):
                    raise result
                tree.write(path, result.encode(), parents=True)


def _results(
    trigger: Trigger, target: Target, templates: Mapping[str, Template], process: TemplateProcess
) -> dict[str, str | UtsuwaError]:
    """Return the text of each file, or why there is none. Templates that are not plain go to the process."""
    results: dict[str, str | UtsuwaError] = {}
    others = []
    for path, template in templates.items():
        try:
            source = _source(target.folder, template.template)
        except UtsuwaError as error:
            results[path] = error
            continue
        wish = Rendering(source, trigger, path, template.properties, target.facts)
        text = plain.render(source, variables(wish))
        if text is None:
            others.append(wish)
        else:
            results[path] = text
    if others:
        results |= zip((wish.path for wish in others), process.render(others), strict=True)
    return results


@contextmanager
def _blaming(template: Template, path: str) -> Iterator[None]:
    """Name the template in errors."""
    try:
        yield
    except (OutOfSpace, HostError) as error:
        raise type(error)(_failed(template, path, error)) from error
    except UtsuwaError as error:
        raise InvalidImage(_failed(template, path, error)) from error


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
