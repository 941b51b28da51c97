"""Records of `/1.0/resources`, the host's hardware, in LXD's format.

Every part is present, because clients read them all; those that this version does not inspect are empty.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Thread(msgspec.Struct, kw_only=True):
    """One hardware thread; `id` is the kernel's processor number."""

    id: int
    thread: int
    numa_node: int
    online: bool
    isolated: bool


class Core(msgspec.Struct, kw_only=True):
    """One core of a socket."""

    core: int
    die: int
    threads: list[Thread]


class Socket(msgspec.Struct, kw_only=True):
    """One processor package."""

    socket: int
    name: str
    vendor: str
    cores: list[Core]


class CPU(msgspec.Struct, kw_only=True):
    """`total` is the number of threads that are online."""

    architecture: str
    sockets: list[Socket]
    total: int


class Memory(msgspec.Struct, kw_only=True):
    """Bytes."""

    total: int
    used: int
    hugepages_total: int
    hugepages_used: int
    hugepages_size: int
    nodes: list[dict[str, Any]] = []


class Cards(msgspec.Struct, kw_only=True):
    """Graphics or network cards."""

    cards: list[dict[str, Any]] = []
    total: int = 0


class Disks(msgspec.Struct, kw_only=True):
    """Block devices."""

    disks: list[dict[str, Any]] = []
    total: int = 0


class Devices(msgspec.Struct, kw_only=True):
    """USB or PCI devices."""

    devices: list[dict[str, Any]] = []
    total: int = 0


class System(msgspec.Struct, kw_only=True):
    """The machine."""

    uuid: str = ""
    vendor: str = ""
    product: str = ""
    family: str = ""
    version: str = ""
    sku: str = ""
    serial: str = ""
    type: str = ""


class Resources(msgspec.Struct, kw_only=True):
    """The host's hardware."""

    cpu: CPU
    memory: Memory
    gpu: Cards
    network: Cards
    storage: Disks
    usb: Devices
    pci: Devices
    system: System
