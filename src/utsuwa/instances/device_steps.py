"""What an instance's devices are told as a set: added, started, changed while running, stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from utsuwa import devices as device_types
from utsuwa.core.paths import StatePaths
from utsuwa.core.rollback import Rollback
from utsuwa.devices import Device, DeviceHost, RunConfig
from utsuwa.instances import volume
from utsuwa.instances.model import Loaded
from utsuwa.networks.manager import NetworkManager
from utsuwa.storage.base import IdMap
from utsuwa.storage.manager import StorageManager

log = logging.getLogger(__name__)

Devices = Mapping[str, Mapping[str, str]]


@dataclass
class Steps:
    """What the devices gave: lines for lxc.conf, and volatile changes by their whole key (None removes)."""

    lxc: list[tuple[str, str]] = field(default_factory=list)
    volatile: dict[str, str | None] = field(default_factory=dict)
    nics: int = 0

    def take(self, device: str, run: RunConfig) -> None:
        if any("{nic}" in key for key, _ in run.lxc):
            self.lxc.extend((key.replace("{nic}", str(self.nics)), value) for key, value in run.lxc)
            self.nics += 1
        else:
            self.lxc.extend(run.lxc)
        for key, value in run.volatile.items():
            self.volatile[f"volatile.{device}.{key}"] = value or None

    def config_over(self, config: Mapping[str, str]) -> dict[str, str]:
        """`config` with the volatile changes so far."""
        return changed_over(config, self.volatile)


def changed_over(config: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """`config` with `changes` made to it; None removes a key."""
    merged = {**config, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def host_of(
    paths: StatePaths,
    instance: Loaded,
    idmap: IdMap,
    init_pid: int | None = None,
    networks: NetworkManager | None = None,
    storage: StorageManager | None = None,
) -> DeviceHost:
    """`networks` is needed by what starts or attaches devices, `storage` by what starts them."""
    return DeviceHost(
        project=instance.project,
        instance=instance.name,
        storage_name=instance.storage_name,
        config=instance.expanded_config,
        idmap=idmap,
        devices_path=devices_path(paths, instance.storage_name),
        init_pid=init_pid,
        devices=instance.expanded_devices,
        networks=networks,
        storage=storage,
        pool=instance.pool if storage else "",
        volume=volume.describe(instance, idmap) if storage else None,
    )


def devices_path(paths: StatePaths, storage_name: str) -> Path:
    return paths.devices / storage_name


def _ordered(devices: Devices) -> list[Device]:
    return [device_types.load(name, devices[name]) for name in sorted(devices)]


def add_all(host: DeviceHost) -> dict[str, str | None]:
    """Volatile keys of devices that belong to the instance from now on (MAC addresses)."""
    steps = Steps()
    for device in _ordered(host.devices):
        steps.take(device.name, device.add(replace(host, config=steps.config_over(host.config))))
    return steps.volatile


async def start_all(host: DeviceHost, undo: Rollback) -> Steps:
    """Prepare every device; what was started is stopped again when `undo` runs."""
    steps = Steps()
    for device in _ordered(host.devices):
        now = replace(host, config=steps.config_over(host.config))
        steps.take(device.name, await device.start(now))
        undo.push(device.stop, replace(host, config=steps.config_over(host.config)))
    return steps


async def started_all(host: DeviceHost, steps: Steps) -> None:
    """Finish what `start_all` began; the container runs (`host.init_pid` is set)."""
    now = replace(host, config=steps.config_over(host.config))
    for device in _ordered(host.devices):
        await device.started(now)


async def killed_all(host: DeviceHost) -> None:
    """Tell every device that the container was killed; `stop_all` comes when it has ended."""
    for device in _ordered(host.devices):
        try:
            await device.killed(host)
        except Exception:
            log.exception("device %r of the killed instance %r", device.name, host.instance)


async def stop_all(host: DeviceHost) -> dict[str, str | None]:
    """Clean up after every device; a failure of one is logged and does not keep the others."""
    steps = Steps()
    for device in reversed(_ordered(host.devices)):
        try:
            steps.take(device.name, await device.stop(host))
        except Exception:
            log.exception("stopping device %r of instance %r failed", device.name, host.instance)
    return steps.volatile


async def change_running(host: DeviceHost, old: Devices, new: Devices, undo: Rollback) -> Steps:
    """Bring a running container from the devices `old` to `new`; undone when `undo` runs.

    Raises InvalidConfig where a device cannot change while the container runs.
    """
    steps = Steps()
    old_host = replace(host, devices=old)
    for device in reversed(_ordered(old)):
        before = old[device.name]
        after = new.get(device.name)
        if after == before or (
            after is not None and device_types.load(device.name, after).changes_in_place(before)
        ):
            continue
        steps.take(device.name, await device.detach(old_host))
        undo.push(device.attach, replace(old_host, config=steps.config_over(host.config)))
    for device in _ordered(new):
        before_config = old.get(device.name)
        if before_config == new[device.name]:
            continue
        now = replace(host, devices=new, config=steps.config_over(host.config))
        if before_config is not None and device.changes_in_place(before_config):
            steps.take(device.name, await device.update(now, before_config))
            undo.push(device_types.load(device.name, before_config).update, now, new[device.name])
        else:
            steps.take(device.name, await device.attach(now))
            undo.push(device.detach, replace(now, config=steps.config_over(host.config)))
    return steps


def with_devices(host: DeviceHost, devices: Devices) -> DeviceHost:
    """The same instance with another set of devices: those that its container was started with."""
    return replace(host, devices=devices)
