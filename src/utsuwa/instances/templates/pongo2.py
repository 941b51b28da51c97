"""Translation of templates from Pongo2's syntax to Jinja2's."""

from __future__ import annotations

import re

from utsuwa.core.errors import InvalidImage

_OPENING = re.compile(r"\{[{%#]")
_CLOSINGS = {"{{": "}}", "{%": "%}", "{#": "#}"}
_COMMENT = re.compile(r"-?\s*comment\b")
_END_COMMENT = re.compile(r"\{%-?\s*endcomment\s*-?%\}")
_STRING = re.compile(r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')", re.DOTALL)
_ARGUMENT = re.compile(r"(\|\s*[A-Za-z_]\w*)\s*:\s*(-?[A-Za-z0-9_.]+|\x00[0-9]+\x00)")
_AUTOESCAPE = re.compile(r"-?\s*(?:autoescape\s+(?:on|off)|endautoescape)\s*-?\Z")
_EQUAL = re.compile(r"(-?\s*)if(not)?equal\s+(\S+)\s+(\S+)(\s*-?)\Z")
_END_EQUAL = re.compile(r"(-?\s*)endif(?:not)?equal(\s*-?)\Z")
_EMPTY = re.compile(r"(-?\s*)empty(\s*-?)\Z")
LOOP_NAMES = {"Counter": "index", "Counter0": "index0", "First": "first", "Last": "last"}


def translate(source: str) -> str:
    """Translate Pongo2's syntax: `|filter:argument`, `&&`, `||`, `!`, `ifequal`, `forloop`, `empty`,
    `comment`.

    `autoescape` is removed, as nothing is escaped for HTML. Runs in linear time for any source.
    """
    parts: list[str] = []
    at = 0
    while opening := _OPENING.search(source, at):
        parts.append(source[at : opening.start()])
        end = _end(source, opening.end(), opening[0])
        if end < 0:
            raise InvalidImage(f"{opening[0]!r} is not closed")
        at = end + 2
        body = source[opening.end() : end]
        if opening[0] == "{%" and _COMMENT.match(body):
            closing = _END_COMMENT.search(source, at)
            if closing is None:
                raise InvalidImage("a comment is not closed")
            at = closing.end()
        elif opening[0] != "{#":
            parts.append(_translate_tag(opening[0], body))
    return "".join([*parts, source[at:]])


def _end(source: str, at: int, opening: str) -> int:
    """Return the end of the content of a tag that begins at `at`, ignoring quoted strings; -1 if unclosed."""
    closing, quote_mark = _CLOSINGS[opening], ""
    if opening == "{#":
        return source.find(closing, at)
    while at < len(source):
        char = source[at]
        if quote_mark:
            at += char == "\\"
            quote_mark = "" if char == quote_mark else quote_mark
        elif char in "\"'":
            quote_mark = char
        elif source.startswith(closing, at):
            return at
        at += 1
    return -1


def _translate_tag(opening: str, body: str) -> str:
    strings: list[str] = []

    def extract(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f"\0{len(strings) - 1}\0"

    body = _STRING.sub(extract, body.replace("\0", ""))
    if opening == "{%":
        if _AUTOESCAPE.match(body):
            return ""
        body = _EQUAL.sub(lambda m: f"{m[1]}if {m[3]} {'!=' if m[2] else '=='} {m[4]}{m[5]}", body)
        body = _END_EQUAL.sub(r"\1endif\2", body)
        body = _EMPTY.sub(r"\1else\2", body)
    body = _ARGUMENT.sub(r"\1(\2)", body)
    body = re.sub(r"\bforloop\.(Counter0?|First|Last)\b", lambda m: f"loop.{LOOP_NAMES[m[1]]}", body)
    body = body.replace("&&", " and ").replace("||", " or ")
    body = re.sub(r"!(?!=)", " not ", body)
    body = re.sub(r"\0([0-9]+)\0", lambda found: strings[int(found[1])], body)
    return f"{opening}{body}{_CLOSINGS[opening]}"
