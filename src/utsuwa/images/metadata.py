"""metadata.yaml of images and instances, parsed by schema and with limits, as it is untrusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.errors import InvalidImage

MAX_SIZE = 1024 * 1024
MAX_DEPTH = 16
MAX_ALIASES = 20
MAX_EVENTS = 50_000
MAX_TEXT = 64 * 1024
"""Maximum length of a value in characters."""

# The C loader, if available: a megabyte of YAML takes many seconds in pure Python. The base loader keeps
# every scalar as a string: `release: 22.10` must not become 22.1.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_INTEGER = re.compile(r"[0-9]{1,12}\Z")
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, in seconds since 1970."""
_TEMPLATE_NAME = re.compile(r"[^/\0\r\n]{1,255}\Z")
_YES = frozenset(("true", "yes", "on", "y"))
_NO = frozenset(("false", "no", "off", "n", "", "null", "~"))
_NULL = frozenset(("", "null", "Null", "NULL", "~"))


@dataclass(frozen=True)
class Template:
    """A file of an instance that is created from a template."""

    when: tuple[str, ...]
    """Its triggers; words other than create, copy, start and rename are ignored."""
    template: str
    """A file name in the image's templates/."""
    create_only: bool = False
    """Whether an existing file is not overwritten."""
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageMetadata:
    """The metadata of an image. Dates are seconds since 1970, 0 for none."""

    architecture: str
    creation_date: int
    expiry_date: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, Template] = field(default_factory=dict)
    """By the path of the file in the instance: absolute, without `..`."""


def parse_metadata(data: bytes, *, complete: bool = True) -> ImageMetadata:
    """Parse metadata.yaml. Raises InvalidImage, naming the first problem. Blocking: run it in a thread.

    Unless `complete`, architecture ("") and creation date (0) may be missing: clients may remove them from an
    instance, but an image needs them.
    """
    content = _load(data)
    architecture = _text(content, "architecture")
    if complete and not architecture:
        _refuse("it has no architecture")
    known = canonical_architecture(architecture) if architecture else ""
    if known is None:
        _refuse(f"the architecture {architecture[:40]!r} is unknown")
    created = _date(content, "creation_date")
    if complete and not created:
        _refuse("it has no creation_date")
    return ImageMetadata(
        architecture=known,
        creation_date=created,
        expiry_date=_date(content, "expiry_date"),
        properties=_strings(content, "properties"),
        templates=_templates(content),
    )


def format_metadata(content: Mapping[str, Any]) -> bytes:
    """Return plain values as metadata.yaml. Raises InvalidImage if `parse_metadata` would reject them."""
    data: bytes = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, encoding="utf-8")
    parse_metadata(data, complete=False)
    return data


def is_template_name(name: str) -> bool:
    """Return whether `name` may be a file in templates/."""
    return bool(_TEMPLATE_NAME.match(name)) and name not in (".", "..")


def _refuse(problem: str) -> NoReturn:
    raise InvalidImage(f"metadata.yaml is invalid: {problem}")


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_SIZE:
        _refuse("it is larger than 1 MiB")
    try:
        text = data.decode()
        _check_events(text)
        # S506 does not apply: the base loader makes dicts, lists and strings, whatever tags say.
        content = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError:
        _refuse("it is not UTF-8")
    except yaml.YAMLError as error:
        _refuse(f"it is not YAML: {' '.join(str(error).split())[:200]}")
    except (ValueError, TypeError, RecursionError) as error:
        _refuse(f"it cannot be read ({type(error).__name__})")
    if not isinstance(content, dict):
        _refuse("it is not a mapping")
    return content


def _check_events(text: str) -> None:
    """Check depth, aliases and number of nodes without building the document."""
    depth = aliases = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        if depth > MAX_DEPTH:
            _refuse(f"it is nested deeper than {MAX_DEPTH} levels")
        if aliases > MAX_ALIASES:
            _refuse(f"it has more than {MAX_ALIASES} aliases")
        if number > MAX_EVENTS:
            _refuse("it has too many entries")


def _text(content: Mapping[str, Any], key: str, where: str = "") -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        _refuse(f"{where}{key} is not a text")
    return _limited("" if value in _NULL else value, f"{where}{key}")


def _limited(value: str, name: str) -> str:
    if len(value) > MAX_TEXT:
        _refuse(f"{name[:100]} is longer than {MAX_TEXT} characters")
    if "\0" in value:
        _refuse(f"{name[:100]} contains a NUL character")
    return value


def _date(content: Mapping[str, Any], key: str) -> int:
    text = _text(content, key)
    if not text:
        return 0
    if not _INTEGER.match(text) or int(text) > _LAST_SECOND:
        _refuse(f"{key} is not a time in seconds since 1970")
    return int(text)


def _mapping(content: Mapping[str, Any], key: str, where: str = "") -> dict[str, Any]:
    value = content.get(key, "")
    if isinstance(value, str) and value in _NULL:
        return {}
    if not isinstance(value, dict):
        _refuse(f"{where}{key} is not a mapping")
    return value


def _strings(content: Mapping[str, Any], key: str, where: str = "") -> dict[str, str]:
    values = _mapping(content, key, where)
    for name in values:
        if not isinstance(name, str) or not name or len(name) > 255 or not name.isprintable():
            _refuse(f"{where}{key} has an invalid name {str(name)[:40]!r}")
    return {name: _text(values, name, f"{where}{key}.") for name in values}


def _templates(content: Mapping[str, Any]) -> dict[str, Template]:
    found: dict[str, Template] = {}
    for target, entry in _mapping(content, "templates").items():
        _check_target(target)
        where = f"templates.{target[:100]}."
        if not isinstance(entry, dict):
            _refuse(f"{where[:-1]} is not a mapping")
        name = _text(entry, "template", where)
        if not is_template_name(name):
            _refuse(f"{where}template is not a plain file name")
        found[target] = Template(
            when=_when(entry, where),
            template=name,
            create_only=_flag(entry, "create_only", where),
            properties=_strings(entry, "properties", where),
        )
    return found


def _check_target(target: Any) -> None:
    if not isinstance(target, str) or not target.startswith("/") or target.endswith("/"):
        _refuse(f"the template target {str(target)[:100]!r} is not the absolute path of a file")
    if len(target) > 4096 or ".." in target.split("/") or not target.isprintable():
        _refuse(f"the template target {target[:100]!r} is not a path inside the instance")


def _when(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = entry.get("when", "")
    if isinstance(value, str) and value in _NULL:
        return ()
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        _refuse(f"{where}when is not a list of triggers")
    return tuple(word for word in value if word)


def _flag(entry: Mapping[str, Any], key: str, where: str) -> bool:
    text = _text(entry, key, where).lower()
    if text in _YES:
        return True
    if text in _NO:
        return False
    _refuse(f"{where}{key} is neither true nor false")
