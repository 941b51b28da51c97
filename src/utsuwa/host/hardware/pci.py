"""PCI devices, with their vital product data."""

from __future__ import annotations

from pathlib import Path

from utsuwa.host.hardware import ids, sysfs
from utsuwa.wire.hardware import PCI, PciDevice, Vpd

DEVICES = "sys/bus/pci/devices"
_VPD_BYTES = 32768
_NAME_TAG, _READ_ONLY_TAG, _WRITABLE_TAG = 0x82, 0x90, 0x91
_BINARY = frozenset(("RV", "RW"))
"""Fields that are no text: the checksum, and the remaining space."""


def devices(root: Path) -> PCI:
    folders = sysfs.entries(root / DEVICES)
    names = names_of(root, folders)
    found = [_device(folder.resolve(), root, names) for folder in folders]
    return PCI(devices=found, total=len(found))


def names_of(root: Path, folders: list[Path]) -> ids.Names:
    """Return the names of the vendors and products of some devices."""
    return ids.read(root, "pci.ids", {sysfs.ids(folder)[0] for folder in folders})


def _device(folder: Path, root: Path, names: ids.Names) -> PciDevice:
    vendor, product = sysfs.ids(folder)
    driver, version = sysfs.driver(folder, root)
    group = sysfs.link_name(folder / "iommu_group")
    return PciDevice(
        driver=driver,
        driver_version=version,
        numa_node=sysfs.numa_node(folder),
        pci_address=folder.name,
        vendor=names.vendor(vendor),
        vendor_id=vendor,
        product=names.product(vendor, product),
        product_id=product,
        iommu_group=int(group) if group.isdecimal() else 0,
        vpd=_vpd(folder / "vpd"),
    )


def _vpd(path: Path) -> Vpd:
    try:
        with path.open("rb") as file:
            return parse_vpd(file.read(_VPD_BYTES))
    except OSError:
        return Vpd()


def parse_vpd(data: bytes) -> Vpd:
    """Parse vital product data: resources of a tag, a length of two bytes, and content.

    What follows something unreadable is left out.
    """
    product, entries = "", dict[str, str]()
    at = 0
    while at + 3 <= len(data):
        tag, length = data[at], int.from_bytes(data[at + 1 : at + 3], "little")
        content = data[at + 3 : at + 3 + length]
        if tag == _NAME_TAG:
            product = _text(content)
        elif tag in (_READ_ONLY_TAG, _WRITABLE_TAG):
            entries |= _fields(content)
        else:
            break
        at += 3 + length
    return Vpd(product_name=product, entries=entries)


def _fields(content: bytes) -> dict[str, str]:
    """Parse fields of a name of two letters, a length of one byte, and a value."""
    found = {}
    at = 0
    while at + 3 <= len(content):
        name, length = content[at : at + 2].decode(errors="replace"), content[at + 2]
        if name not in _BINARY:
            found[name] = _text(content[at + 3 : at + 3 + length])
        at += 3 + length
    return found


def _text(value: bytes) -> str:
    return value.decode(errors="replace").replace("\0", "").strip()
