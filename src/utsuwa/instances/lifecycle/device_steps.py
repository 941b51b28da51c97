"""What an instance's devices are told as a set: added, started, changed while running, stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from utsuwa import devices as device_types
from utsuwa.core import faults
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.paths import StatePaths
from utsuwa.core.rollback import Rollback
from utsuwa.db.device_changes import Changes, DeviceChange
from utsuwa.devices import BindMount, Device, DeviceHost, RunConfig
from utsuwa.host.network.veth import Pair
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.storage.manager import StorageManager

log = logging.getLogger(__name__)

Devices = Mapping[str, Mapping[str, str]]


@dataclass
class Steps:
    """What the devices gave, and volatile changes by their whole key (None removes)."""

    mounts: list[BindMount] = field(default_factory=list)
    nics: list[Pair] = field(default_factory=list)
    read_only_root: bool = False
    volatile: dict[str, str | None] = field(default_factory=dict)

    def take(self, device: str, run: RunConfig) -> None:
        self.mounts += run.mounts
        self.nics += run.nics
        self.read_only_root |= run.read_only_root
        for key, value in run.volatile.items():
            self.volatile[f"volatile.{device}.{key}"] = value or None

    @property
    def changes_addresses(self) -> bool:
        """Whether a device got a MAC address, which the networks do not know of yet."""
        return any(key.endswith(".hwaddr") for key in self.volatile)

    def config_over(self, config: Mapping[str, str]) -> dict[str, str]:
        """`config` with the volatile changes so far."""
        return changed_over(config, self.volatile)


def changed_over(config: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """`config` with `changes` made to it; None removes a key."""
    merged = {**config, **changes}
    return {key: value for key, value in merged.items() if value is not None}


@dataclass(frozen=True)
class _Volume:
    """An instance's own volume, for its devices."""

    storage: StorageManager
    instance: Loaded
    idmap: IdMap

    @property
    def rootfs(self) -> Path:
        return self.storage.volumes.folder(self.instance.pool, self.instance.volume) / "rootfs"

    async def mount_folder(self, name: str) -> Path:
        volumes, instance = self.storage.volumes, self.instance
        return await volumes.mount_folder(instance.pool, instance.volume, self.idmap, name)


def host_of(ctx: Context, instance: Loaded, idmap: IdMap, init_pid: int | None = None) -> DeviceHost:
    return DeviceHost(
        project=instance.project,
        instance=instance.name,
        storage_name=instance.storage_name,
        config=instance.expanded_config,
        idmap=idmap,
        devices_path=devices_path(ctx.paths, instance.storage_name),
        init_pid=init_pid,
        devices=instance.expanded_devices,
        ports=ctx.networks,
        volume=_Volume(ctx.storage, instance, idmap),
    )


def devices_path(paths: StatePaths, storage_name: str) -> Path:
    return paths.devices / storage_name


def add_all(host: DeviceHost) -> dict[str, str | None]:
    """Volatile keys of devices that belong to the instance from now on (MAC addresses)."""
    steps = Steps()
    for device in device_types.ordered(host.devices):
        steps.take(device.name, device.add(replace(host, config=steps.config_over(host.config))))
    return steps.volatile


async def check_all(host: DeviceHost) -> None:
    """Raise what `start_all` would, as far as devices can tell without starting; the container may run."""
    for device in device_types.ordered(host.devices):
        await device.check_start(host)


async def start_all(host: DeviceHost, undo: Rollback) -> Steps:
    """Prepare every device; what was started is stopped again when `undo` runs."""
    steps = Steps()
    for device in device_types.ordered(host.devices):
        now = replace(host, config=steps.config_over(host.config))
        steps.take(device.name, await device.start(now))
        undo.push(device.stop, replace(host, config=steps.config_over(host.config)))
    return steps


async def started_all(host: DeviceHost, steps: Steps) -> None:
    """Finish what `start_all` began; the container runs (`host.init_pid` is set)."""
    now = replace(host, config=steps.config_over(host.config))
    faults.point("container started")
    for device in device_types.ordered(host.devices):
        await device.started(now)


async def killed_all(host: DeviceHost) -> None:
    """Tell every device that the container was killed; `stop_all` comes when it has ended."""
    for device in device_types.ordered(host.devices):
        try:
            await device.killed(host)
        except Exception:
            log.exception("device %r of the killed instance %r", device.name, host.instance)
    faults.point("devices taken from killed container")


async def stop_all(host: DeviceHost) -> dict[str, str | None]:
    """Clean up after every device; a failure of one is logged and does not keep the others."""
    steps = Steps()
    for device in reversed(device_types.ordered(host.devices)):
        try:
            steps.take(device.name, await device.stop(host))
        except Exception:
            log.exception("stopping device %r of instance %r failed", device.name, host.instance)
    return steps.volatile


def in_place(device: str, before: Mapping[str, str] | None, after: Mapping[str, str] | None) -> bool:
    """Whether a device changes without being detached and attached."""
    if before is None or after is None:
        return False
    return device_types.load(device, after).changes_in_place(before)


async def plan_change(
    host: DeviceHost, old: Devices, new: Devices, *, running: bool
) -> dict[str, DeviceChange]:
    """What has to change to bring an instance from the devices `old` to `new`.

    Raises InvalidConfig for a device that cannot change while the container runs.
    """
    found = {}
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if running and before is not None and after is not None:
            _refuse_fixed(name, before, after)
        reserved: dict[str, str] = {}
        if running and after is not None and not in_place(name, before, after):
            reserved = await device_types.load(name, after).reserve(replace(host, devices=new))
        found[name] = DeviceChange(None if after is None else dict(after), reserved)
    return found


def _refuse_fixed(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """A device that can be neither changed nor exchanged: say which of its keys are in the way."""
    fixed = device_types.load(name, after).fixed_while_running(before)
    if fixed and not device_types.load(name, before).live:
        raise InvalidConfig(
            f"Device {name!r}: {', '.join(map(repr, fixed))} cannot be changed while the instance runs:"
            " stop it first"
        )


async def change_running(
    host: DeviceHost, old: Devices, new: Devices, changes: Changes, undo: Rollback
) -> Steps:
    """Carry out a plan; undone when `undo` runs.

    Raises InvalidConfig where a device cannot change while the container runs.
    """
    steps = Steps()
    old_host = replace(host, devices=old)
    for device in reversed(device_types.ordered(old)):
        name = device.name
        if name not in changes or in_place(name, old[name], changes[name].after):
            continue
        before = steps.config_over(host.config)
        steps.take(name, await device.detach(old_host))
        undo.push(_attach_again, device, replace(old_host, config=before))
    new_host = replace(host, devices=new, reserved={name: c.reserved for name, c in changes.items()})
    for device in device_types.ordered(new):
        name = device.name
        if name not in changes:
            continue
        now = replace(new_host, config=steps.config_over(host.config))
        if in_place(name, old.get(name), new[name]):
            steps.take(name, await device.update(now, old[name]))
            undo.push(device_types.load(name, old[name]).update, now, new[name])
        else:
            steps.take(name, await device.attach(now))
            undo.push(device.detach, replace(now, config=steps.config_over(host.config)))
    return steps


async def _attach_again(device: Device, host: DeviceHost) -> None:
    """Bring a device back as it was, under the name that is stored for it."""
    host_name = host.volatile(device.name, "host_name")
    names = {"host_name": host_name} if host_name else {}
    await device.attach(replace(host, reserved={device.name: names}))


async def undo_change(host: DeviceHost, changes: Changes) -> None:
    """Take back what a daemon that was killed had begun; `host.devices` are those before.

    It may have come to any point. What cannot be taken back is logged and does not keep the rest.
    """
    for name, change in sorted(changes.items()):
        try:
            await _undo_one(host, name, change)
        except Exception:
            log.exception("taking back a change of device %r of instance %r", name, host.instance)


async def _undo_one(host: DeviceHost, name: str, change: DeviceChange) -> None:
    before = host.devices.get(name)
    if in_place(name, before, change.after):
        await device_types.load(name, before or {}).update(host, change.after or {})
        return
    if change.after is not None:
        made = {f"volatile.{name}.{key}": value for key, value in change.reserved.items()}
        await device_types.load(name, change.after).stop(replace(host, config={**host.config, **made}))
    if before is not None and host.init_pid is not None:
        device = device_types.load(name, before)
        if not await device.attached(host):
            await _attach_again(device, host)


async def started_again(host: DeviceHost) -> None:
    """As `started_all` for a container that was found running: its daemon may have died before that."""
    for device in device_types.ordered(host.devices):
        try:
            await device.started(host)
        except Exception:
            log.exception("device %r of instance %r is not as configured", device.name, host.instance)


def with_devices(host: DeviceHost, devices: Devices) -> DeviceHost:
    """The same instance with another set of devices: those that its container was started with."""
    return replace(host, devices=devices)
