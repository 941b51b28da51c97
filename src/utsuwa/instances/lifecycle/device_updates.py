"""Changes of the devices of an instance, which may be running: checked, planned, applied and reverted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from utsuwa import devices as device_types
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.db.device_changes import Changes, DeviceChange
from utsuwa.devices import Device, DeviceHost
from utsuwa.host.cgroups import io_limits as io
from utsuwa.instances.lifecycle.device_steps import Devices, Steps, io_limits

log = logging.getLogger(__name__)


async def check_added(host: DeviceHost, old: Devices) -> None:
    """Raise InvalidConfig for what new and changed devices name and the host does not have."""
    for device in device_types.ordered(host.devices):
        before = old.get(device.name)
        if before is None or not device.changes_in_place(before):
            await device.check_added(host)


def in_place(device: str, before: Mapping[str, str] | None, change: DeviceChange) -> bool:
    """Whether a device is changed without being detached and attached."""
    if before is None or change.after is None or change.again:
        return False
    return device_types.load(device, change.after).changes_in_place(before)


async def plan_change(
    host: DeviceHost, old: Devices, new: Devices, *, running: bool
) -> dict[str, DeviceChange]:
    """Return the changes by which an instance gets the devices `new` in place of `old`.

    Raises InvalidConfig for a device that cannot be changed while the container is running.
    """
    found: dict[str, DeviceChange] = {}
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if running and before is not None and after is not None:
            _check_fixed_keys(name, before, after)
        found[name] = DeviceChange(None if after is None else dict(after))
    if not running:
        return found
    found |= _mounted_below(old, new, found)
    for name, change in found.items():
        if change.after is not None and not in_place(name, old.get(name), change):
            device = device_types.load(name, change.after)
            found[name] = replace(change, reserved=await device.reserve(replace(host, devices=new)))
    return found


def _mounted_below(old: Devices, new: Devices, changes: Changes) -> dict[str, DeviceChange]:
    """Return unchanged devices that are mounted below others which are detached or attached.

    They are detached before those, and attached again after them.
    """
    moved = {
        place
        for name, change in changes.items()
        if not in_place(name, old.get(name), change)
        for config in (old.get(name), change.after)
        if config is not None and (place := device_types.load(name, config).place)
    }
    return {
        name: DeviceChange(dict(config), again=True)
        for name, config in new.items()
        if name not in changes
        and any(device_types.load(name, config).place[: len(place)] == place for place in moved)
    }


def _check_fixed_keys(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise InvalidConfig, with the keys, if a device can be neither changed in place nor replaced."""
    fixed = device_types.load(name, after).fixed_while_running(before)
    if fixed and not device_types.load(name, before).live:
        raise InvalidConfig(
            f"Device {name!r}: {', '.join(map(repr, fixed))} cannot be changed while the instance is running:"
            " stop it first"
        )


async def change_running(
    host: DeviceHost,
    old: Devices,
    new: Devices,
    changes: Changes,
    undo: Rollback,
    *,
    old_config: Mapping[str, str],
) -> Steps:
    """Apply changes to a running container; they are reverted if `undo` runs.

    `host.config` is the new config of the instance, `old_config` that before the change.
    Raises InvalidConfig for a device that cannot be changed while the container is running.
    """
    steps = Steps()
    old_host, old_devices = replace(host, devices=old), device_types.ordered(old)
    undo.push(_follow_config, replace(old_host, config=old_config), old_devices)
    for device in reversed(old_devices):
        name = device.name
        if name not in changes or in_place(name, old[name], changes[name]):
            continue
        before = steps.config_over(host.config)
        steps.take(name, await device.detach(old_host))
        undo.push(_attach_again, device, replace(old_host, config=before))
    new_host = replace(host, devices=new, reserved={name: c.reserved for name, c in changes.items()})
    devices = device_types.ordered(new)
    for device in devices:
        name = device.name
        if name not in changes:
            continue
        now = replace(new_host, config=steps.config_over(host.config))
        if in_place(name, old.get(name), changes[name]):
            steps.take(name, await device.update(now, old[name]))
            undo.push(device_types.load(name, old[name]).update, now, new[name])
        else:
            steps.take(name, await device.attach(now))
            undo.push(device.detach, replace(now, config=steps.config_over(host.config)))
    await _change_io_limits(host, old, new, undo)
    await _follow_config(replace(new_host, config=steps.config_over(host.config)), devices)
    return steps


async def _follow_config(host: DeviceHost, devices: Iterable[Device]) -> None:
    for device in devices:
        await device.follow_config(host)


async def _attach_again(device: Device, host: DeviceHost) -> None:
    """Attach a device again, under its stored name on the host."""
    host_name = host.volatile(device.name, "host_name")
    names = {"host_name": host_name} if host_name else {}
    await device.attach(replace(host, reserved={device.name: names}))


async def undo_change(host: DeviceHost, changes: Changes) -> None:
    """Revert changes that were interrupted at any point; `host.devices` are the devices before them.

    Failures are logged, and the other devices are reverted.
    """
    after = {name: change.after for name, change in changes.items() if change.after is not None}
    for device in reversed(device_types.ordered(after)):
        change = changes[device.name]
        with _logged(host, device):
            if in_place(device.name, host.devices.get(device.name), change):
                before = device_types.load(device.name, host.devices[device.name])
                await before.update(host, after[device.name])
            else:
                await _revert_attach(host, device, change)
    if host.init_pid is None:
        return
    for device in device_types.ordered(host.devices):
        if device.name in changes:
            with _logged(host, device):
                if not await device.attached(host):
                    await _attach_again(device, host)
                await device.follow_config(host)
    made = await _io_limits_before(replace(host, devices={**host.devices, **after}))
    await in_thread(io.change, host.init_pid, made, await _io_limits_before(host))


@contextmanager
def _logged(host: DeviceHost, device: Device) -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception(
            "reverting the change of device %r of instance %r failed", device.name, host.instance.name
        )


async def _revert_attach(host: DeviceHost, device: Device, change: DeviceChange) -> None:
    """Detach a device that may have been attached."""
    made = {f"volatile.{device.name}.{key}": value for key, value in change.reserved.items()}
    host = replace(host, config={**host.config, **made})
    if host.init_pid is not None and device.live:
        await device.detach(host)
    else:
        await device.stop(host)


async def _io_limits_before(host: DeviceHost) -> io.Limits:
    """As `io_limits`, for devices that are in use: those whose disk no longer exists have no limits."""
    found = []
    for device in device_types.ordered(host.devices):
        with suppress(InvalidConfig):
            found += await device.io_limits(host)
    return io.merged(found)


async def _change_io_limits(host: DeviceHost, old: Devices, new: Devices, undo: Rollback) -> None:
    if not any(device_types.limits_requests(config) for config in (*old.values(), *new.values())):
        return
    before = await _io_limits_before(replace(host, devices=old))
    after = await io_limits(replace(host, devices=new))
    if before != after and host.init_pid is not None:
        undo.push(in_thread, io.change, host.init_pid, after, before)
        await in_thread(io.change, host.init_pid, before, after)
