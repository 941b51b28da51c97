"""Disks whose source is on the host: a directory, a file, or the file system on a block device."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace

from utsuwa.core.config_keys import ConfigKey, KeyTable
from utsuwa.core.errors import HostError, InvalidConfig, NotSupportedYet
from utsuwa.core.threads import in_thread
from utsuwa.devices.base import DeviceHost
from utsuwa.devices.mounted_disk import MOUNT_KEYS, MountedDisk
from utsuwa.host.mounts import detached

_ELSEWHERE = ("ceph:", "cephfs:", "cloud-init:", "tmpfs:", "tmpfs-overlay:")
"""Prefixes of other kinds of sources in LXD and Incus."""


class HostDisk(MountedDisk):
    """A source on the host, mounted at `path` inside."""

    keys = KeyTable(
        "disk device",
        (
            *MOUNT_KEYS,
            ConfigKey("source", help="A directory, file or block device of the host"),
            ConfigKey(
                "shift",
                type="bool",
                default="false",
                help="Show the source's owners with the same ids inside",
                since="container_disk_shift",
            ),
        ),
    )
    later = frozenset({"ceph.cluster_name", "ceph.user_name"})

    def validate(self) -> None:
        for key in ("source", "path"):
            if not self.config.get(key):
                raise self.invalid(key, "is required")
        source = self.config["source"]
        if source.startswith(_ELSEWHERE):
            kind = source.partition(":")[0]
            raise NotSupportedYet(
                f"Device {self.name!r}: disks with a source of {kind!r} are not supported yet"
            )
        super().validate()
        if not source.startswith("/"):
            raise self.invalid("source", "must be an absolute path on the host, or a volume of a 'pool'")

    async def check_start(self, host: DeviceHost) -> None:
        source = await self.open_source(host)
        if source is not None:
            os.close(source)

    async def open_tree(self, host: DeviceHost) -> int | None:
        return await in_thread(self._tree, host)

    async def open_source(self, host: DeviceHost) -> int | None:
        return await in_thread(self._open, host)

    def _open(self, host: DeviceHost) -> int | None:
        """Open the source; return None if it does not exist and is not required."""
        source = self.config["source"]
        try:
            descriptor = detached.open_source(source, below=host.disk_paths)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) and not self.required:
                return None
            raise self.invalid(
                "source", f"{source} cannot be opened: {error.strerror}: correct it, or set required=false"
            ) from error
        if not self.flag("readonly") and detached.lies_below(descriptor, host.frozen()):
            os.close(descriptor)
            what = "belongs to a snapshot or an image, which never changes"
            raise self.invalid("source", f"{source} {what}: set readonly=true to show it")
        return descriptor

    def _tree(self, host: DeviceHost) -> int | None:
        """Return a detached mount of the source, None if it does not exist. Raises InvalidConfig."""
        source = self._open(host)
        if source is None:
            return None
        options = replace(self.options, idmap=host.idmap if self.flag("shift") else None)
        try:
            is_block = stat.S_ISBLK(os.fstat(source).st_mode)
            return (detached.mounted_device if is_block else detached.copied)(source, options)
        except (HostError, InvalidConfig) as error:
            key = "shift" if isinstance(error, HostError) else "source"
            raise self.invalid(key, f"{self.config['source']}: {error.message}") from error
        except OSError as error:
            raise self.invalid(
                "source", f"{self.config['source']} cannot be mounted: {error.strerror}"
            ) from error
        finally:
            os.close(source)
