"""The machine: firmware, chassis and motherboard by DMI, and whether it is a virtual one."""

from __future__ import annotations

from pathlib import Path

from utsuwa.host.hardware import sysfs
from utsuwa.wire.resources import Chassis, Firmware, Motherboard, System

_DMI = "sys/class/dmi/id"
_CHASSIS = {
    1: "Other", 2: "Unknown", 3: "Desktop", 4: "Low Profile Desktop", 5: "Pizza Box", 6: "Mini Tower",
    7: "Tower", 8: "Portable", 9: "Laptop", 10: "Notebook", 11: "Hand Held", 12: "Docking Station",
    13: "All In One", 14: "Sub Notebook", 15: "Space-saving", 16: "Lunch Box", 17: "Main Server Chassis",
    18: "Expansion Chassis", 19: "Sub Chassis", 20: "Bus Expansion Chassis", 21: "Peripheral Chassis",
    22: "RAID Chassis", 23: "Rack Mount Chassis", 24: "Sealed-case PC", 25: "Multi-system",
    26: "CompactPCI", 27: "AdvancedTCA", 28: "Blade", 29: "Blade Enclosing", 30: "Tablet",
    31: "Convertible", 32: "Detachable", 33: "IoT Gateway", 34: "Embedded PC", 35: "Mini PC",
    36: "Stick PC",
}  # fmt: skip
"""The types of SMBIOS."""


def system(root: Path) -> System:
    kind = _kind(root)
    folder = root / _DMI
    if not folder.is_dir():
        return System(type=kind)

    def dmi(name: str) -> str:
        return sysfs.text(folder / name)

    return System(
        uuid=dmi("product_uuid"),
        vendor=dmi("sys_vendor"),
        product=dmi("product_name"),
        family=dmi("product_family"),
        version=dmi("product_version"),
        sku=dmi("product_sku"),
        serial=dmi("product_serial"),
        type=kind,
        firmware=Firmware(vendor=dmi("bios_vendor"), date=dmi("bios_date"), version=dmi("bios_version")),
        chassis=Chassis(
            vendor=dmi("chassis_vendor"),
            type=_CHASSIS.get(sysfs.number(folder / "chassis_type"), ""),
            serial=dmi("chassis_serial"),
            version=dmi("chassis_version"),
        ),
        motherboard=Motherboard(
            vendor=dmi("board_vendor"),
            product=dmi("board_name"),
            serial=dmi("board_serial"),
            version=dmi("board_version"),
        ),
    )


def _kind(root: Path) -> str:
    if (root / "run/systemd/container").exists() or _in_container(root):
        return "container"
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return "virtual-machine" if "hypervisor" in flags else "physical"


def _in_container(root: Path) -> bool:
    """Container managers set `container` in the environment of init."""
    try:
        variables = (root / "proc/1/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(b"container=") for variable in variables)
