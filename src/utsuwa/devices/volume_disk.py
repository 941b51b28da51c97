"""Disks whose source is a custom volume of a storage pool."""

from __future__ import annotations

import asyncio
from functools import partial

from utsuwa.core.config_keys import ConfigKey, KeyTable
from utsuwa.core.errors import NotFound, OtherMember, Unavailable, UtsuwaError
from utsuwa.core.names import check_object_name, check_volume_name
from utsuwa.devices.base import DeviceHost, a_name
from utsuwa.devices.mounted_disk import MOUNT_KEYS, MountedDisk
from utsuwa.host.mounts import detached

_MISSING = (NotFound, OtherMember, Unavailable)


class VolumeDisk(MountedDisk):
    """A custom volume, mounted at `path` inside."""

    keys = KeyTable(
        "disk device",
        (
            *MOUNT_KEYS,
            ConfigKey(
                "pool",
                help="The storage pool of the custom volume",
                validate=a_name(partial(check_object_name, "Storage pool")),
            ),
            ConfigKey("source", help="The name of the custom volume", validate=a_name(check_volume_name)),
        ),
    )

    def validate(self) -> None:
        source = self.config.get("source", "")
        if not source:
            raise self.invalid("source", "is required: set it to the name of a custom volume")
        if not self.config.get("path"):
            raise self.invalid("path", "is required")
        if source.startswith("/"):
            raise self.invalid("source", "must be the name of a custom volume, not a path, as 'pool' is set")
        if "/" in source:
            raise self.invalid(
                "source", f"is {source!r}: snapshots cannot be attached, copy them to volumes first"
            )
        if self.config.get("shift"):
            raise self.invalid(
                "shift", "cannot be used with custom volumes: set security.shifted=true on the volume instead"
            )
        super().validate()

    async def check_start(self, host: DeviceHost) -> None:
        try:
            await host.volumes.check(self.config["pool"], self.config["source"])
        except _MISSING as error:
            if self.required:
                raise self._unusable(error) from error

    async def open_tree(self, host: DeviceHost) -> int | None:
        pool, source = self.config["pool"], self.config["source"]
        try:
            return await host.volumes.open_tree(self.name, pool, source, self.options)
        except _MISSING as error:
            if not self.required:
                return None
            raise self._unusable(error) from error
        except UtsuwaError as error:
            raise self._unusable(error) from error

    async def open_source(self, host: DeviceHost) -> int | None:
        folder = await host.volumes.folder(self.config["pool"], self.config["source"])
        return await asyncio.to_thread(detached.open_source, str(folder))

    async def closed(self, host: DeviceHost) -> None:
        host.volumes.close(self.name)

    async def started(self, host: DeviceHost) -> None:
        """Note its use again, as this is called when the daemon starts as well."""
        await super().started(host)
        if host.folder.has(self._entry):
            await host.volumes.keep(self.name, self.config["pool"], self.config["source"])

    def _unusable(self, error: UtsuwaError) -> UtsuwaError:
        return self.invalid("source", f"{self.config['source']!r} cannot be used: {error.message}")
