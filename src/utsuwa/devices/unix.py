"""Types `unix-char` and `unix-block`: devices of the host, through separate nodes for the instance."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey, KeyTable, integer_between
from utsuwa.devices.base import BindMount, DeviceHost, DeviceType, RunConfig
from utsuwa.devices.inner_mount import InnerMount, check_path, inner_path
from utsuwa.devices.names import entry_name
from utsuwa.host.mounts import detached
from utsuwa.host.mounts.device_folder import DeviceNumber, Node


def monitored_folder() -> Path:
    """Return the directory of the host in which devices that are not required are monitored."""
    return Path(os.environ.get("UTSUWA_DEVMONITOR_DIR") or "/dev")


class UnixDevice(InnerMount):
    """A node that is created for the instance, and bound at `path` inside.

    A device that is not required is added and removed with its source while the instance is running.
    """

    keys = KeyTable(
        "unix device",
        (
            ConfigKey("source", help="The device on the host; `path` without it"),
            ConfigKey("path", help="Where it is inside; `source` without it", validate=check_path),
            ConfigKey(
                "major", type="integer", help="The major number", validate=integer_between(0, 2**12 - 1)
            ),
            ConfigKey(
                "minor", type="integer", help="The minor number", validate=integer_between(0, 2**20 - 1)
            ),
            ConfigKey("uid", type="integer", default="0", help="The owner inside", validate=checks.user_id),
            ConfigKey("gid", type="integer", default="0", help="The group inside", validate=checks.user_id),
            ConfigKey("mode", default="0660", help="The mode inside, octal", validate=checks.mode),
            ConfigKey(
                "required",
                type="bool",
                default="true",
                help="Whether a start fails without the source",
                since="unix_device_hotplug",
            ),
        ),
    )
    live_keys = frozenset({"required"})

    def validate(self) -> None:
        if not self.config.get("source") and not self.config.get("path"):
            raise self.invalid("source", "or 'path' is required")
        super().validate()
        if not self._source.startswith("/"):
            raise self.invalid("source", "must be an absolute path on the host")
        if bool(self.config.get("major")) != bool(self.config.get("minor")):
            raise self.invalid("major", "and 'minor' must be set together")
        folder = monitored_folder()
        if self.watched is not None and not self.watched.is_relative_to(folder):
            raise self.invalid(
                "source", f"must be below {folder} with required=false, as only this directory is monitored"
            )

    @property
    def target(self) -> str:
        return inner_path(self.config.get("path") or self._source)

    @property
    def watched(self) -> Path | None:
        if self.flag("required", "true") or self.config.get("major"):
            return None
        return Path(os.path.normpath(self._source))

    @property
    def _source(self) -> str:
        return self.config.get("source") or inner_path(self.config.get("path", ""))

    @property
    def _kind(self) -> Literal["char", "block"]:
        return "char" if self.config["type"] == "unix-char" else "block"

    @property
    def _entry(self) -> str:
        """Its name in the directory of devices, as in LXD."""
        return entry_name("unix", self.name, self.target)

    async def check_added(self, host: DeviceHost) -> None:
        await self.check_start(host)

    async def check_start(self, host: DeviceHost) -> None:
        await asyncio.to_thread(self._number)

    async def start(self, host: DeviceHost) -> RunConfig:
        return await asyncio.to_thread(self._start, host)

    async def attach(self, host: DeviceHost) -> RunConfig:
        number = await asyncio.to_thread(self._number)
        if number is not None:
            await self._add(host, number)
        return RunConfig()

    async def attached(self, host: DeviceHost) -> bool:
        return await self._current(host) is not None

    async def detach(self, host: DeviceHost) -> RunConfig:
        """Its node is removed last: without one, nothing of the device can be there."""
        number = await asyncio.to_thread(host.folder.number, self._entry)
        if number is None:
            return RunConfig()
        if not await asyncio.to_thread(self._hidden, host):
            await host.container.unmount(self.target, remove_file=True)
        await self._remove_node(host, number)
        return RunConfig()

    async def follow(self, host: DeviceHost) -> None:
        wanted = await asyncio.to_thread(self._number)
        if wanted is not None and wanted == await self._current(host):
            return
        await self.detach(host)
        if wanted is not None:
            await self._add(host, wanted)

    async def stop(self, host: DeviceHost) -> RunConfig:
        await asyncio.to_thread(host.folder.discard, self._entry)
        return RunConfig()

    def _start(self, host: DeviceHost) -> RunConfig:
        number = self._number()
        if number is None:
            return RunConfig()
        hidden = self._hidden(host)
        place = self._make_node(host, number)
        run = RunConfig(allowed_devices=[number])
        if not hidden:
            run.mounts.append(self.with_mount_point(host, BindMount(place, self.target), is_folder=False))
        return run

    async def _add(self, host: DeviceHost, number: DeviceNumber) -> None:
        hidden = await asyncio.to_thread(self._hidden, host)
        place = await asyncio.to_thread(self._make_node, host, number)
        try:
            await host.container.allow_device(number, allow=True)
            if not hidden:
                tree = await asyncio.to_thread(detached.copy_of, place)
                try:
                    await self.attach_tree(host, tree)
                finally:
                    os.close(tree)
        except BaseException:
            await self._remove_node(host, number)
            raise

    async def _remove_node(self, host: DeviceHost, number: DeviceNumber) -> None:
        if number not in await asyncio.to_thread(self._others, host):
            await host.container.allow_device(number, allow=False)
        await asyncio.to_thread(host.folder.discard, self._entry)

    def _number(self) -> DeviceNumber | None:
        """Return the configured device; None if it does not exist and is not required.

        Raises InvalidConfig.
        """
        if self.config.get("major"):
            return DeviceNumber(self._kind, int(self.config["major"]), int(self.config["minor"]))
        try:
            number = DeviceNumber.of(Path(self._source).stat())
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) and self.watched is not None:
                return None
            raise self.invalid(
                "source",
                f"{self._source} cannot be used: {error.strerror}: correct it, or set required=false",
            ) from error
        if number is not None and number.kind == self._kind:
            return number
        if self.watched is not None:
            return None
        kind = "character" if self._kind == "char" else "block"
        raise self.invalid("source", f"{self._source} is not a {kind} device")

    def _make_node(self, host: DeviceHost, number: DeviceNumber) -> Path:
        """Create the node; in a user namespace, which cannot, bind that of the host. Blocking."""
        mode = int(self.config.get("mode") or "0660", 8)
        try:
            owner = [int(self.config.get(key) or 0) for key in ("uid", "gid")]
            node = Node(number, mode, host.idmap.host_uid(owner[0]), host.idmap.host_gid(owner[1]))
        except ValueError as error:
            raise self.invalid("uid", f"or 'gid' is outside of the instance's ids: {error}") from error
        try:
            return host.folder.make_node(self._entry, node)
        except PermissionError:
            tree = detached.copy_of(Path(self._source))
            try:
                return host.folder.attach(self._entry, tree, private=True)
            finally:
                os.close(tree)

    async def _current(self, host: DeviceHost) -> DeviceNumber | None:
        """Return the device of the running container; None if it is incomplete."""
        number = await asyncio.to_thread(host.folder.number, self._entry)
        if number is None or await asyncio.to_thread(self._hidden, host):
            return number
        return number if await host.container.mounted(self.target) else None

    def _hidden(self, host: DeviceHost) -> bool:
        """Whether another device at the same path hides it: the first by name is visible."""
        return any(
            other.name < self.name and other.target == self.target and host.folder.number(other._entry)
            for other in _all(host.devices)
        )

    def _others(self, host: DeviceHost) -> list[DeviceNumber]:
        """Return the devices of the instance's other devices of these types."""
        found = (host.folder.number(other._entry) for other in _all(host.devices) if other.name != self.name)
        return [number for number in found if number is not None]


def _all(devices: Mapping[str, Mapping[str, str]]) -> list[UnixDevice]:
    return [
        UnixDevice(name, config)
        for name, config in devices.items()
        if config.get("type") in ("unix-char", "unix-block")
    ]


def _load(name: str, config: Mapping[str, str], instance: bool) -> UnixDevice:
    return UnixDevice(name, config, instance=instance)


UNIX_CHAR = DeviceType("unix-char", _load, {"unix-char-block": UnixDevice.keys})
UNIX_BLOCK = DeviceType("unix-block", _load)
