"""YAML output as in the `lxc` client: block style, quotes only for text that would be parsed as another type.

Only supports plain data of the API, and loads in a tenth of the time of PyYAML.
"""

from __future__ import annotations

import re

from utsuwa.cli.output.records import Time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Words that YAML 1.1 parses as true, false, null or a merge key.
_WORDS = frozenset(
    ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF")
    + ("true", "True", "TRUE", "false", "False", "FALSE", "~", "null", "Null", "NULL", "<<")
    + (".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF", ".nan", ".NaN", ".NAN")
)
_NUMBER = re.compile(
    r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)"
)
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}(?:[Tt ].*)?")
_INDICATORS = frozenset("#,[]{}&*!|>'\"%@`")


def dump(value: Any) -> str:
    """Format a record, a list or a scalar, with a final line break."""
    if isinstance(value, dict | list) and value:
        return "".join(line + "\n" for line in _lines(value))
    return _scalar(value, 0) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [line for key, part in value.items() for line in _entry(f"{_key(key)}:", part)]
    return [line for part in value for line in _item(part)]


def _entry(head: str, value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        return [head, *("  " + line for line in _lines(value))]
    if isinstance(value, list) and value:
        return [head, *_lines(value)]
    first, *rest = _scalar(value, 2).split("\n")
    return [f"{head} {first}", *rest]


def _item(value: Any) -> list[str]:
    if isinstance(value, dict | list) and value:
        first, *rest = _lines(value)
        return [f"- {first}", *("  " + line for line in rest)]
    first, *rest = _scalar(value, 2).split("\n")
    return [f"- {first}", *rest]


def _key(key: str) -> str:
    return _text(key, 0) if "\n" not in key else _double(key)


def _scalar(value: Any, indent: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Time):
        return str(value)
    if isinstance(value, str):
        return _text(value, indent)
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, list):
        return "[]"
    return str(value)


def _text(text: str, indent: int) -> str:
    if _means_more(text):
        return _double(text)
    if not all(c.isprintable() or c == "\n" for c in text):
        return _double(text)
    if "\n" in text:
        return _block(text, indent)
    return text if _is_plain(text) else "'" + text.replace("'", "''") + "'"


def _means_more(text: str) -> bool:
    """Return whether it would be parsed as another type than text."""
    if text == "" or text in _WORDS:
        return True
    return bool(_NUMBER.fullmatch(text) or _DATE.fullmatch(text))


def _is_plain(text: str) -> bool:
    first = text[0]
    if first in _INDICATORS or text[0] == " " or text[-1] == " " or text.startswith(("---", "...")):
        return False
    if text == "=":  # YAML 1.1 has a type of its own for this
        return False
    if first in "-?:" and (len(text) == 1 or text[1] == " "):
        return False
    return ": " not in text and " #" not in text and not text.endswith(":")


def _block(text: str, indent: int) -> str:
    """Format as `|` and lines, preserving the number of final line breaks."""
    if text.strip("\n") == "" or text[0] == " " or text.startswith("\n"):
        return _double(text)
    body = text.rstrip("\n")
    ends = len(text) - len(body)
    mark = "|-" if ends == 0 else "|" if ends == 1 else "|+"
    lines = (body + "\n" * max(ends - 1, 0)).split("\n")
    margin = " " * (indent or 2)  # required, even if the text is the entire document
    return "\n".join([mark, *(margin + line if line else "" for line in lines)])


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0", "\x1b": "\\e"}
_ESCAPES |= {"\a": "\\a", "\b": "\\b", "\v": "\\v", "\f": "\\f"}


def _double(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
