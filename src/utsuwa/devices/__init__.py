"""Devices of instances: `load` returns a driver, `check_devices` validates a complete set."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core.errors import InvalidConfig, NotSupportedYet
from utsuwa.core.names import check_object_name
from utsuwa.devices.base import BindMount, Device, DeviceHost, DeviceType, OwnVolume, Ports, RunConfig
from utsuwa.devices.disk import DISK, is_root_disk
from utsuwa.devices.nic import NIC, check_free_inside
from utsuwa.devices.none import NONE

__all__ = [
    "DEVICE_TYPES",
    "BindMount",
    "Device",
    "DeviceHost",
    "Devices",
    "OwnVolume",
    "Ports",
    "RunConfig",
    "check_devices",
    "check_free_inside",
    "load",
    "ordered",
    "root_disk",
]

Devices = Mapping[str, Mapping[str, str]]

DEVICE_TYPES: tuple[DeviceType, ...] = (DISK, NIC, NONE)
_BY_NAME = {kind.name: kind for kind in DEVICE_TYPES}

LATER = frozenset(
    {
        "gpu",
        "infiniband",
        "pci",
        "proxy",
        "tpm",
        "unix-block",
        "unix-char",
        "unix-hotplug",
        "usb",
    }
)
"""Types of the API that are not supported yet."""


def load(name: str, config: Mapping[str, str], *, instance: bool = True) -> Device:
    """Return the driver of a device, without validating its config (`Device.validate`).

    Raises InvalidConfig for a missing or unknown type, NotSupportedYet for types of later versions.
    """
    kind = config.get("type", "")
    found = _BY_NAME.get(kind)
    if found is not None:
        return found.load(name, config, instance)
    if kind in LATER:
        raise NotSupportedYet(f"Device {name!r}: devices of type {kind!r} are not supported yet")
    if not kind:
        raise InvalidConfig(f"Invalid device {name!r}: 'type' is required")
    raise InvalidConfig(f"Invalid device {name!r}: 'type' is {kind[:40]!r}, which is not known")


def ordered(devices: Devices) -> list[Device]:
    """Return the devices in the order in which they are started: by name, after those at parent paths."""
    found = [load(name, config) for name, config in devices.items()]
    return sorted(found, key=lambda device: (device.place, device.name))


def check_devices(devices: Devices, *, profile: bool) -> None:
    """Validate all devices of a profile, or the expanded devices of an instance.

    Raises InvalidConfig or NotSupportedYet with the first problem; the message names device and key.
    """
    for name, config in devices.items():
        check_object_name("Device", name)
        load(name, config, instance=not profile).validate()
    _check_unique_names(devices)
    _check_unique_paths(devices)
    roots = _roots(devices)
    if len(roots) > 1:
        raise _several_roots(roots)


def _check_unique_names(devices: Devices) -> None:
    owners: dict[tuple[str, str], str] = {}
    for device, config in devices.items():
        for key in ("name", "host_name"):
            value = config.get(key, "")
            if config.get("type") != "nic" or not value:
                continue
            other = owners.setdefault((key, value), device)
            if other != device:
                raise InvalidConfig(
                    f"Invalid device {device!r}: {key!r} {value!r} is taken by device {other!r}"
                )


def _check_unique_paths(devices: Devices) -> None:
    owners: dict[str, str] = {}
    for device, config in devices.items():
        if config.get("type") == "disk" and not is_root_disk(config):
            other = owners.setdefault(config["path"].rstrip("/"), device)
            if other != device:
                raise InvalidConfig(
                    f"Invalid device {device!r}: 'path' {config['path']} is taken by device {other!r}"
                )


def root_disk(devices: Devices) -> tuple[str, Mapping[str, str]]:
    """Return the name and the config of the root disk among an instance's merged devices.

    Raises InvalidConfig if there is none, if there are several, or if it names no pool.
    """
    roots = _roots(devices)
    if not roots:
        raise InvalidConfig(
            "No root device could be found: add a disk device with path=/ and a pool "
            "to the instance or to one of its profiles"
        )
    if len(roots) > 1:
        raise _several_roots(roots)
    if not devices[roots[0]].get("pool"):
        raise InvalidConfig(f"The root device {roots[0]!r} names no storage pool")
    return roots[0], devices[roots[0]]


def _roots(devices: Devices) -> list[str]:
    return [name for name, config in devices.items() if is_root_disk(config)]


def _several_roots(names: list[str]) -> InvalidConfig:
    return InvalidConfig(f"Invalid devices: {' and '.join(map(repr, names))} are both root disks (path '/')")
