"""Records of `/1.0/instances`; fields are named as in JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from utsuwa.wire.migration import MigrationTarget
from utsuwa.wire.snapshots import Snapshot


class InstanceSource(msgspec.Struct, kw_only=True):
    """The source of a new instance. `type` is `image`, `copy`, `migration` or `none`.

    `source` of a copy is `instance` or `instance/snapshot`, in `project` if given. An image is on another
    server if `server` is given; `project` is the one there. A migration is from another server: in the mode
    `pull`, its operation at the URL `operation` is connected to with `secrets`; in the mode `push`, the other
    server connects with the secrets of the operation here.
    """

    type: str = ""
    alias: str = ""
    fingerprint: str = ""
    properties: dict[str, str] = {}
    server: str = ""
    protocol: str = ""
    certificate: str = ""
    secret: str = ""
    mode: str = ""
    project: str = ""
    source: str = ""
    instance_only: bool = False
    container_only: bool = False
    refresh: bool = False
    operation: str = ""
    secrets: dict[str, str] | None = None
    base_image: str = msgspec.field(default="", name="base-image")
    live: bool = False


class InstanceRebuildPost(msgspec.Struct, kw_only=True):
    """A request for new files of an instance; `type` of the source is `image` or `none`."""

    source: InstanceSource


class InstancesPost(msgspec.Struct, kw_only=True):
    """A request for a new instance; absent `profiles` means `["default"]`, an empty list means none."""

    name: str = ""
    source: InstanceSource = msgspec.field(default_factory=InstanceSource)
    type: str = ""
    architecture: str = ""
    config: dict[str, str] = {}
    devices: dict[str, dict[str, str]] = {}
    profiles: list[str] | None = None
    ephemeral: bool = False
    stateful: bool = False
    description: str = ""
    instance_type: str = ""
    start: bool = False


class InstancePut(msgspec.Struct, kw_only=True):
    """The complete editable part of an instance: absent fields become empty."""

    architecture: str = ""
    config: dict[str, str] = {}
    devices: dict[str, dict[str, str]] = {}
    ephemeral: bool = False
    profiles: list[str] = []
    restore: str = ""
    stateful: bool = False
    description: str = ""


class InstancePatch(msgspec.Struct, kw_only=True):
    """A part of an instance to merge: config by key, devices by name, other fields as given.

    `restore` is known in order to be refused.
    """

    architecture: str | UnsetType = UNSET
    config: dict[str, str] | UnsetType = UNSET
    devices: dict[str, dict[str, str]] | UnsetType = UNSET
    ephemeral: bool | UnsetType = UNSET
    profiles: list[str] | UnsetType = UNSET
    restore: str | UnsetType = UNSET
    description: str | UnsetType = UNSET


class InstancePost(msgspec.Struct, kw_only=True):
    """A rename (`name`), or a move on this server: to a pool, a project, or with another configuration.

    `config` and `devices` are merged, `profiles` replace those of the instance. Without all of these, a
    `migration` offers the instance to another server: to the `target`, or to whoever connects with the
    secrets of the operation. With `planned_downtime`, it is running; the operation stops it when the client
    agrees on the websocket `downtime`, has the other server start it, and deletes it here.
    """

    name: str = ""
    migration: bool = False
    live: bool = False
    allow_inconsistent: bool = False
    planned_downtime: bool = False
    target: MigrationTarget | None = None
    pool: str = ""
    project: str = ""
    instance_only: bool = False
    container_only: bool = False
    config: dict[str, str] = {}
    devices: dict[str, dict[str, str]] = {}
    profiles: list[str] | None = None

    @property
    def moves(self) -> bool:
        """Whether more than the name changes."""
        return bool(self.pool or self.project or self.config or self.devices) or self.profiles is not None


class InstanceStatePut(msgspec.Struct, kw_only=True):
    """`action`: start, stop, restart, freeze or unfreeze; `timeout` in seconds, -1 for no limit."""

    action: str
    timeout: int = -1
    force: bool = False
    stateful: bool = False


class BulkState(msgspec.Struct, kw_only=True):
    state: InstanceStatePut


class Instance(msgspec.Struct, kw_only=True):
    """An instance without its state; `created_at` and `last_used_at` in RFC 3339, UTC."""

    architecture: str
    config: dict[str, str]
    devices: dict[str, dict[str, str]]
    ephemeral: bool
    profiles: list[str]
    stateful: bool
    description: str
    created_at: str
    expanded_config: dict[str, str]
    expanded_devices: dict[str, dict[str, str]]
    name: str
    status: str
    status_code: int
    last_used_at: str
    location: str
    type: str
    project: str


class StateCpu(msgspec.Struct, kw_only=True, gc=False):
    usage: int = 0
    """Nanoseconds."""


class StateDisk(msgspec.Struct, kw_only=True, gc=False):
    usage: int = 0
    """Bytes."""


class StateMemory(msgspec.Struct, kw_only=True, gc=False):
    """Bytes."""

    usage: int = 0
    usage_peak: int = 0
    swap_usage: int = 0
    swap_usage_peak: int = 0


class NetworkAddress(msgspec.Struct, kw_only=True, gc=False):
    family: str
    address: str
    netmask: str
    scope: str


class NetworkCounters(msgspec.Struct, kw_only=True, gc=False):
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    errors_received: int = 0
    errors_sent: int = 0
    packets_dropped_outbound: int = 0
    packets_dropped_inbound: int = 0


class StateNetwork(msgspec.Struct, kw_only=True, gc=False):
    addresses: list[NetworkAddress]
    counters: NetworkCounters
    hwaddr: str
    host_name: str
    mtu: int
    state: str
    type: str


class InstanceState(msgspec.Struct, kw_only=True, gc=False):
    """The current resource usage of an instance; all zero if it is stopped."""

    status: str
    status_code: int
    disk: dict[str, StateDisk] = {}
    memory: StateMemory = msgspec.field(default_factory=StateMemory)
    network: dict[str, StateNetwork] | None = None
    pid: int = 0
    processes: int = 0
    cpu: StateCpu = msgspec.field(default_factory=StateCpu)


class InstanceFull(Instance, kw_only=True):
    """An instance with everything below it, as returned for recursion=2."""

    backups: list[Any] | None
    state: InstanceState
    snapshots: list[Snapshot] | None
