"""Disks whose source is mounted for the instance, on the host or on a storage pool, and then inside."""

from __future__ import annotations

import os
import stat

from utsuwa.core.config_keys import ConfigKey, one_of
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.threads import in_thread
from utsuwa.devices import io_limits
from utsuwa.devices.base import BindMount, DeviceHost, RunConfig
from utsuwa.devices.inner_mount import InnerMount, check_path
from utsuwa.devices.names import entry_name
from utsuwa.host.cgroups.io_limits import IoLimit
from utsuwa.host.mounts.detached import PROPAGATIONS, Options
from utsuwa.host.system import block_devices


def _check_options(value: str) -> None:
    if any(c in value for c in "\n\r"):
        raise InvalidConfig("contains a line break")


MOUNT_KEYS = (
    ConfigKey("path", help="Where it is mounted inside", validate=check_path),
    ConfigKey("readonly", type="bool", default="false", help="Mount it read-only"),
    ConfigKey("recursive", type="bool", default="false", help="Show mounts below the source too"),
    ConfigKey(
        "propagation",
        default="private",
        help="How later mounts below it are shared with the host",
        validate=one_of(*PROPAGATIONS),
    ),
    ConfigKey("required", type="bool", default="true", help="Whether a start fails without the source"),
    ConfigKey("optional", type="bool", default="false", help="The opposite of `required`, its old name"),
    ConfigKey("raw.mount.options", help="Options of mount(8)", validate=_check_options),
    *io_limits.KEYS,
    ConfigKey("boot.priority", type="integer", help="Order of boot disks of virtual machines"),
)
"""The keys of all these disks."""


class MountedDisk(InnerMount):
    """A source that is shown at `path` inside."""

    live_keys = frozenset({"required", "optional", "boot.priority"}) | io_limits.NAMES

    def validate(self) -> None:
        super().validate()
        if self.config.get("required") and self.config.get("optional"):
            raise self.invalid("optional", "is the deprecated opposite of 'required': use only 'required'")

    async def open_tree(self, host: DeviceHost) -> int | None:
        """Return a detached mount of the source; None if it does not exist and is not required.

        Raises the error of a start.
        """
        raise NotImplementedError

    async def closed(self, host: DeviceHost) -> None:
        """Called when the container does not have what `open_tree` returned, or has it no longer."""

    async def open_source(self, host: DeviceHost) -> int | None:
        """Return a descriptor of the source, in order to find its disk; None if there is none."""
        raise NotImplementedError

    @property
    def required(self) -> bool:
        return self.flag("required", "true") and not self.flag("optional")

    @property
    def options(self) -> Options:
        """How the source is mounted."""
        return Options(
            read_only=self.flag("readonly"),
            recursive=self.flag("recursive"),
            others=tuple(filter(None, self.config.get("raw.mount.options", "").split(","))),
        )

    @property
    def _entry(self) -> str:
        """Its name in the directory of devices."""
        return entry_name("disk", self.name)

    async def check_added(self, host: DeviceHost) -> None:
        await self.check_start(host)

    async def io_limits(self, host: DeviceHost) -> list[tuple[str, IoLimit]]:
        limit = io_limits.limit_of(self.config)
        if limit is None:
            return []
        source = await self.open_source(host)
        if source is None:
            return []
        try:
            disk = await in_thread(block_devices.below, source)
        finally:
            os.close(source)
        return [(self.known_disk(disk), limit)]

    async def start(self, host: DeviceHost) -> RunConfig:
        tree = await self.open_tree(host)
        if tree is None:
            return RunConfig()
        try:
            return RunConfig(mounts=[await in_thread(self._show, host, tree)])
        except BaseException:
            await self.closed(host)
            raise
        finally:
            os.close(tree)

    async def started(self, host: DeviceHost) -> None:
        """Remove the mount on the host, as the container has its own one now."""
        await in_thread(host.folder.unmount, self._entry)

    async def attach(self, host: DeviceHost) -> RunConfig:
        tree = await self.open_tree(host)
        if tree is None:
            return RunConfig()
        try:
            await in_thread(host.folder.mark, self._entry)
            await self.attach_tree(host, tree, PROPAGATIONS[self.config.get("propagation") or "rprivate"])
        except BaseException:
            await in_thread(host.folder.discard, self._entry)
            await self.closed(host)
            raise
        finally:
            os.close(tree)
        return RunConfig()

    async def attached(self, host: DeviceHost) -> bool:
        return await in_thread(host.folder.has, self._entry) and await super().attached(host)

    async def detach(self, host: DeviceHost) -> RunConfig:
        """Without its entry, as if its source was missing, what is mounted there is not its own."""
        if await in_thread(host.folder.has, self._entry):
            await super().detach(host)
            await in_thread(host.folder.discard, self._entry)
        await self.closed(host)
        return RunConfig()

    async def stop(self, host: DeviceHost) -> RunConfig:
        await in_thread(host.folder.discard, self._entry)
        await self.closed(host)
        return RunConfig()

    def _show(self, host: DeviceHost, tree: int) -> BindMount:
        """Mount it on the host for liblxc. Blocking."""
        propagation = self.config.get("propagation", "")
        is_folder = stat.S_ISDIR(os.fstat(tree).st_mode)
        place = host.folder.attach(self._entry, tree, private=not propagation)
        mount = BindMount(place, self.target, self.flag("readonly"), self.flag("recursive"), propagation)
        return self.with_mount_point(host, mount, is_folder=is_folder)
