"""The index: what is stored of a volume and its snapshots, as the JSON document that precedes the files.

LXD and Incus write the names of its outer fields in their own ways, and read them in any.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from utsuwa.core import clock
from utsuwa.core.errors import InvalidRequest, UtsuwaError
from utsuwa.db.volume_snapshots import VolumeSnapshotRow
from utsuwa.wire.codec import InvalidBody, check_depth


class _Snapshot(msgspec.Struct):
    name: str = ""
    config: dict[str, str] | None = None
    description: str = ""
    expires_at: str | None = None
    created_at: str | None = None


class _Volume(msgspec.Struct):
    config: dict[str, str] | None = None
    description: str = ""


@dataclass(frozen=True)
class OfSnapshot:
    """What an index says of a snapshot."""

    config: dict[str, str]
    description: str
    created_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True)
class Index:
    """What an index says of a volume."""

    config: dict[str, str] = field(default_factory=dict)
    description: str = ""
    snapshots: Mapping[str, OfSnapshot] = field(default_factory=dict)


def encode(
    kind: str, name: str, config: Mapping[str, str], description: str, snapshots: Iterable[VolumeSnapshotRow]
) -> bytes:
    """Return the index of a volume of the type `container` or `custom`."""
    volume = {
        "name": name,
        "type": kind,
        "content_type": "filesystem",
        "config": dict(config),
        "description": description,
    }
    listed = [
        {
            "name": row.name,
            "config": row.config,
            "description": row.description,
            "content_type": "filesystem",
            "created_at": clock.to_wire(row.created_at),
            "expires_at": clock.to_wire(row.expires_at),
        }
        for row in snapshots
    ]
    return msgspec.json.encode({"config": {"Volume": volume, "VolumeSnapshots": listed}})


def decode(data: bytes) -> Index:
    """Raises InvalidRequest."""
    try:
        check_depth(data)
        found = _field(_field(msgspec.json.decode(data), "config") or {}, "volume")
        volume = msgspec.convert(found or {}, _Volume, strict=False)
        listed = _field(_field(msgspec.json.decode(data), "config") or {}, "volumesnapshots") or []
        snapshots = msgspec.convert(listed, list[_Snapshot], strict=False)
        return Index(
            volume.config or {}, volume.description, {one.name: _of_snapshot(one) for one in snapshots}
        )
    except (InvalidBody, msgspec.MsgspecError, UtsuwaError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"The other server sent an invalid index: {str(error)[:200]}") from error


def _of_snapshot(found: _Snapshot) -> OfSnapshot:
    return OfSnapshot(found.config or {}, found.description, _time(found.created_at), _time(found.expires_at))


def _time(text: str | None) -> datetime | None:
    return clock.from_wire(text) if text else None


def _field(record: Any, name: str) -> Any:
    """Return a field of a decoded object, whatever the case of its name and its underscores."""
    return next((value for key, value in record.items() if key.replace("_", "").lower() == name), None)


def answer(*, refresh: bool) -> bytes:
    """Return the confirmation of an index, in the words of LXD."""
    return msgspec.json.encode({"StatusCode": 200, "Error": "", "Refresh": refresh})


def check_answer(data: bytes) -> None:
    """Raises InvalidRequest if an index was not accepted."""
    try:
        found = msgspec.json.decode(data)
        accepted = found["StatusCode"] == 200
        reason = str(found.get("Error") or "no reason")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, ValueError):
        accepted, reason = False, "it sent something else than a confirmation"
    if not accepted:
        raise InvalidRequest(f"The other server did not accept the files: {reason[:300]}")
