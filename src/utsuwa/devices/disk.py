"""`disk`: the root volume, with path `/` and a pool. Its files are the storage manager's work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from utsuwa.core.config_keys import ConfigKey, KeyTable, parse_bool
from utsuwa.core.errors import NotSupportedYet
from utsuwa.core.names import check_object_name
from utsuwa.core.units import parse_bytes
from utsuwa.devices.base import Device, DeviceHost, RunConfig, a_name

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
        if parse_bool(self.config.get("readonly", "")):
            return RunConfig(lxc=[("lxc.rootfs.options", "ro")])
        return RunConfig()

    @property
    def size(self) -> int | None:
        """The quota in bytes; None where none is set."""
        size = self.config.get("size", "")
        return parse_bytes(size) if size else None


class OtherDisk(Device):
    """Any disk but the root: recognised and checked for completeness, not served yet."""

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
            f"Device {self.name!r}: disks other than the root disk (path '/', without 'source') "
            "are not supported yet"
        )


def is_root_disk(config: Mapping[str, str]) -> bool:
    """Whether a device is a root disk: of type disk, at `/`, with nothing mounted onto it."""
    return config.get("type") == "disk" and config.get("path") == "/" and not config.get("source")


def load_disk(name: str, config: Mapping[str, str], instance: bool) -> Device:
    kind = RootDisk if is_root_disk(config) else OtherDisk
    return kind(name, config, instance=instance)
