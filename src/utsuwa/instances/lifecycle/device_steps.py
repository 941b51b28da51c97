"""Operations on all devices of an instance: add, start, stop. `device_updates` changes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from utsuwa import devices as device_types
from utsuwa.core import faults
from utsuwa.core.rollback import Rollback
from utsuwa.devices import BindMount, DeviceHost, RunConfig
from utsuwa.devices.inner_mount import InnerMount
from utsuwa.host.cgroups import io_limits as io
from utsuwa.host.mounts.device_folder import DeviceNumber
from utsuwa.host.network.veth import Pair

log = logging.getLogger(__name__)

Devices = Mapping[str, Mapping[str, str]]


@dataclass
class Steps:
    """The results of several devices, and their volatile changes by full key (None removes)."""

    mounts: list[BindMount] = field(default_factory=list)
    nics: list[Pair] = field(default_factory=list)
    allowed_devices: list[DeviceNumber] = field(default_factory=list)
    read_only_root: bool = False
    volatile: dict[str, str | None] = field(default_factory=dict)

    def take(self, device: str, run: RunConfig) -> None:
        self.mounts += run.mounts
        self.nics += run.nics
        self.allowed_devices += run.allowed_devices
        self.read_only_root |= run.read_only_root
        for key, value in run.volatile.items():
            self.volatile[f"volatile.{device}.{key}"] = value or None

    @property
    def changes_addresses(self) -> bool:
        """Whether a device was assigned a MAC address, which networks have to be told."""
        return any(key.endswith(".hwaddr") for key in self.volatile)

    def config_over(self, config: Mapping[str, str]) -> dict[str, str]:
        """Return `config` with the volatile changes so far."""
        return with_changes(config, self.volatile)


def with_changes(config: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return `config` with changes; None removes a key."""
    merged = {**config, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def add_all(host: DeviceHost) -> dict[str, str | None]:
    """Return the volatile keys of devices that are added to an instance (MAC addresses)."""
    steps = Steps()
    for device in device_types.ordered(host.devices):
        steps.take(device.name, device.add(replace(host, config=steps.config_over(host.config))))
    return steps.volatile


async def check_all(host: DeviceHost) -> None:
    """Raise the errors of `start_all`, as far as they can be checked; the container may be running."""
    for device in device_types.ordered(host.devices):
        await device.check_start(host)


async def start_all(host: DeviceHost, undo: Rollback) -> Steps:
    """Start all devices; they are stopped again if `undo` runs."""
    steps = Steps()
    for device in device_types.ordered(host.devices):
        now = replace(host, config=steps.config_over(host.config), mounts=steps.mounts)
        steps.take(device.name, await device.start(now))
        undo.push(device.stop, replace(host, config=steps.config_over(host.config)))
    return steps


async def io_limits(host: DeviceHost) -> io.Limits:
    """Return the limits of requests to disks for all devices. Raises InvalidConfig."""
    return io.merged(
        [limit for device in device_types.ordered(host.devices) for limit in await device.io_limits(host)]
    )


async def started_all(host: DeviceHost, steps: Steps) -> None:
    """Complete `start_all` after the start of the container (`host.init_pid` is set)."""
    now = replace(host, config=steps.config_over(host.config))
    faults.point("container started")
    for device in device_types.ordered(host.devices):
        await device.started(now)


async def attach_missing(host: DeviceHost) -> None:
    """Mount devices that a restored container lacks: they were added after its state was saved.

    The failure of one is logged, as the processes run already.
    """
    for device in device_types.ordered(host.devices):
        if isinstance(device, InnerMount):
            try:
                if not await device.attached(host):
                    await device.attach(host)
            except Exception:
                log.exception("device %r of instance %r is not attached", device.name, host.instance.name)


async def killed_all(host: DeviceHost) -> None:
    """Start early clean-up of all devices while a killed container is ending. `stop_all` follows."""
    for device in device_types.ordered(host.devices):
        try:
            await device.killed(host)
        except Exception:
            log.exception(
                "early clean-up of device %r of instance %r failed", device.name, host.instance.name
            )
    faults.point("devices taken from killed container")


async def stop_all(host: DeviceHost) -> dict[str, str | None]:
    """Stop all devices. The failure of one is logged, and the others are stopped."""
    steps = Steps()
    for device in reversed(device_types.ordered(host.devices)):
        try:
            steps.take(device.name, await device.stop(host))
        except Exception:
            log.exception("stopping device %r of instance %r failed", device.name, host.instance.name)
    return steps.volatile


async def started_again(host: DeviceHost) -> None:
    """As `started_all` when the daemon starts, as it may have been killed before completing that."""
    for device in device_types.ordered(host.devices):
        try:
            await device.started(host)
        except Exception:
            log.exception(
                "completing the start of device %r of instance %r failed", device.name, host.instance.name
            )
