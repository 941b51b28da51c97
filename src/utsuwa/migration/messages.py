"""The messages on the control websocket of a migration, with the numbers of LXD's definition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from utsuwa.core.protobuf import Field, Message

RSYNC = 0
"""The type of transfer that every server has: files by rsync."""
INDEX_VERSION = 1
"""The version of the index: a JSON document with the stored configuration, which precedes the files."""
LIVE = 0
"""The value of `criu` for a running instance with its running state, as CRIU saves it."""
NOT_LIVE = 2
"""The value of `criu` for a running instance without its running state: a second pass follows."""

ANOTHER = b"another"
"""What precedes each pass of the tree after the second one in a move with the running state; the last one is
followed by an empty document. A pass that is sent while the running state is saved is void if that fails."""


@dataclass
class IdRangeMessage(Message):
    """A range of the id map with which the sender's files are owned."""

    isuid: bool | None = None
    isgid: bool | None = None
    hostid: int | None = None
    nsid: int | None = None
    maprange: int | None = None

    FIELDS: ClassVar = {
        1: Field("isuid", "bool"),
        2: Field("isgid", "bool"),
        3: Field("hostid", "int"),
        4: Field("nsid", "int"),
        5: Field("maprange", "int"),
    }


@dataclass
class KeyValue(Message):
    key: str | None = None
    value: str | None = None

    FIELDS: ClassVar = {1: Field("key", "string"), 2: Field("value", "string")}


@dataclass
class DeviceMessage(Message):
    name: str | None = None
    config: list[KeyValue] = field(default_factory=list)

    FIELDS: ClassVar = {1: Field("name", "string"), 2: Field("config", KeyValue, repeated=True)}


@dataclass
class SnapshotMessage(Message):
    """A snapshot of an instance, or of a custom volume with its config only. Dates in seconds, UTC."""

    name: str | None = None
    config: list[KeyValue] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    ephemeral: bool | None = None
    devices: list[DeviceMessage] = field(default_factory=list)
    architecture: int | None = None
    stateful: bool | None = None
    creation_date: int | None = None
    expiry_date: int | None = None

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("config", KeyValue, repeated=True),
        3: Field("profiles", "string", repeated=True),
        4: Field("ephemeral", "bool"),
        5: Field("devices", DeviceMessage, repeated=True),
        6: Field("architecture", "int"),
        7: Field("stateful", "bool"),
        8: Field("creation_date", "int"),
        10: Field("expiry_date", "int"),
    }


@dataclass
class RsyncFeatures(Message):
    """The options of rsync that both sides have to agree on."""

    xattrs: bool | None = None
    delete: bool | None = None
    compress: bool | None = None
    bidirectional: bool | None = None

    FIELDS: ClassVar = {
        1: Field("xattrs", "bool"),
        2: Field("delete", "bool"),
        3: Field("compress", "bool"),
        4: Field("bidirectional", "bool"),
    }


@dataclass
class SavedStates(Message):
    """The saved running states that follow the trees; in an answer, those of them that are wanted."""

    name: str | None = None
    """The name of the instance at its source."""
    snapshots: list[str] = field(default_factory=list)
    own: bool | None = None
    """Whether that of the instance itself does."""

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("snapshots", "string", repeated=True),
        3: Field("own", "bool"),
    }


@dataclass
class LiveTerms(Message):
    """How a running state is transferred between two servers that are this program."""

    name: str | None = None
    """The name of the instance at its source."""
    operation: str | None = None
    """The id of the operation with which the side that is connected to is asked what has become of a move."""
    secret: str | None = None
    """The secret of that operation's websocket."""

    FIELDS: ClassVar = {
        1: Field("name", "string"),
        2: Field("operation", "string"),
        3: Field("secret", "string"),
    }


@dataclass
class OwnFeatures(Message):
    """What only this program has: in a field whose number no other one uses, so that others skip it."""

    links: bool | None = None
    """Hard links and access control lists are transferred by rsync as well."""
    stream: bool | None = None
    """The first tree is not transferred by rsync, but as an archive."""
    layers: bool | None = None
    """Layers are transferred, each once, in place of trees."""
    live: LiveTerms | None = None
    """The running state follows, in the format of `images`."""
    handover: bool | None = None
    """A running instance is stopped before the last of three passes, and then started by the target."""
    states: SavedStates | None = None
    """Saved running states follow the first pass of the tree, or the layers."""
    zeros: bool | None = None
    """Zero bytes of files are counted in place of being sent."""

    FIELDS: ClassVar = {
        1: Field("links", "bool"),
        5: Field("handover", "bool"),
        6: Field("states", SavedStates),
        7: Field("stream", "bool"),
        8: Field("layers", "bool"),
        9: Field("zeros", "bool"),
        20: Field("live", LiveTerms),
    }


@dataclass
class Header(Message):
    """The first message of both sides: the offer of the source, and what the target chose of it."""

    fs: int | None = None
    criu: int | None = None
    idmap: list[IdRangeMessage] = field(default_factory=list)
    snapshot_names: list[str] = field(default_factory=list)
    snapshots: list[SnapshotMessage] = field(default_factory=list)
    rsync: RsyncFeatures | None = None
    refresh: bool | None = None
    volume_size: int | None = None
    """Bytes of a block volume. Incus crashes if it is missing in the offer of a custom volume."""
    index_version: int | None = None
    own: OwnFeatures | None = None

    FIELDS: ClassVar = {
        1: Field("fs", "int"),
        2: Field("criu", "int"),
        3: Field("idmap", IdRangeMessage, repeated=True),
        4: Field("snapshot_names", "string", repeated=True),
        5: Field("snapshots", SnapshotMessage, repeated=True),
        8: Field("rsync", RsyncFeatures),
        9: Field("refresh", "bool"),
        11: Field("volume_size", "int"),
        13: Field("index_version", "int"),
        7391: Field("own", OwnFeatures),
    }


@dataclass
class Control(Message):
    """The verdict of either side: the target's ends the migration, the source's can only be a failure.

    At the handover of an instance there are three: the target has everything, it may start the instance (the
    source's), and the instance runs there. The decision on a move with the running state is followed by the
    source's confirmation, and that by another one of a target that was connected to.
    """

    success: bool | None = None
    message: str | None = None

    FIELDS: ClassVar = {1: Field("success", "bool"), 2: Field("message", "string")}
