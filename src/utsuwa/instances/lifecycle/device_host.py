"""What the devices of an instance may use: its volume, its running container, its folder for nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap
from utsuwa.core.paths import StatePaths
from utsuwa.core.refs import InstanceRef
from utsuwa.devices import DeviceHost, NicNaming
from utsuwa.host.helper.mounting import InnerPath
from utsuwa.host.mounts.detached import Options
from utsuwa.host.mounts.device_folder import DeviceFolder, DeviceNumber
from utsuwa.instances.confinement.lxcconf import DEVICE_RULES, has_device_rules
from utsuwa.instances.context import Context
from utsuwa.instances.model import Loaded
from utsuwa.storage.manager import StorageManager


@dataclass(frozen=True)
class _Volume:
    """The instance's own volume, as devices use it."""

    storage: StorageManager
    instance: Loaded
    idmap: IdMap

    @property
    def rootfs(self) -> Path:
        return self.storage.volumes.folder(self.instance.pool, self.instance.ref.volume) / "rootfs"

    async def mount_folder(self, name: str) -> Path:
        volumes, instance = self.storage.volumes, self.instance
        return await volumes.mount_folder(instance.pool, instance.ref.volume, self.idmap, name)


@dataclass(frozen=True)
class _CustomVolumes:
    """The custom volumes, as the devices of an instance use them."""

    storage: StorageManager
    instance: InstanceRef
    idmap: IdMap

    async def check(self, pool: str, volume: str) -> None:
        await self.storage.custom.check(self.instance, pool, volume)

    async def open_tree(self, device: str, pool: str, volume: str, options: Options) -> int:
        custom = self.storage.custom
        return await custom.open_tree(self.instance, device, pool, volume, self.idmap, options)

    async def folder(self, pool: str, volume: str) -> Path:
        return await self.storage.custom.folder(self.instance, pool, volume)

    async def keep(self, device: str, pool: str, volume: str) -> None:
        await self.storage.custom.keep(self.instance, device, pool, volume, self.idmap)

    def close(self, device: str) -> None:
        self.storage.custom.close(self.instance, device)


@dataclass(frozen=True)
class _Container:
    """The instance's running container, as devices use it."""

    ctx: Context
    instance: Loaded
    idmap: IdMap

    async def mount(self, tree: int, path: str, propagation: int = 0) -> None:
        with _ending():
            await self.ctx.helper.mounting.mount(self._inside(path), tree, propagation)

    async def unmount(self, path: str, *, remove_file: bool = False) -> bool:
        with _ending():
            return await self.ctx.helper.mounting.unmount(self._inside(path), remove_file=remove_file)

    async def mounted(self, path: str) -> bool:
        with _ending():
            return await self.ctx.helper.mounting.mounted(self._inside(path))

    async def allow_device(self, device: DeviceNumber, *, allow: bool) -> None:
        running = self.ctx.runtime.get(self.instance.ref)
        config = self.instance.expanded.config if running is None else running.config
        if has_device_rules(self.idmap, config) and device.rule not in DEVICE_RULES:
            name = self.instance.ref.storage_name
            await self.ctx.helper.allow_device(name, self.ctx.paths.containers, device.rule, allow=allow)

    def _inside(self, path: str) -> InnerPath:
        running = self.ctx.runtime.get(self.instance.ref)
        if running is None:
            raise ProcessLookupError
        return running.inside(path)


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        raise HostError("the instance is no longer running") from None


def host_of(ctx: Context, instance: Loaded, idmap: IdMap, init_pid: int | None = None) -> DeviceHost:
    return DeviceHost(
        instance=instance.ref,
        config=instance.expanded.config,
        idmap=idmap,
        folder=device_folder(ctx.paths, instance.ref),
        init_pid=init_pid,
        devices=instance.expanded.devices,
        ports=ctx.networks,
        volume=_Volume(ctx.storage, instance, idmap),
        volumes=_CustomVolumes(ctx.storage, instance.ref, idmap),
        container=_Container(ctx, instance, idmap),
        disk_paths=instance.restrictions.disk_paths,
        frozen=ctx.storage.volumes.frozen_folders,
        naming=NicNaming(
            instance.restrictions.mac_pattern or ctx.settings.value("network.hwaddr_pattern"),
            by_mac=ctx.settings.value("instances.nic.host_name") == "mac",
        ),
    )


def device_folder(paths: StatePaths, ref: InstanceRef) -> DeviceFolder:
    return DeviceFolder(paths.devices / ref.storage_name)


def with_devices(host: DeviceHost, devices: Mapping[str, Mapping[str, str]]) -> DeviceHost:
    """Return the instance with other devices, such as those that its container was started with."""
    return replace(host, devices=devices)
