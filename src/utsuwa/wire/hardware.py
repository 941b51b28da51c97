"""Records of the host's devices, parts of `/1.0/resources` in LXD's format.

Ids of vendors and products are hexadecimal; device numbers are `MAJOR:MINOR`, PCI addresses `0000:00:02.0`,
USB addresses `BUS:DEVICE`.
"""

from __future__ import annotations

import msgspec


class Card(msgspec.Struct, kw_only=True):
    """What all cards have."""

    driver: str = ""
    driver_version: str = ""
    numa_node: int = 0
    pci_address: str = ""
    usb_address: str = ""
    vendor: str = ""
    vendor_id: str = ""
    product: str = ""
    product_id: str = ""


class Drm(msgspec.Struct, kw_only=True):
    """The names and device numbers of a graphics card."""

    id: int
    card_name: str = ""
    card_device: str = ""
    control_name: str = ""
    control_device: str = ""
    render_name: str = ""
    render_device: str = ""


class Mdev(msgspec.Struct, kw_only=True):
    """A profile of mediated devices, and the devices that exist."""

    api: str = ""
    available: int = 0
    name: str = ""
    description: str = ""
    devices: list[str] = []


class Nvidia(msgspec.Struct, kw_only=True):
    """What the driver of NVIDIA reports."""

    cuda_version: str = ""
    nvrm_version: str = ""
    brand: str = ""
    model: str = ""
    uuid: str = ""
    architecture: str = ""
    card_name: str = ""
    card_device: str = ""


class GpuSriov(msgspec.Struct, kw_only=True):
    current_vfs: int = 0
    maximum_vfs: int = 0
    vfs: list[GpuCard] = []


class GpuCard(Card, kw_only=True):
    """A graphics card."""

    drm: Drm | None = None
    mdev: dict[str, Mdev] = {}
    nvidia: Nvidia | None = None
    sriov: GpuSriov | None = None


class Gpu(msgspec.Struct, kw_only=True):
    cards: list[GpuCard] = []
    total: int = 0


class Infiniband(msgspec.Struct, kw_only=True):
    issm_name: str = ""
    issm_device: str = ""
    mad_name: str = ""
    mad_device: str = ""
    verb_name: str = ""
    verb_device: str = ""


class Port(msgspec.Struct, kw_only=True):
    """A network interface; `link_speed` is in Mbit/s."""

    id: str
    address: str = ""
    port: int = 0
    protocol: str = ""
    supported_modes: list[str] = []
    supported_ports: list[str] = []
    port_type: str = ""
    transceiver_type: str = ""
    auto_negotiation: bool = False
    link_detected: bool = False
    link_speed: int = 0
    link_duplex: str = ""
    infiniband: Infiniband | None = None


class NetworkSriov(msgspec.Struct, kw_only=True):
    current_vfs: int = 0
    maximum_vfs: int = 0
    vfs: list[NetworkCard] = []


class NetworkCard(Card, kw_only=True):
    """A network card."""

    firmware_version: str = ""
    ports: list[Port] = []
    sriov: NetworkSriov | None = None


class NetworkCards(msgspec.Struct, kw_only=True):
    cards: list[NetworkCard] = []
    total: int = 0


class Partition(msgspec.Struct, kw_only=True):
    id: str
    device: str = ""
    read_only: bool = False
    size: int = 0
    partition: int = 0


class Disk(msgspec.Struct, kw_only=True):
    """A disk; `type` is the subsystem, such as `nvme`, `sata`, `scsi`, `usb` or `virtio`."""

    id: str
    device: str = ""
    model: str = ""
    type: str = ""
    read_only: bool = False
    size: int = 0
    removable: bool = False
    wwn: str = ""
    numa_node: int = 0
    device_path: str = ""
    block_size: int = 0
    firmware_version: str = ""
    rpm: int = 0
    serial: str = ""
    device_id: str = ""
    partitions: list[Partition] = []
    pci_address: str = ""
    usb_address: str = ""


class Storage(msgspec.Struct, kw_only=True):
    """`total` is the number of disks and partitions."""

    disks: list[Disk] = []
    total: int = 0


class UsbInterface(msgspec.Struct, kw_only=True):
    class_: str = msgspec.field(default="", name="class")
    class_id: int = 0
    driver: str = ""
    driver_version: str = ""
    number: int = 0
    subclass: str = ""
    subclass_id: int = 0


class UsbDevice(msgspec.Struct, kw_only=True):
    """A USB device; `speed` is in Mbit/s."""

    bus_address: int
    device_address: int
    interfaces: list[UsbInterface] = []
    vendor: str = ""
    vendor_id: str = ""
    product: str = ""
    product_id: str = ""
    speed: float = 0


class USB(msgspec.Struct, kw_only=True):
    devices: list[UsbDevice] = []
    total: int = 0


class Vpd(msgspec.Struct, kw_only=True):
    """Vital product data: the name and the fields stored by the manufacturer."""

    product_name: str = ""
    entries: dict[str, str] = {}


class PciDevice(msgspec.Struct, kw_only=True):
    driver: str = ""
    driver_version: str = ""
    numa_node: int = 0
    pci_address: str = ""
    vendor: str = ""
    vendor_id: str = ""
    product: str = ""
    product_id: str = ""
    iommu_group: int = 0
    vpd: Vpd = msgspec.field(default_factory=Vpd)


class PCI(msgspec.Struct, kw_only=True):
    devices: list[PciDevice] = []
    total: int = 0
