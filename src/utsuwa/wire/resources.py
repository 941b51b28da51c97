"""Records of `/1.0/resources`, the host's hardware, in LXD's format. Devices are in `wire.hardware`.

Sizes are in bytes, frequencies in MHz. What the host does not report is 0, empty or null.
"""

from __future__ import annotations

import msgspec

from utsuwa.wire.hardware import PCI, USB, Gpu, NetworkCards, Storage


class Thread(msgspec.Struct, kw_only=True):
    """One hardware thread; `id` is the kernel's processor number, `thread` that within the core."""

    id: int
    thread: int = 0
    numa_node: int = 0
    online: bool = True
    isolated: bool = False


class Core(msgspec.Struct, kw_only=True):
    """One core of a socket."""

    core: int
    die: int = 0
    frequency: int = 0
    threads: list[Thread] = []


class Cache(msgspec.Struct, kw_only=True):
    """One of the caches of a core; `type` is `Data`, `Instruction` or `Unified`."""

    level: int
    type: str
    size: int


class Socket(msgspec.Struct, kw_only=True):
    """One processor package."""

    socket: int
    name: str = ""
    vendor: str = ""
    cache: list[Cache] = []
    cores: list[Core] = []
    frequency: int = 0
    frequency_minimum: int = 0
    frequency_turbo: int = 0


class CPU(msgspec.Struct, kw_only=True):
    """`total` is the number of threads."""

    architecture: str = ""
    sockets: list[Socket] = []
    total: int = 0


class MemoryNode(msgspec.Struct, kw_only=True):
    """The memory of one NUMA node."""

    numa_node: int
    total: int = 0
    used: int = 0
    hugepages_total: int = 0
    hugepages_used: int = 0


class Memory(msgspec.Struct, kw_only=True):
    """Caches of the kernel do not count as used."""

    total: int = 0
    used: int = 0
    hugepages_total: int = 0
    hugepages_used: int = 0
    hugepages_size: int = 0
    nodes: list[MemoryNode] = []


class Firmware(msgspec.Struct, kw_only=True):
    vendor: str = ""
    date: str = ""
    version: str = ""


class Chassis(msgspec.Struct, kw_only=True):
    vendor: str = ""
    type: str = ""
    serial: str = ""
    version: str = ""


class Motherboard(msgspec.Struct, kw_only=True):
    vendor: str = ""
    product: str = ""
    serial: str = ""
    version: str = ""


class System(msgspec.Struct, kw_only=True):
    """The machine; `type` is `physical`, `virtual-machine` or `container`."""

    uuid: str = ""
    vendor: str = ""
    product: str = ""
    family: str = ""
    version: str = ""
    sku: str = ""
    serial: str = ""
    type: str = ""
    firmware: Firmware | None = None
    chassis: Chassis | None = None
    motherboard: Motherboard | None = None


class Resources(msgspec.Struct, kw_only=True):
    """The host's hardware."""

    cpu: CPU
    memory: Memory
    gpu: Gpu
    network: NetworkCards
    storage: Storage
    usb: USB
    pci: PCI
    system: System
