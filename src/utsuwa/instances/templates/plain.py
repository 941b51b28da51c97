"""Rendering of the plainest templates, without Jinja2.

Most images have no others than `{{ container.name }}` among text, look-ups of config keys for cloud-init, and
texts for which a value is compared with another one. A daemon that never sees more need not load Jinja2: that
takes 5 MiB, and a tenth of a second of processor time for the first template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_TEXT = r"(?:\"[^\"\\{}\r\0]*\"|'[^'\\{}\r\0]*')"
_VALUE = (
    rf"(?:(?P<name>{_NAME})"
    rf"|config_get\(\s*(?P<key>{_TEXT})\s*,\s*(?:(?P<default>{_TEXT})|(?P<default_name>{_NAME}))\s*\))"
)
_TAG = re.compile(
    rf"\{{(?P<opening>[{{%])(?P<before>-?)(?P<body>(?:{_TEXT}|[^\"'{{}}%])*?)(?P<after>-?)(?P<closing>[}}%])\}}"
)
_OUTPUT = re.compile(rf"\s*{_VALUE}\s*", re.ASCII)
_IF = re.compile(rf"\s*if\s+{_VALUE}(?:\s*(?P<operator>==|!=)\s*(?P<other>{_TEXT}))?\s*", re.ASCII)
_BRANCH = re.compile(r"\s*(else|endif)\s*", re.ASCII)
_SPACE = re.compile(r"\s*")
_LEFT = re.compile(r"\{[{%#]|[\r\0]")
"""What templates consist of besides; line ends are changed by Jinja2."""
_MAX_NESTING = 8


MAX_OUTPUT = 8 << 20
"""The maximum number of characters of a template's output: more than a config key can have."""


LINE_ENDS = "\r\n"
"""What `config_get` omits at the end of a value, as with LXD: values often come from files."""


class _NotPlain(Exception):
    """A template needs Jinja2."""


def render(source: str, values: Mapping[str, Any]) -> str | None:
    """Render a template as `rendering.render` does; None if it is not as plain as that."""
    try:
        return _Rendering(source, values).text()
    except _NotPlain:
        return None


class _Rendering:
    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self._source = source
        self._values = values
        self._parts: list[str] = []
        self._room = MAX_OUTPUT - len(source)
        """The number of characters that values may still have."""
        self._conditions: list[tuple[bool, bool]] = []
        """Those around the current tag: whether it holds, and whether its `else` has been passed."""

    def text(self) -> str:
        """Return the output. Raises _NotPlain."""
        at = 0
        for tag in _TAG.finditer(self._source):
            _check(self._source[at : tag.start() + 1])  # with its first brace, which may be the second of two
            text = self._source[at : tag.start()]
            self._add(text.rstrip() if tag["before"] else text)
            self._take(tag)
            at = tag.end()
            if tag["after"]:
                at = _end_of_space(self._source, at)
        if self._conditions:
            raise _NotPlain
        _check(self._source[at:])
        return "".join([*self._parts, self._source[at:]])

    def _add(self, text: str) -> None:
        if self._holds():
            self._parts.append(text)

    def _holds(self) -> bool:
        return all(holds for holds, _ in self._conditions)

    def _take(self, tag: re.Match[str]) -> None:
        match tag["opening"], tag["closing"]:
            case "{", "}":
                self._output(_whole(_OUTPUT, tag["body"]))
            case "%", "%":
                if branch := _BRANCH.fullmatch(tag["body"]):
                    self._branch(branch[1])
                else:
                    self._if(_whole(_IF, tag["body"]))
            case _:
                raise _NotPlain

    def _output(self, wanted: re.Match[str]) -> None:
        text = self._value(wanted)
        if text is not None and self._holds():
            self._room -= len(text)
            if self._room < 0:
                raise _NotPlain
            self._parts.append(text)

    def _if(self, condition: re.Match[str]) -> None:
        if len(self._conditions) == _MAX_NESTING:
            raise _NotPlain
        value = self._value(condition)
        if condition["operator"] is None:
            holds = bool(value)
        else:
            holds = (value == condition["other"][1:-1]) == (condition["operator"] == "==")
        self._conditions.append((holds, False))

    def _branch(self, word: str) -> None:
        if not self._conditions:
            raise _NotPlain
        holds, alternative = self._conditions.pop()
        if word == "else":
            if alternative:
                raise _NotPlain
            self._conditions.append((not holds, True))

    def _value(self, wanted: re.Match[str]) -> str | None:
        """Return a value, None for a key that is not there."""
        if wanted["key"] is None:
            return self._look_up(wanted["name"])
        config: Mapping[str, str] = self._values["config"]
        key, default = wanted["key"][1:-1], wanted["default"]
        other = self._look_up(wanted["default_name"]) if default is None else default[1:-1]
        return config[key].rstrip(LINE_ENDS) if key in config else other

    def _look_up(self, name: str) -> str | None:
        """Return the value of a dotted name."""
        first, *keys = name.split(".")
        if first not in self._values:
            raise _NotPlain
        found = self._values[first]
        for key in keys:
            if not isinstance(found, Mapping):
                raise _NotPlain
            if key not in found:
                return None
            found = found[key]
        if not isinstance(found, str):
            raise _NotPlain
        return found


def _check(text: str) -> None:
    if _LEFT.search(text):
        raise _NotPlain


def _whole(pattern: re.Pattern[str], body: str) -> re.Match[str]:
    """Match the whole of a tag."""
    found = pattern.fullmatch(body)
    if found is None:
        raise _NotPlain
    return found


def _end_of_space(source: str, at: int) -> int:
    found = _SPACE.match(source, at)
    return found.end() if found else at
