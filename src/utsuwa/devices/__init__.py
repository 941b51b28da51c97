"""Devices of instances: `load` returns a driver, `check_devices` validates a complete set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from utsuwa.core.errors import InvalidConfig, NotSupportedYet
from utsuwa.core.names import check_device_name
from utsuwa.db import codes
from utsuwa.devices import io_limits
from utsuwa.devices.base import (
    BindMount,
    Device,
    DeviceHost,
    DeviceType,
    NicNaming,
    OwnVolume,
    Ports,
    RunConfig,
    RunningContainer,
)
from utsuwa.devices.disk import DISK, is_root_disk
from utsuwa.devices.nic import NIC, check_free_inside
from utsuwa.devices.none import NONE
from utsuwa.devices.unix import UNIX_BLOCK, UNIX_CHAR, monitored_folder

__all__ = [
    "DEVICE_TYPES",
    "BindMount",
    "Device",
    "DeviceHost",
    "Devices",
    "NicNaming",
    "OwnVolume",
    "Ports",
    "RunConfig",
    "RunningContainer",
    "check_devices",
    "check_free_inside",
    "limits_requests",
    "load",
    "monitored_folder",
    "ordered",
    "root_disk",
    "watched",
]

Devices = Mapping[str, Mapping[str, str]]

DEVICE_TYPES: tuple[DeviceType, ...] = (DISK, NIC, NONE, UNIX_BLOCK, UNIX_CHAR)
_BY_NAME = {kind.name: kind for kind in DEVICE_TYPES}
_KNOWN = ", ".join(sorted(_BY_NAME))

_NONE_VALID: Devices = MappingProxyType({})

LATER = codes.DEVICE_TYPES.keys() - _BY_NAME.keys()
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
        raise NotSupportedYet(
            f"Device {name!r}: devices of type {kind!r} are not supported yet: use one of {_KNOWN}"
        )
    if not kind:
        raise InvalidConfig(f"Invalid device {name!r}: 'type' is required: use one of {_KNOWN}")
    raise InvalidConfig(
        f"Invalid device {name!r}: 'type' is {kind[:40]!r}, which is not a known type: use one of {_KNOWN}"
    )


def ordered(devices: Devices) -> list[Device]:
    """Return the devices in the order in which they are started: by name, after those at parent paths."""
    found = [load(name, config) for name, config in devices.items()]
    return sorted(found, key=lambda device: (device.place, device.name))


def limits_requests(config: Mapping[str, str]) -> bool:
    """Return whether a device may have limits of requests to disks (`Device.io_limits`)."""
    return any(config.get(name) for name in io_limits.NAMES)


def watched(devices: Devices) -> set[Path]:
    """Return the paths on the host that devices follow while the container runs."""
    found = (load(name, config).watched for name, config in devices.items())
    return {path for path in found if path is not None}


def check_devices(devices: Devices, *, profile: bool, valid: Devices = _NONE_VALID) -> None:
    """Validate all devices of a profile, or the expanded devices of an instance.

    Those that are the same in `valid` have been validated one by one before. Raises InvalidConfig or
    NotSupportedYet with the first problem; the message names device and key.
    """
    for name, config in devices.items():
        if valid.get(name) == config:
            continue
        check_device_name(name)
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
            other = owners.setdefault(config["path"].strip("/"), device)
            if other != device:
                raise InvalidConfig(
                    f"Invalid device {device!r}: 'path' {config['path']} is taken by device {other!r}"
                )


def root_disk(devices: Devices) -> tuple[str, Mapping[str, str]]:
    """Return the name and the config of the root disk among an instance's expanded devices.

    Raises InvalidConfig if there is none, if there are several, or if it has no pool.
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
        raise InvalidConfig(f"The root disk {roots[0]!r} has no storage pool: set 'pool'")
    return roots[0], devices[roots[0]]


def _roots(devices: Devices) -> list[str]:
    return [name for name, config in devices.items() if is_root_disk(config)]


def _several_roots(names: list[str]) -> InvalidConfig:
    return InvalidConfig(f"Invalid devices: {' and '.join(map(repr, names))} are both root disks (path '/')")
