"""Definitions of images: a small YAML document, checked completely before anything is done."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from utsuwa.cli import yaml_in
from utsuwa.cli.building.distributions import DISTRIBUTIONS
from utsuwa.cli.errors import CommandFailed, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_LIMIT = 1024 * 1024
"""Of a definition, in bytes."""
_RELEASE = re.compile(r"[a-z][a-z0-9.-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?")
_MODE = re.compile(r"0?[0-7]{3,4}")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_WORD = re.compile(r"[a-z][a-z0-9-]*")
_TEMPLATE_TIMES = ("create", "copy", "start")
_KEYS = (
    "distribution",
    "release",
    "architecture",
    "variant",
    "name",
    "properties",
    "components",
    "mirror",
    "sources",
    "keyring",
    "packages",
    "path-exclude",
    "path-include",
    "files",
    "commands",
    "templates",
)


@dataclass(frozen=True)
class File:
    """A file of the image; `content` is what it gets, `path` where in the image."""

    path: str
    content: bytes
    mode: str = "0644"
    owner: str = "root:root"


@dataclass(frozen=True)
class Template:
    """A template of the image, for the file `path` of its instances."""

    path: str
    content: bytes
    when: tuple[str, ...]
    create_only: bool = False
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """The image to build. Texts are checked for what they become part of: names, paths, lines."""

    distribution: str
    release: str
    architecture: str = ""
    """Debian's name, empty for that of this host."""
    variant: str = "default"
    name: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    components: tuple[str, ...] = ()
    mirror: str = ""
    sources: tuple[str, ...] = ()
    """Lines of sources.list without options: `deb URI SUITE COMPONENT...`."""
    keyring: str = ""
    """A file on this host, empty for that of the distribution."""
    packages: tuple[str, ...] = ()
    path_exclude: tuple[str, ...] = ()
    path_include: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    commands: tuple[str, ...] = ()
    templates: tuple[Template, ...] = ()


_HOSTS = b"""\
127.0.0.1	localhost
127.0.1.1	{{ container.name }}

::1		localhost ip6-localhost ip6-loopback
ff02::1		ip6-allnodes
ff02::2		ip6-allrouters
"""
_TEMPLATES = (
    Template("/etc/hostname", b"{{ container.name }}\n", ("create", "copy")),
    Template("/etc/hosts", _HOSTS, ("create", "copy")),
)
"""Without them, all instances would have the name of their image."""


def load(path: str) -> Definition:
    """Read a definition. Raises CommandFailed if it cannot be read, UsageError if it is not valid."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise CommandFailed(f"Cannot read {path}: {error.strerror}") from error
    if len(data) > _LIMIT:
        raise UsageError(f"{path} is larger than 1 MiB: a definition is a small YAML file")
    try:
        return parse(data.decode(), os.path.dirname(os.path.abspath(path)))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error
    except UsageError as error:
        raise error.concerning(path) from None


def parse(text: str, folder: str) -> Definition:
    """Parse a definition whose files are below a directory. Raises UsageError."""
    found = yaml_in.parse(text)
    _known(found, _KEYS, "")
    for name in ("distribution", "release"):
        if not found.get(name):
            raise UsageError(f"The key {name!r} is missing")
    distribution = _text(found, "distribution")
    if distribution not in DISTRIBUTIONS:
        raise UsageError(f"Unknown distribution {distribution!r}: use one of {', '.join(DISTRIBUTIONS)}")
    return Definition(
        distribution=distribution,
        release=_matching(_text(found, "release"), _RELEASE, "release"),
        architecture=_text(found, "architecture"),
        variant=_text(found, "variant") or "default",
        name=_text(found, "name"),
        properties=_map(found, "properties"),
        components=_words(found, "components", _WORD),
        mirror=_uri(_text(found, "mirror"), "mirror"),
        sources=tuple(_source(line) for line in _list(found, "sources")),
        keyring=os.path.join(folder, keyring) if (keyring := _text(found, "keyring")) else "",
        packages=_words(found, "packages", _PACKAGE),
        path_exclude=tuple(_pattern(text, "path-exclude") for text in _list(found, "path-exclude")),
        path_include=tuple(_pattern(text, "path-include") for text in _list(found, "path-include")),
        files=tuple(_file(entry, folder) for entry in _entries(found, "files")),
        commands=tuple(_list(found, "commands")),
        templates=_templates(found, folder) if "templates" in found else _TEMPLATES,
    )


def _known(found: dict[str, Any], keys: Iterable[str], place: str) -> None:
    from utsuwa.cli.parsing.nearest import suggestion

    for name in found:
        if name not in keys:
            raise UsageError(f"Unknown key {name!r}{place}{suggestion(str(name), keys)}")


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, not a {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "mapping" if isinstance(value, dict) else "text"


def _matching(text: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(text):
        raise UsageError(f"Invalid {what} {text!r}")
    return text


def _map(found: dict[str, Any], name: str) -> dict[str, str]:
    value = found.get(name, {})
    if not isinstance(value, dict) or any(not isinstance(item, str) for item in value.values()):
        raise UsageError(f"{name} must be a mapping of names to texts")
    return {str(key): item for key, item in value.items()}


def _list(found: dict[str, Any], name: str) -> list[str]:
    value = found.get(name) or []
    if not isinstance(value, list) or any(not isinstance(item, str) or not item for item in value):
        raise UsageError(f"{name} must be a list of texts")
    return value


def _words(found: dict[str, Any], name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    return tuple(_matching(item, pattern, f"entry of {name}:") for item in _list(found, name))


def _entries(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = found.get(name) or []
    if not isinstance(value, list) or any(not isinstance(item, dict) for item in value):
        raise UsageError(f"{name} must be a list of mappings")
    return value


def _uri(text: str, what: str) -> str:
    """Return a text that can be a URI in sources.list. Raises UsageError."""
    if text and not re.fullmatch(r"(https?|file|copy)://?[!-~]+", text):
        raise UsageError(f"Invalid {what} {text!r}: use a URI such as http://mirror.example.net/debian")
    return text


def _source(line: str) -> str:
    words = line.split()
    if len(words) < 4 or words[0] != "deb" or any(not word.isprintable() for word in words):
        raise UsageError(f"Invalid entry of sources: {line!r}: write 'deb URI SUITE COMPONENT...'")
    _uri(words[1], "URI in sources:")
    return " ".join(words)


def _pattern(text: str, what: str) -> str:
    if not re.fullmatch(r"/[!-~]+", text):
        raise UsageError(f"Invalid entry of {what}: {text!r}: write an absolute path, perhaps with *")
    return text


def _inside(text: str, what: str) -> str:
    """Return the absolute path of a file in the image. Raises UsageError."""
    parts = text.split("/")
    if not text.startswith("/") or text.endswith("/") or not text.isprintable():
        raise UsageError(f"Invalid {what} {text!r}: write the absolute path of a file in the image")
    if any(part in ("", ".", "..") for part in parts[1:]):
        raise UsageError(f"Invalid {what} {text!r}: it must not contain '.', '..' or '//'")
    return text


def _file(entry: dict[str, Any], folder: str) -> File:
    path = _inside(_text(entry, "path"), "path in files:")
    place = f" in files: {path}"
    _known(entry, ("path", "content", "source", "mode", "owner"), place)
    mode = _matching(_text(entry, "mode") or "0644", _MODE, f"mode of {path}:")
    owner = _matching(_text(entry, "owner") or "root:root", _OWNER, f"owner of {path}:")
    return File(path, _content(entry, folder, path), mode, owner)


def _templates(found: dict[str, Any], folder: str) -> tuple[Template, ...]:
    value = found["templates"] or {}
    if not isinstance(value, dict):
        raise UsageError("templates must be a mapping of paths")
    return tuple(_template(path, entry, folder) for path, entry in value.items())


def _template(path: str, entry: Any, folder: str) -> Template:
    _inside(path, "path in templates:")
    if not isinstance(entry, dict):
        raise UsageError(f"The template {path} must be a mapping with 'when' and 'content'")
    _known(entry, ("when", "create_only", "content", "source", "properties"), f" in templates: {path}")
    when = tuple(_list(entry, "when"))
    if not when or any(word not in _TEMPLATE_TIMES for word in when):
        raise UsageError(f"'when' of the template {path} is a list of {', '.join(_TEMPLATE_TIMES)}")
    create_only = yaml_in.switch("create_only", entry.get("create_only", "false"))
    properties = _map(entry, "properties")
    return Template(path, _content(entry, folder, path), when, create_only, properties)


def _content(entry: dict[str, Any], folder: str, path: str) -> bytes:
    if ("content" in entry) == ("source" in entry):
        raise UsageError(f"{path} needs either 'content' or 'source'")
    if "content" in entry:
        return _text(entry, "content").encode()
    return _read_below(folder, _text(entry, "source"))


def _read_below(folder: str, source: str) -> bytes:
    """Return the content of a file below a directory, which no `..` and no link leads out of.

    Raises UsageError.
    """
    parts = source.split("/")
    if not source or source.startswith("/") or ".." in parts:
        raise UsageError(f"Invalid source {source!r}: name a file below the definition's directory")
    names = [part for part in parts if part not in ("", ".")]
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        for number, name in enumerate(names):
            kind = os.O_PATH | os.O_DIRECTORY if number < len(names) - 1 else os.O_RDONLY | os.O_NONBLOCK
            below = os.open(name, kind | os.O_NOFOLLOW, dir_fd=opened)
            os.close(opened)
            opened = below
        return _read(opened, source)
    except OSError as error:
        if _is_link(folder, names):
            raise UsageError(f"The source {source!r} is or passes a symlink: use the file itself") from error
        raise UsageError(f"Cannot read the source {source!r}: {error.strerror}") from error
    finally:
        os.close(opened)


def _read(opened: int, source: str) -> bytes:
    import stat

    if not stat.S_ISREG(os.fstat(opened).st_mode):
        raise UsageError(f"The source {source!r} is not a regular file")
    with open(opened, "rb", closefd=False) as file:
        return file.read()


def _is_link(folder: str, names: list[str]) -> bool:
    """Return why opening failed, for the message only."""
    return any(os.path.islink(os.path.join(folder, *names[: count + 1])) for count in range(len(names)))
