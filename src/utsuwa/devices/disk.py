"""Type `disk`: the root volume, with path `/` and a pool, and directories beside it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey, KeyTable, parse_bool
from utsuwa.core.errors import InvalidConfig, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.names import check_object_name
from utsuwa.devices.base import BindMount, Device, DeviceHost, DeviceType, RunConfig, a_name
from utsuwa.host.files.filetree import FileTree

_LATER = frozenset(
    {
        "ceph.cluster_name",
        "ceph.user_name",
        "limits.max",
        "limits.read",
        "limits.write",
        "optional",
        "propagation",
        "raw.mount.options",
        "recursive",
        "required",
        "shift",
    }
)


_INSTANCE = "instance:"
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")


def _check_path(value: str) -> None:
    parts = value.rstrip("/").split("/")
    if len(parts) < 2 or parts[0] or any(part in ("", ".", "..") for part in parts[1:]):
        raise InvalidConfig("must be an absolute path without '.' and '..', and not the root")


_check_pool = a_name(partial(check_object_name, "Storage pool"))


class RootDisk(Device):
    """The instance's own file system."""

    keys = KeyTable(
        "disk device",
        (
            ConfigKey("path", help="Where the disk is mounted inside; `/` is the root disk"),
            ConfigKey("pool", help="The storage pool that holds the root volume", validate=_check_pool),
            ConfigKey("size", type="size", help="The quota of the root volume"),
            ConfigKey("size.state", type="size", help="The same for a volume of runtime state"),
            ConfigKey("boot.priority", type="integer", help="Order of boot disks of virtual machines"),
            ConfigKey("readonly", type="bool", default="false", live=False, help="Mount the root read-only"),
        ),
    )
    later = _LATER
    live_keys = frozenset({"size", "size.state", "boot.priority"})

    def validate(self) -> None:
        super().validate()
        if not self.config.get("pool"):
            raise self.invalid("pool", "is required for the root disk: name a storage pool")

    async def start(self, host: DeviceHost) -> RunConfig:
        return RunConfig(read_only_root=parse_bool(self.config.get("readonly", "")))


class InstanceFolder(Device):
    """A folder of the instance's own, beside its root file system: `source=instance:<name>`.

    An overlay cannot hold another overlay's upper layer, and a root file system may be one: so what makes
    overlays inside (Docker) needs such a folder. It is kept as long as the instance, and goes with it.
    """

    keys = KeyTable(
        "disk device",
        (
            ConfigKey("path", help="Where it is mounted inside", validate=_check_path),
            ConfigKey("source", help="`instance:` and the folder's name"),
            ConfigKey("readonly", type="bool", default="false", live=False, help="Mount it read-only"),
        ),
    )
    later = _LATER

    def validate(self) -> None:
        if not self.config.get("path"):
            raise self.invalid("path", "is required")
        super().validate()
        if not _FOLDER_NAME.match(self._folder):
            why = "must be 'instance:' and a name of up to 64 letters, digits, dots, dashes and underscores"
            raise self.invalid("source", why)

    async def start(self, host: DeviceHost) -> RunConfig:
        shown = await host.volume.mount_folder(self._folder)
        await asyncio.to_thread(self._make_target, host.volume.rootfs, host.idmap)
        read_only = parse_bool(self.config.get("readonly", ""))
        return RunConfig(mounts=[BindMount(shown, self.config["path"], read_only)])

    @property
    def place(self) -> tuple[str, ...]:
        return tuple(self.config.get("path", "").strip("/").split("/"))

    @property
    def _folder(self) -> str:
        return self.config.get("source", "").removeprefix(_INSTANCE)

    def _make_target(self, rootfs: Path, idmap: IdMap) -> None:
        """Create the mount point, as liblxc might follow symlinks out of the container."""
        with FileTree(rootfs, idmap) as tree:
            tree.make_folder(self.config["path"])


class OtherDisk(Device):
    """Any other disk, which is checked for completeness, but not supported yet."""

    keys = KeyTable(
        "disk device",
        (*RootDisk.keys.keys, ConfigKey("source", help="What is mounted: a path or a volume")),
    )
    later = _LATER

    def validate(self) -> None:
        for key in ("source", "path"):
            if not self.config.get(key):
                raise self.invalid(key, "is required")
        super().validate()
        raise NotSupportedYet(
            f"Device {self.name!r}: disks other than the root disk (path '/', without 'source') and "
            "folders of the instance's own (source=instance:NAME) are not supported yet"
        )


def is_root_disk(config: Mapping[str, str]) -> bool:
    """Whether a device is a root disk: of type disk, at `/`, with nothing mounted onto it."""
    return config.get("type") == "disk" and config.get("path") == "/" and not config.get("source")


def load_disk(name: str, config: Mapping[str, str], instance: bool) -> Device:
    kind: type[Device] = OtherDisk
    if is_root_disk(config):
        kind = RootDisk
    elif config.get("source", "").startswith(_INSTANCE):
        kind = InstanceFolder
    return kind(name, config, instance=instance)


DISK = DeviceType("disk", load_disk, {"disk": RootDisk.keys})
