"""Reading of /sys: attributes, device numbers, drivers, and the bus addresses of devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_ATTRIBUTE_BYTES = 4096


def text(path: Path) -> str:
    """Return the content of an attribute; empty if it does not exist or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_ATTRIBUTE_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def number(path: Path, base: int = 10) -> int:
    """Return the number in an attribute; 0 if there is none, or if it is negative ("unknown")."""
    try:
        return max(int(text(path) or "0", base), 0)
    except ValueError:
        return 0


def entries(path: Path) -> list[Path]:
    """Return the entries of a directory by name; none if it does not exist."""
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def device(path: Path) -> Path | None:
    """Return the device that a class entry (`/sys/class/net/eth0`) belongs to; None for virtual ones."""
    link = path / "device"
    return link.resolve() if link.exists() else None


def ids(path: Path) -> tuple[str, str]:
    """Return vendor and product of a device as four hexadecimal digits each; empty if it has none."""
    return text(path / "vendor").removeprefix("0x"), text(path / "device").removeprefix("0x")


def driver(path: Path, root: Path) -> tuple[str, str]:
    """Return the driver of a device and its version: that of its module, otherwise the kernel's."""
    link = path / "driver"
    if not link.exists():
        return "", ""
    found = link.resolve()
    return found.name, text(found / "module" / "version") or text(root / "proc/sys/kernel/osrelease")


def numa_node(path: Path) -> int:
    """Return the NUMA node of a device or of the nearest device above it."""
    for folder in _upwards(path):
        if (folder / "numa_node").exists():
            return number(folder / "numa_node")
    return 0


def pci_address(path: Path) -> str:
    """Return the address of the PCI device that a device is, or is connected through; else empty."""
    return next((p.name for p in _upwards(path) if _PCI_ADDRESS.fullmatch(p.name)), "")


def usb_address(path: Path) -> str:
    """Return `BUS:DEVICE` of the USB device that a device belongs to; else empty."""
    found = usb_device(path)
    return "" if found is None else f"{number(found / 'busnum')}:{number(found / 'devnum')}"


def usb_device(path: Path) -> Path | None:
    """Return the USB device that a device is, or belongs to."""
    return next((folder for folder in _upwards(path) if (folder / "busnum").exists()), None)


def link_name(path: Path) -> str:
    """Return the name of what a link refers to; empty if it is not a link."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def _upwards(path: Path) -> Iterator[Path]:
    """Yield a device and the directories above it, up to that of all devices."""
    for folder in (path, *path.parents):
        if folder.name == "devices":
            return
        yield folder
