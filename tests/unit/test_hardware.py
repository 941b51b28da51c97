"""The host's hardware, read from recorded trees of /sys and /proc."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.support.trees import make_tree
from utsuwa.cli.output.resources import describe
from utsuwa.host.hardware import ethtool, inventory
from utsuwa.host.hardware.ethtool import Link
from utsuwa.host.hardware.pci import parse_vpd
from utsuwa.wire.codec import decode_object, encode
from utsuwa.wire.resources import Resources

GPU = "sys/devices/pci0000:00/0000:00:02.0"
NIC = "sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0"
VF = "sys/devices/pci0000:00/0000:00:1c.0/0000:03:10.0"
SATA = "sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0"
NVME = "sys/devices/pci0000:00/0000:05:00.0/nvme/nvme0"
USB = "sys/devices/pci0000:00/0000:00:14.0/usb1/1-2"

PROCESSORS = r"""
proc/cpuinfo = processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu vme\n
sys/devices/system/cpu/isolated = 3\n
sys/devices/system/cpu/cpufreq/
sys/devices/system/cpu/cpu0/topology/physical_package_id = 0
sys/devices/system/cpu/cpu0/topology/core_id = 0
sys/devices/system/cpu/cpu0/topology/die_id = 1
sys/devices/system/cpu/cpu0/cache/index0/level = 1
sys/devices/system/cpu/cpu0/cache/index0/type = Data
sys/devices/system/cpu/cpu0/cache/index0/size = 32K
sys/devices/system/cpu/cpu0/cache/index10/level = 3
sys/devices/system/cpu/cpu0/cache/index10/type = Unified
sys/devices/system/cpu/cpu0/cache/index10/size = 8M
sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq = 2000000
sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_min_freq = 800000
sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq = 3500000
sys/devices/system/cpu/cpu0/node0/
sys/devices/system/cpu/cpu1/topology/physical_package_id = 1
sys/devices/system/cpu/cpu1/topology/core_id = 0
sys/devices/system/cpu/cpu1/node1/
sys/devices/system/cpu/cpu2/topology/physical_package_id = 0
sys/devices/system/cpu/cpu2/topology/core_id = 0
sys/devices/system/cpu/cpu2/topology/die_id = 1
sys/devices/system/cpu/cpu2/online = 1
sys/devices/system/cpu/cpu3/topology/physical_package_id = 0
sys/devices/system/cpu/cpu3/topology/core_id = 1
sys/devices/system/cpu/cpu3/topology/die_id = 1
sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq = 3000000
sys/devices/system/cpu/cpu4/online = 0
proc/meminfo = MemTotal: 1000 kB\n
proc/meminfo += MemFree: 300 kB\n
proc/meminfo += Buffers: 100 kB\n
proc/meminfo += Cached: 50 kB\n
proc/meminfo += HugePages_Total: 4\n
proc/meminfo += HugePages_Free: 1\n
proc/meminfo += Hugepagesize: 2048 kB\n
sys/devices/system/node/node0/meminfo = Node 0 MemTotal: 600 kB\n
sys/devices/system/node/node0/meminfo += Node 0 MemFree: 100 kB\n
sys/devices/system/node/node0/meminfo += Node 0 FilePages: 50 kB\n
sys/devices/system/node/node0/meminfo += Node 0 HugePages_Total: 2\n
sys/devices/system/node/node0/meminfo += Node 0 HugePages_Free: 0\n
sys/devices/system/node/node1/meminfo = Node 1 MemTotal: 400 kB\nNode 1 MemFree: 200 kB\n
"""

DEVICES = rf"""
proc/sys/kernel/osrelease = 6.1.0\n
usr/share/misc/pci.ids = # comment\n
usr/share/misc/pci.ids += 1d6a  Aquantia Corp.\n
usr/share/misc/pci.ids += \t87b1  AQC107\n
usr/share/misc/pci.ids += \t\t1043 8741  subsystem\n
usr/share/misc/pci.ids += 8086  Intel Corporation\n
usr/share/misc/pci.ids += \t5916  HD Graphics 620\n
usr/share/misc/pci.ids += \n
usr/share/misc/pci.ids += C 03  Display controller\n
sys/bus/pci/drivers/i915/module/
sys/bus/pci/drivers/ixgbe/module/version = 5.1.0-k
sys/bus/pci/devices/0000:00:02.0 -> /{GPU}
sys/bus/pci/devices/0000:03:00.0 -> /{NIC}
sys/bus/pci/devices/0000:03:10.0 -> /{VF}
{GPU}/class = 0x030000
{GPU}/vendor = 0x8086
{GPU}/device = 0x5916
{GPU}/numa_node = -1
{GPU}/driver -> /sys/bus/pci/drivers/i915
{GPU}/iommu_group -> ../../../kernel/iommu_groups/7
{GPU}/drm/card0/dev = 226:0
{GPU}/drm/card0/device -> /{GPU}
{GPU}/drm/card0-HDMI-A-1/status = off
{GPU}/drm/renderD128/dev = 226:128
{GPU}/mdev_supported_types/i915-GVTg_V5_8/device_api = vfio-pci
{GPU}/mdev_supported_types/i915-GVTg_V5_8/available_instances = 2
{GPU}/mdev_supported_types/i915-GVTg_V5_8/description = low_gm_size: 64MB
{GPU}/mdev_supported_types/i915-GVTg_V5_8/devices/42200aac-0977-495c-8c9e-6c51b9092a01/
sys/class/drm/card0 -> /{GPU}/drm/card0
sys/class/drm/card0-HDMI-A-1 -> /{GPU}/drm/card0-HDMI-A-1
{NIC}/class = 0x020000
{NIC}/vendor = 0x1d6a
{NIC}/device = 0x87b1
{NIC}/numa_node = 1
{NIC}/driver -> /sys/bus/pci/drivers/ixgbe
{NIC}/sriov_totalvfs = 8
{NIC}/sriov_numvfs = 1
{NIC}/virtfn0 -> /{VF}
{NIC}/net/eth1/device -> /{NIC}
{NIC}/net/eth1/address = 00:23:a4:01:01:6f
{NIC}/net/eth1/type = 1
{NIC}/net/eth1/carrier = 1
{NIC}/net/eth1/speed = 10000
{NIC}/net/eth1/duplex = full
{NIC}/net/ib0/device -> /{NIC}
{NIC}/net/ib0/type = 32
{NIC}/net/ib0/dev_port = 1
{NIC}/net/ib0/carrier = 0
{NIC}/net/ib0/speed = -1
{NIC}/infiniband_mad/issm1/dev = 231:65
{NIC}/infiniband_mad/issm1/port = 2
{NIC}/infiniband_mad/umad0/dev = 231:0
{NIC}/infiniband_mad/umad0/port = 1
{NIC}/infiniband_verbs/uverbs0/dev = 231:192
{VF}/class = 0x020000
{VF}/vendor = 0x1d6a
{VF}/device = 0x0001
{VF}/physfn -> /{NIC}
sys/class/net/eth1 -> /{NIC}/net/eth1
sys/class/net/ib0 -> /{NIC}/net/ib0
sys/class/net/lo/address = 00:00:00:00:00:00
sys/class/net/wlan0 -> /{USB}/1-2:1.0/net/wlan0
{USB}/1-2:1.0/net/wlan0/device -> /{USB}/1-2:1.0
{USB}/1-2:1.0/net/wlan0/type = 1
"""

DISKS = rf"""
sys/class/scsi/
sys/class/nvme/
{SATA}/model = ST1000DM003
{SATA}/rev = CC43
{SATA}/subsystem -> /sys/class/scsi
{SATA}/block/sda/dev = 8:0
{SATA}/block/sda/device -> /{SATA}
{SATA}/block/sda/size = 2048
{SATA}/block/sda/ro = 0
{SATA}/block/sda/removable = 1
{SATA}/block/sda/queue/physical_block_size = 4096
{SATA}/block/sda/queue/rotational = 1
{SATA}/block/sda/sda10/partition = 10
{SATA}/block/sda/sda10/dev = 8:10
{SATA}/block/sda/sda10/size = 4
{SATA}/block/sda/sda10/ro = 1
{SATA}/block/sda/sda2/partition = 2
{SATA}/block/sda/sda2/dev = 8:2
{SATA}/block/sda/sda2/size = 2
sys/block/sda -> /{SATA}/block/sda
run/udev/data/b8:0 = S:disk/by-id/x\nE:ID_SERIAL_SHORT=Z1D0XYZ\nE:ID_ATA_ROTATION_RATE_RPM=7200\n
dev/disk/by-id/ata-ST1000 -> ../../sda
dev/disk/by-id/wwn-0x5000 -> ../../sda
dev/disk/by-path/pci-0000:00:17.0-ata-3 -> ../../sda
{NVME}/subsystem -> /sys/class/nvme
{NVME}/model = INTEL SSD
{NVME}/firmware_rev = PSF121C
{NVME}/serial = BTPY
{NVME}/nvme0n1/dev = 259:0
{NVME}/nvme0n1/device -> /{NVME}
{NVME}/nvme0n1/wwid = eui.0000000001000000
{NVME}/nvme0n1/ro = 1
sys/block/nvme0n1 -> /{NVME}/nvme0n1
sys/block/loop0/size = 8
sys/block/sr0 -> /{SATA}/block/sr0
{SATA}/block/sr0/device -> /{SATA}
"""

USB_AND_SYSTEM = rf"""
usr/share/hwdata/usb.ids = 0557  ATEN International Co., Ltd\n\t2221  Winbond\n
{USB}/bDeviceClass = 00
{USB}/busnum = 1
{USB}/devnum = 3
{USB}/idVendor = 0557
{USB}/idProduct = 2221
{USB}/speed = 1.5
{USB}/product = Hermon
{USB}/1-2:1.0/bInterfaceNumber = 00
{USB}/1-2:1.0/bInterfaceClass = 03
{USB}/1-2:1.0/bInterfaceSubClass = 01
sys/devices/pci0000:00/0000:00:14.0/usb1/bDeviceClass = 09
sys/bus/usb/devices/usb1 -> /sys/devices/pci0000:00/0000:00:14.0/usb1
sys/bus/usb/devices/1-2 -> /{USB}
sys/bus/usb/devices/1-2:1.0 -> /{USB}/1-2:1.0
sys/class/dmi/id/product_uuid = 7fa1c0cc
sys/class/dmi/id/sys_vendor = LENOVO
sys/class/dmi/id/product_name = 20HRCTO1WW
sys/class/dmi/id/chassis_type = 10
sys/class/dmi/id/bios_date = 10/14/2020
sys/class/dmi/id/board_name = Board
"""


def ask(interface: str) -> Link:
    if interface != "eth1":
        return Link()
    return Link("twisted pair", "internal", True, ("1000baseT/Full",), ("twisted pair",), "3.1.100")


@pytest.fixture
def found(tmp_path: Path) -> Resources:
    root = make_tree(tmp_path, PROCESSORS + DEVICES + DISKS + USB_AND_SYSTEM)
    return inventory.resources(root, ask)


def test_processors_by_socket_core_and_thread(found: Resources) -> None:
    """One that is offline belongs to no core."""
    assert found.cpu.total == 4
    first, second = found.cpu.sockets
    assert (first.socket, first.vendor, first.name) == (0, "GenuineIntel", "Xeon")
    assert [(c.level, c.type, c.size) for c in first.cache] == [(1, "Data", 32768), (3, "Unified", 8 * 2**20)]
    assert [(c.core, c.die, c.frequency, [t.id for t in c.threads]) for c in first.cores] == [
        (0, 1, 2000, [0, 2]),
        (1, 1, 3000, [3]),
    ]
    assert [t.thread for t in first.cores[0].threads] == [0, 1]
    assert first.cores[1].threads[0].isolated
    assert not first.cores[0].threads[0].isolated
    assert (first.frequency, first.frequency_minimum, first.frequency_turbo) == (2500, 800, 3500)
    assert second.cores[0].threads[0].numa_node == 1
    assert (second.frequency, second.frequency_minimum) == (0, 0)


def test_memory_and_its_nodes(found: Resources) -> None:
    memory, huge = found.memory, 2 * 2**20
    assert (memory.total, memory.used) == (1000 * 1024, 550 * 1024)
    assert (memory.hugepages_total, memory.hugepages_used, memory.hugepages_size) == (
        4 * huge,
        3 * huge,
        huge,
    )
    assert [(n.numa_node, n.total, n.used, n.hugepages_used) for n in memory.nodes] == [
        (0, 600 * 1024, 450 * 1024, 2 * huge),
        (1, 400 * 1024, 200 * 1024, 0),
    ]


def test_graphics_cards(found: Resources) -> None:
    (card,) = found.gpu.cards
    assert found.gpu.total == 1
    assert (card.vendor, card.product, card.driver) == ("Intel Corporation", "HD Graphics 620", "i915")
    assert (card.pci_address, card.numa_node, card.driver_version) == ("0000:00:02.0", 0, "6.1.0")
    assert card.drm is not None
    assert (card.drm.card_name, card.drm.card_device, card.drm.control_name) == ("card0", "226:0", "")
    assert (card.drm.render_name, card.drm.render_device) == ("renderD128", "226:128")
    profile = card.mdev["i915-GVTg_V5_8"]
    assert (profile.api, profile.available) == ("vfio-pci", 2)
    assert profile.devices == ["42200aac-0977-495c-8c9e-6c51b9092a01"]
    assert (card.nvidia, card.sriov) == (None, None)


def test_cards_of_nvidia(tmp_path: Path) -> None:
    at = "sys/devices/pci0000:00/0000:01:00.0"
    root = make_tree(
        tmp_path,
        rf"""
        sys/bus/pci/drivers/nvidia/module/version = 450.102.04
        sys/bus/pci/devices/0000:01:00.0 -> /{at}
        {at}/class = 0x030200
        {at}/driver -> /sys/bus/pci/drivers/nvidia
        proc/driver/nvidia/version = NVRM version: NVIDIA UNIX x86_64 Kernel Module  450.102.04  Tue\n
        proc/driver/nvidia/gpus/0000:01:00.0/information = Model: \t\t GeForce GT 730\n
        proc/driver/nvidia/gpus/0000:01:00.0/information += GPU UUID: \t GPU-6dd\n
        proc/driver/nvidia/gpus/0000:01:00.0/information += Device Minor: \t 0\n
        """,
    )
    (card,) = inventory.resources(root, ask).gpu.cards
    assert card.nvidia is not None
    assert (card.nvidia.nvrm_version, card.nvidia.brand) == ("450.102.04", "GeForce")
    assert (card.nvidia.model, card.nvidia.uuid) == ("GeForce GT 730", "GPU-6dd")
    assert (card.nvidia.card_name, card.nvidia.card_device) == ("nvidia0", "195:0")


def test_network_cards_with_ports_and_virtual_functions(found: Resources) -> None:
    card, by_usb = found.network.cards
    assert found.network.total == 3
    assert (card.vendor, card.product, card.numa_node) == ("Aquantia Corp.", "AQC107", 1)
    assert (card.driver, card.driver_version, card.firmware_version) == ("ixgbe", "5.1.0-k", "3.1.100")
    first, second = card.ports
    assert (first.id, first.protocol, first.address) == ("eth1", "ethernet", "00:23:a4:01:01:6f")
    assert (first.link_detected, first.link_speed, first.link_duplex) == (True, 10000, "full")
    assert (first.supported_modes, first.infiniband) == (["1000baseT/Full"], None)
    assert (second.protocol, second.port, second.link_speed) == ("infiniband", 1, 0)
    assert second.infiniband is not None
    assert (second.infiniband.issm_name, second.infiniband.issm_device) == ("issm1", "231:65")
    assert (second.infiniband.mad_name, second.infiniband.verb_name) == ("", "uverbs0")
    assert card.sriov is not None
    assert (card.sriov.current_vfs, card.sriov.maximum_vfs) == (1, 8)
    assert [vf.pci_address for vf in card.sriov.vfs] == ["0000:03:10.0"]
    assert (by_usb.usb_address, by_usb.vendor_id, by_usb.product) == ("1:3", "0557", "Hermon")


def test_disks_with_partitions(found: Resources) -> None:
    nvme, sata = found.storage.disks
    assert found.storage.total == 4
    assert (nvme.id, nvme.type, nvme.model, nvme.firmware_version) == (
        "nvme0n1",
        "nvme",
        "INTEL SSD",
        "PSF121C",
    )
    assert (nvme.serial, nvme.wwn, nvme.read_only, nvme.rpm) == ("BTPY", "eui.0000000001000000", True, 0)
    assert nvme.pci_address == "0000:05:00.0"
    assert (sata.type, sata.model, sata.firmware_version, sata.serial) == (
        *("sata", "ST1000DM003", "CC43"),
        "Z1D0XYZ",
    )
    assert (sata.rpm, sata.block_size, sata.size, sata.removable) == (7200, 4096, 2**20, True)
    assert (sata.device_id, sata.device_path) == ("ata-ST1000", "pci-0000:00:17.0-ata-3")
    assert [(p.partition, p.id, p.device, p.size, p.read_only) for p in sata.partitions] == [
        (2, "sda2", "8:2", 1024, False),
        (10, "sda10", "8:10", 2048, True),
    ]


def test_usb_devices_but_hubs(found: Resources) -> None:
    (device,) = found.usb.devices
    assert (device.bus_address, device.device_address, device.speed) == (1, 3, 1.5)
    assert (device.vendor, device.product) == ("ATEN International Co., Ltd", "Hermon")
    (interface,) = device.interfaces
    assert (interface.class_, interface.class_id) == ("Human Interface Device", 3)
    assert (interface.subclass, interface.number) == ("Boot Interface Subclass", 0)
    assert b'"class":"Human' in encode(interface)


def test_pci_devices(found: Resources) -> None:
    assert [device.pci_address for device in found.pci.devices] == [
        *("0000:00:02.0", "0000:03:00.0", "0000:03:10.0"),
    ]
    first = found.pci.devices[0]
    assert (first.iommu_group, first.product, first.driver) == (7, "HD Graphics 620", "i915")
    assert first.vpd.entries == {}


def test_the_machine(found: Resources) -> None:
    machine = found.system
    assert (machine.uuid, machine.vendor, machine.product) == ("7fa1c0cc", "LENOVO", "20HRCTO1WW")
    assert machine.type == "physical"
    assert machine.chassis is not None
    assert machine.chassis.type == "Notebook"
    assert machine.firmware is not None
    assert machine.firmware.date == "10/14/2020"
    assert machine.motherboard is not None
    assert machine.motherboard.product == "Board"


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        ("proc/cpuinfo = flags : fpu hypervisor\\n", "virtual-machine"),
        ("proc/1/environ = PATH=/bin\\0container=lxc\\0", "container"),
        ("run/systemd/container = lxc", "container"),
        ("proc/1/environ = PATH=/bin\\0", "physical"),
    ],
)
def test_kinds_of_machines(tmp_path: Path, tree: str, kind: str) -> None:
    assert inventory.resources(make_tree(tmp_path, tree), ask).system.type == kind


def test_host_without_sysfs_information(tmp_path: Path) -> None:
    found = inventory.resources(tmp_path, ask)
    assert (found.cpu.total, found.memory.total, found.storage.disks) == (0, 0, [])
    assert found.system.chassis is None


def test_this_host_is_read() -> None:
    found = inventory.resources()
    assert found.cpu.total == os.cpu_count()
    assert found.memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.memory.used < found.memory.total


# ---- formats


def test_vital_product_data() -> None:
    fields = b"EC" + bytes([8]) + b"A-5545\0 " + b"RV" + bytes([1]) + b"x"
    data = (
        b"\x82" + struct.pack("<H", 4) + b"Card" + b"\x90" + struct.pack("<H", len(fields)) + fields + b"\x78"
    )
    found = parse_vpd(data)
    assert (found.product_name, found.entries) == ("Card", {"EC": "A-5545"})
    for cut in range(len(data)):
        parse_vpd(data[:cut])
    assert parse_vpd(b"\xff" * 40).entries == {}


def test_link_settings() -> None:
    modes = (1 << 5 | 1 << 7 | 1 << 47).to_bytes(8, "little")
    settings = (
        struct.pack("=IIBBBBBBBbBBBB28x", 0x4C, 1000, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0) + modes + b"\0" * 99
    )
    driver = struct.pack("=I32s32s32s32s128x", 3, b"e1000e", b"3.2", b"0.13-4", b"0000:00:1f.6")
    assert ethtool.parse(settings, driver) == Link(
        port_type="twisted pair",
        transceiver_type="internal",
        auto_negotiation=True,
        supported_modes=("1000baseT/Full", "2500baseT/Full"),
        supported_ports=("twisted pair",),
        firmware_version="0.13-4",
    )
    assert ethtool.parse(b"", struct.pack("=I32s32s32s32s128x", 3, b"d", b"v", b"N/A", b"")) == Link()
    assert ethtool.parse(b"", b"") == Link()


def test_removed_interface_reports_nothing() -> None:
    assert ethtool.link("nix0") == Link()


# ---- as the client prints it


def test_the_client_prints_all_cards(found: Resources) -> None:
    lines = list(describe(decode_object(encode(found))))
    assert lines[0].startswith("CPUs (")
    for expected in (
        "  Socket 0:",
        "      - Level 3 (type: Unified): 8MiB",
        "    Frequency: 2500Mhz (min: 800Mhz, max: 3500Mhz)",
        "  Hugepages:",
        "  NUMA nodes:",
        "    Node 1:",
        "GPU:",
        "  Vendor: Intel Corporation (8086)",
        "    Card: card0 (226:0)",
        "NICs:",
        "    SR-IOV information:",
        "      Maximum number of VFs: 8",
        "        - NUMA node: 0",
        "          PCI address: 0000:03:10.0",
        "      - Port 0 (ethernet)",
        "        Supported modes: 1000baseT/Full",
        "        Link speed: 10000Mbit/s (full duplex)",
        "          IsSM: issm1 (231:65)",
        "Disks:",
        "  Disk 1:",
        "      - Partition 2",
        "        Read-Only: false",
    ):
        assert expected in lines, expected
