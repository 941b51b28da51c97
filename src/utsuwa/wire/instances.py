"""Records of `/1.0/instances`; fields are named as in JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class InstanceSource(msgspec.Struct, kw_only=True):
    """The source of a new instance. `type` is `image` or `none`; there is no `copy` or `migration` yet."""

    type: str = ""
    alias: str = ""
    fingerprint: str = ""
    properties: dict[str, str] = {}
    server: str = ""
    protocol: str = ""
    secret: str = ""
    project: str = ""


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
    """A part of an instance to merge: config by key, devices by name, other fields as given."""

    architecture: str | UnsetType = UNSET
    config: dict[str, str] | UnsetType = UNSET
    devices: dict[str, dict[str, str]] | UnsetType = UNSET
    ephemeral: bool | UnsetType = UNSET
    profiles: list[str] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class InstancePost(msgspec.Struct, kw_only=True):
    """A rename (`name`), or a move, which is not supported yet (`migration`, `pool`, `project`)."""

    name: str = ""
    migration: bool = False
    pool: str = ""
    project: str = ""


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


class StateCpu(msgspec.Struct, kw_only=True):
    usage: int = 0
    """Nanoseconds."""


class StateDisk(msgspec.Struct, kw_only=True):
    usage: int = 0
    """Bytes."""


class StateMemory(msgspec.Struct, kw_only=True):
    """Bytes."""

    usage: int = 0
    usage_peak: int = 0
    swap_usage: int = 0
    swap_usage_peak: int = 0


class NetworkAddress(msgspec.Struct, kw_only=True):
    family: str
    address: str
    netmask: str
    scope: str


class NetworkCounters(msgspec.Struct, kw_only=True):
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    errors_received: int = 0
    errors_sent: int = 0
    packets_dropped_outbound: int = 0
    packets_dropped_inbound: int = 0


class StateNetwork(msgspec.Struct, kw_only=True):
    addresses: list[NetworkAddress]
    counters: NetworkCounters
    hwaddr: str
    host_name: str
    mtu: int
    state: str
    type: str


class InstanceState(msgspec.Struct, kw_only=True):
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
    snapshots: list[Any] | None
