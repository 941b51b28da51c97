"""Disks and their partitions; loop devices, device mapper and the like are not hardware."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utsuwa.host.hardware import sysfs
from utsuwa.wire.hardware import Disk, Partition, Storage

_SECTOR = 512
"""The unit of sizes in /sys, whatever the disk's own sectors are."""


def disks(root: Path) -> Storage:
    by_id, by_path = (_links(root / "dev/disk" / name) for name in ("by-id", "by-path"))
    found = []
    for folder in sysfs.entries(root / "sys/block"):
        at = sysfs.device(folder)
        if at is not None and not _is_optical(folder):
            found.append(_disk(folder, at, root, by_id, by_path))
    return Storage(disks=found, total=sum(1 + len(disk.partitions) for disk in found))


def _is_optical(folder: Path) -> bool:
    return folder.name.startswith("sr") and folder.name[2:].isdecimal()


def _disk(folder: Path, at: Path, root: Path, by_id: Mapping[str, str], by_path: Mapping[str, str]) -> Disk:
    number = sysfs.text(folder / "dev")
    udev = _udev(root / "run/udev/data" / f"b{number}")
    firmware = sysfs.text(at / "firmware_rev") or sysfs.text(at / "rev") or udev.get("ID_REVISION", "")
    return Disk(
        id=folder.name,
        device=number,
        model=sysfs.text(at / "model") or udev.get("ID_MODEL", ""),
        type=_type(at),
        read_only=sysfs.number(folder / "ro") == 1,
        size=sysfs.number(folder / "size") * _SECTOR,
        removable=sysfs.number(folder / "removable") == 1,
        wwn=sysfs.text(folder / "wwid") or sysfs.text(at / "wwid"),
        numa_node=sysfs.numa_node(at),
        device_path=by_path.get(folder.name, ""),
        block_size=sysfs.number(folder / "queue/physical_block_size"),
        firmware_version=firmware,
        rpm=_rpm(folder, udev),
        serial=udev.get("ID_SERIAL_SHORT", "") or sysfs.text(at / "serial") or sysfs.text(folder / "serial"),
        device_id=by_id.get(folder.name, ""),
        partitions=_partitions(folder),
        pci_address=sysfs.pci_address(at),
        usb_address=sysfs.usb_address(at),
    )


def _type(at: Path) -> str:
    if sysfs.usb_address(at):
        return "usb"
    if any(part.startswith("ata") and part[3:].isdecimal() for part in at.parts):
        return "sata"
    return sysfs.link_name(at / "subsystem")


def _rpm(folder: Path, udev: Mapping[str, str]) -> int:
    """The rotation speed; 1 for a disk that rotates at an unknown speed."""
    if sysfs.number(folder / "queue/rotational") == 0:
        return 0
    rate = udev.get("ID_ATA_ROTATION_RATE_RPM", "")
    return int(rate) if rate.isdecimal() and int(rate) else 1


def _partitions(folder: Path) -> list[Partition]:
    found = [
        Partition(
            id=part.name,
            device=sysfs.text(part / "dev"),
            read_only=sysfs.number(part / "ro") == 1,
            size=sysfs.number(part / "size") * _SECTOR,
            partition=sysfs.number(part / "partition"),
        )
        for part in sysfs.entries(folder)
        if (part / "partition").exists()
    ]
    return sorted(found, key=lambda part: part.partition)


def _links(folder: Path) -> dict[str, str]:
    """Return udev's first name of each disk below a directory of links."""
    found: dict[str, str] = {}
    for link in sysfs.entries(folder):
        found.setdefault(sysfs.link_name(link), link.name)
    return found


def _udev(path: Path) -> dict[str, str]:
    """Parse the properties in udev's database: `E:KEY=VALUE`."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line[2:].partition("=") for line in lines if line.startswith("E:"))
    return {key: value for key, _, value in pairs}
