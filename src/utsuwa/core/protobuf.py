"""Encoding and decoding of protobuf messages: those of migrations, and what CRIU's images consist of.

A message is a dataclass with a table of its fields. Only varints, strings and nested messages occur in those
of migrations; `fields` and `encoded` take any. Unknown fields are skipped, as the format requires. The size
of what is decoded is for the caller to limit: that of a websocket message, or of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK: Final = 2**64 - 1
_MAX_FIELDS: Final = 500_000
"""Fields of one message: each takes memory, however small it is."""


class InvalidMessage(ValueError):
    """What was received is not a message of the expected type."""


@dataclass(frozen=True)
class Field:
    """One field: its attribute, its type, and whether it may occur several times, in a list."""

    name: str
    kind: Literal["bool", "int", "string"] | type[Message]
    repeated: bool = False


class Message:
    """The base of messages, which are dataclasses; an absent field is None, an absent repeated one is []."""

    FIELDS: ClassVar[Mapping[int, Field]] = {}

    def encode(self) -> bytes:
        out = bytearray()
        for number, field in self.FIELDS.items():
            value = getattr(self, field.name)
            values = value if field.repeated else [] if value is None else [value]
            for one in values:
                _append(out, number, field, one)
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises InvalidMessage."""
        values: dict[str, Any] = {f.name: [] for f in cls.FIELDS.values() if f.repeated}
        for count, (number, wire_type, value) in enumerate(fields(memoryview(data))):
            if count >= _MAX_FIELDS:
                raise InvalidMessage("the message has too many fields")
            field = cls.FIELDS.get(number)
            if field is None:
                continue
            one = _value(field, wire_type, value)
            if field.repeated:
                values[field.name].append(one)
            else:
                values[field.name] = one
        return cls(**values)


def _append(out: bytearray, number: int, field: Field, value: Any) -> None:
    if field.kind in ("bool", "int"):
        out += encoded(number, _VARINT, int(value))
        return
    out += encoded(number, _BYTES, value.encode())


def encoded(number: int, wire_type: int, value: int | bytes) -> bytes:
    """Return a field as `fields` yields it."""
    key = _varint(number << 3 | wire_type)
    if not isinstance(value, int):
        return key + _varint(len(value)) + value
    if wire_type == _VARINT:
        return key + _varint(value & _MASK)
    return key + value.to_bytes(4 if wire_type == _FIXED32 else 8, "little")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _value(field: Field, wire_type: int, value: int | memoryview) -> Any:
    if isinstance(value, int):
        if field.kind not in ("bool", "int") or wire_type != _VARINT:
            raise InvalidMessage(f"the field {field.name} has another type")
        if field.kind == "bool":
            return bool(value)
        return value - 2**64 if value >= 2**63 else value
    if isinstance(field.kind, type):
        return field.kind.decode(bytes(value))
    if field.kind != "string":
        raise InvalidMessage(f"the field {field.name} has another type")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidMessage(f"the field {field.name} is not valid text") from None


def fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield number, wire type and value of all fields. Raises InvalidMessage."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise InvalidMessage("a field has the number 0")
        if wire_type == _VARINT:
            value, at = _read_varint(data, at)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            size, at = _read_varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise InvalidMessage(f"a field has the unknown wire type {wire_type}")
        if size > len(data) - at:
            raise InvalidMessage("the message is cut off")
        part, at = data[at : at + size], at + size
        yield number, wire_type, int.from_bytes(part, "little") if wire_type != _BYTES else part


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise InvalidMessage("the message is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
        if shift > 63:
            raise InvalidMessage("a number is too large")
