"""USB devices, except hubs."""

from __future__ import annotations

from pathlib import Path

from utsuwa.host.hardware import ids, sysfs
from utsuwa.wire.hardware import USB, UsbDevice, UsbInterface

_DEVICES = "sys/bus/usb/devices"
_HUB = 9
_CLASSES = {
    0x00: "Device",
    0x01: "Audio",
    0x02: "Communications",
    0x03: "Human Interface Device",
    0x05: "Physical Interface Device",
    0x06: "Imaging",
    0x07: "Printer",
    0x08: "Mass Storage",
    0x09: "Hub",
    0x0A: "CDC Data",
    0x0B: "Chip/SmartCard",
    0x0D: "Content Security",
    0x0E: "Video",
    0x0F: "Personal Healthcare",
    0x10: "Audio/Video",
    0x11: "Billboard",
    0xDC: "Diagnostic",
    0xE0: "Wireless",
    0xEF: "Miscellaneous Device",
    0xFE: "Application Specific Interface",
    0xFF: "Vendor Specific Class",
}
_SUBCLASSES = {
    (0x01, 0x01): "Control Device",
    (0x01, 0x02): "Streaming",
    (0x03, 0x01): "Boot Interface Subclass",
    (0x08, 0x06): "SCSI",
    (0x0E, 0x01): "Video Control",
    (0x0E, 0x02): "Video Streaming",
    (0xE0, 0x01): "Radio Frequency",
    (0xFF, 0xFF): "Vendor Specific Subclass",
}


def devices(root: Path) -> USB:
    folders = [
        folder.resolve()
        for folder in sysfs.entries(root / _DEVICES)
        if (folder / "bDeviceClass").exists() and sysfs.number(folder / "bDeviceClass", 16) != _HUB
    ]
    names = ids.read(root, "usb.ids", {sysfs.text(folder / "idVendor") for folder in folders})
    found = [_device(folder, root, names) for folder in folders]
    return USB(devices=found, total=len(found))


def _device(folder: Path, root: Path, names: ids.Names) -> UsbDevice:
    """The device's own texts come first, as the database does not know all devices."""
    vendor, product = sysfs.text(folder / "idVendor"), sysfs.text(folder / "idProduct")
    interfaces = [p for p in sysfs.entries(folder) if (p / "bInterfaceNumber").exists()]
    return UsbDevice(
        bus_address=sysfs.number(folder / "busnum"),
        device_address=sysfs.number(folder / "devnum"),
        interfaces=[_interface(interface, root) for interface in interfaces],
        vendor=sysfs.text(folder / "manufacturer") or names.vendor(vendor),
        vendor_id=vendor,
        product=sysfs.text(folder / "product") or names.product(vendor, product),
        product_id=product,
        speed=_speed(sysfs.text(folder / "speed")),
    )


def _interface(folder: Path, root: Path) -> UsbInterface:
    kind = sysfs.number(folder / "bInterfaceClass", 16)
    below = sysfs.number(folder / "bInterfaceSubClass", 16)
    driver, version = sysfs.driver(folder, root)
    return UsbInterface(
        class_=_CLASSES.get(kind, ""),
        class_id=kind,
        driver=driver,
        driver_version=version,
        number=sysfs.number(folder / "bInterfaceNumber", 16),
        subclass=_SUBCLASSES.get((kind, below), ""),
        subclass_id=below,
    )


def _speed(text: str) -> float:
    """Parse Mbit/s, which are `1.5` for the slowest devices."""
    try:
        return float(text)
    except ValueError:
        return 0.0
