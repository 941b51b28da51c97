"""Type `disk`: the root volume, directories beside it, custom volumes, and sources on the host."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey, KeyTable, parse_bool
from utsuwa.core.names import check_object_name
from utsuwa.core.threads import in_thread
from utsuwa.devices import io_limits
from utsuwa.devices.base import BindMount, Device, DeviceHost, DeviceType, RunConfig, a_name
from utsuwa.devices.host_disk import HostDisk
from utsuwa.devices.inner_mount import InnerMount, check_path
from utsuwa.devices.volume_disk import VolumeDisk
from utsuwa.host.cgroups.io_limits import IoLimit
from utsuwa.host.mounts.detached import Options, copy_of, open_source
from utsuwa.host.system import block_devices

_INSTANCE = "instance:"
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")


_check_pool = a_name(partial(check_object_name, "Storage pool"))


class RootDisk(Device):
    """The root file system of the instance."""

    keys = KeyTable(
        "disk device",
        (
            ConfigKey("path", help="Where the disk is mounted inside; `/` is the root disk"),
            ConfigKey("pool", help="The storage pool that holds the root volume", validate=_check_pool),
            ConfigKey("size", type="size", help="The quota of the root volume"),
            ConfigKey("size.state", type="size", help="The same for a volume of runtime state"),
            ConfigKey("boot.priority", type="integer", help="Order of boot disks of virtual machines"),
            ConfigKey("readonly", type="bool", default="false", live=False, help="Mount the root read-only"),
            *io_limits.KEYS,
        ),
    )
    live_keys = frozenset({"size", "size.state", "boot.priority"}) | io_limits.NAMES

    def validate(self) -> None:
        super().validate()
        if not self.config.get("pool"):
            raise self.invalid("pool", "is required for the root disk: set it to a storage pool")

    async def start(self, host: DeviceHost) -> RunConfig:
        return RunConfig(read_only_root=parse_bool(self.config.get("readonly", "")))

    async def io_limits(self, host: DeviceHost) -> list[tuple[str, IoLimit]]:
        limit = io_limits.limit_of(self.config)
        if limit is None:
            return []
        return [(self.known_disk(await in_thread(_disk_below, host.volume.rootfs.parent)), limit)]


class InstanceFolder(InnerMount):
    """A directory of the instance's volume beside its root file system: `source=instance:<name>`.

    Programs that create overlays inside (Docker) need such a directory, as the root file system may be an
    overlay, which cannot contain the upper layer of another one. It is deleted with the instance.
    """

    keys = KeyTable(
        "disk device",
        (
            ConfigKey("path", help="Where it is mounted inside", validate=check_path),
            ConfigKey("source", help="`instance:` and the folder's name"),
            ConfigKey("readonly", type="bool", default="false", help="Mount it read-only"),
        ),
    )

    def validate(self) -> None:
        if not self.config.get("path"):
            raise self.invalid("path", "is required")
        super().validate()
        if not _FOLDER_NAME.match(self._folder):
            why = "must be 'instance:' and a name of up to 64 letters, digits, dots, dashes and underscores"
            raise self.invalid("source", why)

    async def start(self, host: DeviceHost) -> RunConfig:
        shown = await host.volume.mount_folder(self._folder)
        mount = BindMount(shown, self.target, self.flag("readonly"))
        return RunConfig(mounts=[await in_thread(self.with_mount_point, host, mount, is_folder=True)])

    async def attach(self, host: DeviceHost) -> RunConfig:
        shown = await host.volume.mount_folder(self._folder)
        tree = await in_thread(copy_of, shown, Options(read_only=self.flag("readonly")))
        try:
            await self.attach_tree(host, tree)
        finally:
            os.close(tree)
        return RunConfig()

    @property
    def _folder(self) -> str:
        return self.config.get("source", "").removeprefix(_INSTANCE)


def _disk_below(folder: Path) -> str | None:
    fd = open_source(str(folder))
    try:
        return block_devices.below(fd)
    finally:
        os.close(fd)


def is_root_disk(config: Mapping[str, str]) -> bool:
    """Whether a device is a root disk: of type disk, at `/`, with nothing mounted onto it."""
    return config.get("type") == "disk" and config.get("path") == "/" and not config.get("source")


def load_disk(name: str, config: Mapping[str, str], instance: bool) -> Device:
    kind: type[Device] = HostDisk
    if is_root_disk(config):
        kind = RootDisk
    elif config.get("source", "").startswith(_INSTANCE):
        kind = InstanceFolder
    elif config.get("pool"):
        kind = VolumeDisk
    return kind(name, config, instance=instance)


_ALL_KEYS = {key.name: key for table in (RootDisk, VolumeDisk, HostDisk) for key in table.keys.keys}
DISK = DeviceType("disk", load_disk, {"disk": KeyTable("disk device", tuple(_ALL_KEYS.values()))})
