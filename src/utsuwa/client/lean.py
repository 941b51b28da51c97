"""The C parts of `json`, `socket` and `signal`, as their Python parts are slow to import.

`re` and `enum`, which those load, take longer than everything else that a local `utsuwa list` does in the
client. If an interpreter lacks one of the C modules, the full module is used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from socket import AF_UNIX
    from socket import socket as Socket  # noqa: N812 - a class
    from typing import Any
else:
    try:
        from _socket import AF_UNIX
        from _socket import socket as Socket
    except ImportError:
        from socket import AF_UNIX
        from socket import socket as Socket
    try:
        import _signal as signal
    except ImportError:
        import signal

__all__ = ["AF_UNIX", "Socket", "dumps", "loads", "signal"]


class _Decoding:
    """The settings of a JSON decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def loads(text: str) -> Any:
    """Parse JSON as `json.loads` does. Raises ValueError."""
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)
    settings: Any = _Decoding
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        value, end = make_scanner(settings)(text, start)
    except StopIteration as stop:
        raise ValueError(f"no JSON at character {stop.value}") from None
    if text[end:].strip(" \t\r\n"):
        raise ValueError(f"more than JSON at character {end}")
    return value


def dumps(value: Any) -> str:
    """Format as `json.dumps` does without options. Raises TypeError."""
    try:
        from _json import encode_basestring_ascii, make_encoder
    except ImportError:
        import json

        return json.dumps(value)
    encode = make_encoder({}, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    return "".join(encode(value, 0))


def _refuse(value: object) -> None:
    raise TypeError(f"{type(value).__name__} is not JSON serializable")
