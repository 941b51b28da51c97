"""Rendering of the plainest templates, without Jinja2.

Most images have no others than `{{ container.name }}` among text, and look-ups of config keys for cloud-init.
A daemon that never sees more need not load Jinja2, which takes 5 MiB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_TEXT = r"\"[^\"\\{}]*\"|'[^'\\{}]*'"
_TAG = re.compile(
    rf"\{{\{{\s*(?:({_NAME})|config_get\(\s*({_TEXT})\s*,\s*(?:({_TEXT})|({_NAME}))\s*\))\s*\}}\}}", re.ASCII
)
_LEFT = re.compile(r"\{[{%#]|[\r\0]")
"""What templates consist of besides; line ends are changed by Jinja2."""


MAX_OUTPUT = 8 << 20
"""The maximum number of characters of a template's output: more than a config key can have."""


LINE_ENDS = "\r\n"
"""What `config_get` omits at the end of a value, as with LXD: values often come from files."""


class _NotPlain(Exception):
    """A template needs Jinja2."""


def render(source: str, values: Mapping[str, Any]) -> str | None:
    """Render a template as `rendering.render` does; None if it is not as plain as that."""
    parts: list[str] = []
    at = size = 0
    try:
        for tag in _TAG.finditer(source):
            _check(source[at : tag.start() + 1])  # with the tag's first brace, which may be the second of two
            parts += (source[at : tag.start()], _value(tag, values))
            at = tag.end()
            size += len(parts[-1])
            if size > MAX_OUTPUT - len(source):
                raise _NotPlain
        _check(source[at:])
    except _NotPlain:
        return None
    return "".join([*parts, source[at:]])


def _check(text: str) -> None:
    if _LEFT.search(text):
        raise _NotPlain


def _value(tag: re.Match[str], values: Mapping[str, Any]) -> str:
    name, key, default, default_name = tag.groups()
    if key is None:
        return _look_up(name, values)
    config: Mapping[str, str] = values["config"]
    if key[1:-1] in config:
        return config[key[1:-1]].rstrip(LINE_ENDS)
    return default[1:-1] if default is not None else _look_up(default_name, values)


def _look_up(name: str, values: Mapping[str, Any]) -> str:
    """Return the value of a dotted name, empty for a key that is not there."""
    first, *keys = name.split(".")
    if first not in values:
        raise _NotPlain
    found = values[first]
    for key in keys:
        if not isinstance(found, Mapping):
            raise _NotPlain
        if key not in found:
            return ""
        found = found[key]
    if not isinstance(found, str):
        raise _NotPlain
    return str(found)
