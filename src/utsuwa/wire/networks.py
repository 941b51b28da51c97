"""Records of `/1.0/networks`; fields are named as in JSON."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class NetworkPut(msgspec.Struct, kw_only=True):
    """The editable part of a network: absent fields become empty."""

    config: dict[str, str] = {}
    description: str = ""


class NetworkPatch(msgspec.Struct, kw_only=True):
    """A part to merge: config by key, an empty value removes one."""

    config: dict[str, str] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class NetworksPost(NetworkPut, kw_only=True):
    """A new network. The name defaults to the first free `utsuwabrN`; the type is `bridge`."""

    name: str = ""
    type: str = ""


class NetworkPost(msgspec.Struct, kw_only=True):
    """A new name."""

    name: str = ""


class Network(msgspec.Struct, kw_only=True):
    """A network, or an interface of the host that the daemon does not manage (`status` is empty then).

    `status` of a managed one is `Created`, `Pending` while it is being created, or `Unavailable`.
    """

    config: dict[str, str]
    description: str
    name: str
    type: str
    used_by: list[str]
    managed: bool
    status: str
    locations: list[str] | None
    """None for interfaces that are not managed."""
    project: str


class NetworkLease(msgspec.Struct, kw_only=True):
    """An address in use; `type` is `static`, `dynamic` or, for the bridge's own, `gateway`."""

    hostname: str
    hwaddr: str
    address: str
    type: str
    location: str


class NetworkStateAddress(msgspec.Struct, kw_only=True):
    """`netmask` is the prefix length; `scope` is `global`, `link` or `local`."""

    family: str
    address: str
    netmask: str
    scope: str


class NetworkStateCounters(msgspec.Struct, kw_only=True):
    """Bytes and packets since the interface was created."""

    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0


class NetworkStateBridge(msgspec.Struct, kw_only=True):
    """`forward_delay` is in hundredths of a second; `upper_devices` are the bridge's ports."""

    id: str
    stp: bool
    forward_delay: int
    vlan_default: int
    vlan_filtering: bool
    upper_devices: list[str]


class NetworkStateVlan(msgspec.Struct, kw_only=True):
    """The parent interface of a VLAN, and its id."""

    lower_device: str
    vid: int


class NetworkState(msgspec.Struct, kw_only=True):
    """The state of an interface; `bond` and `ovn` are always null."""

    addresses: list[NetworkStateAddress]
    counters: NetworkStateCounters
    hwaddr: str
    mtu: int
    state: str
    type: str
    bond: None = None
    bridge: NetworkStateBridge | None = None
    vlan: NetworkStateVlan | None = None
    ovn: None = None
