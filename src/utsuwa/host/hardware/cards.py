"""What graphics and network cards have in common: addresses, names and drivers, virtual functions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from utsuwa.host.hardware import ids, pci, sysfs
from utsuwa.wire.hardware import Card


def of_class(root: Path, prefix: str) -> list[Path]:
    """Return the PCI devices whose class begins with `prefix` (such as `0x03` for graphics)."""
    folders = [folder.resolve() for folder in sysfs.entries(root / pci.DEVICES)]
    return [folder for folder in folders if sysfs.text(folder / "class").startswith(prefix)]


def names(root: Path, folders: Iterable[Path]) -> ids.Names:
    return pci.names_of(root, list(folders))


def card(folder: Path, root: Path, known: ids.Names) -> Card:
    """Return what all cards have, for the device in `folder`."""
    vendor, product = sysfs.ids(folder)
    vendor_name, product_name = known.vendor(vendor), known.product(vendor, product)
    usb = sysfs.usb_device(folder)
    if usb is not None:
        vendor, product = sysfs.text(usb / "idVendor"), sysfs.text(usb / "idProduct")
        vendor_name, product_name = sysfs.text(usb / "manufacturer"), sysfs.text(usb / "product")
    driver, version = sysfs.driver(folder, root)
    return Card(
        driver=driver,
        driver_version=version,
        numa_node=sysfs.numa_node(folder),
        pci_address=sysfs.pci_address(folder),
        usb_address=sysfs.usb_address(folder),
        vendor=vendor_name,
        vendor_id=vendor,
        product=product_name,
        product_id=product,
    )


def is_function(folder: Path) -> bool:
    """Return whether a device is a virtual function of another one, which lists it."""
    return (folder / "physfn").exists()


def functions(folder: Path) -> tuple[int, int, list[Path]] | None:
    """Return how many virtual functions there are and can be, and their devices; None without SR-IOV."""
    if not (folder / "sriov_totalvfs").exists():
        return None
    found = [p for p in sysfs.entries(folder) if p.name.startswith("virtfn") and p.name[6:].isdecimal()]
    return (
        sysfs.number(folder / "sriov_numvfs"),
        sysfs.number(folder / "sriov_totalvfs"),
        [p.resolve() for p in sorted(found, key=lambda p: int(p.name[6:]))],
    )
