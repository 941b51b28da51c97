"""The contract of devices: when methods are called, what they may use, and what they add to containers.

A device is created for one operation from its expanded config, and receives its instance as an argument; it
keeps no state between operations except volatile keys, which the instance manager stores. Methods run in the
event loop (await host work in threads); each documents whether the container is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from utsuwa.core.config_keys import KeyTable, Validator
from utsuwa.core.errors import InvalidConfig, InvalidName, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.host.network.veth import Pair
from utsuwa.networks.base import Uplink


class Ports(Protocol):
    """The interface of devices to the daemon's networks and the host's bridges."""

    async def uplink(self, device: str, bridge: str, managed: bool) -> Uplink | None:
        """Return the uplink of a device; None for an unmanaged bridge.

        Raises InvalidConfig if the bridge does not exist, HostError if it cannot be created.
        """

    async def settle_addresses(self, device: str, bridge: str, mac: str, config: Mapping[str, str]) -> None:
        """Ensure that the device's static addresses, or any address, are free. Raises InvalidConfig."""


class OwnVolume(Protocol):
    """The interface of devices to the instance's own volume."""

    @property
    def rootfs(self) -> Path: ...

    async def mount_folder(self, name: str) -> Path:
        """Mount a directory beside the root file system with the id map, and return its path."""


@dataclass(frozen=True)
class DeviceHost:
    """The facts about its instance that a device may use."""

    project: str
    instance: str
    storage_name: str
    config: Mapping[str, str]
    """The instance's expanded config, volatile keys included."""
    idmap: IdMap
    devices_path: Path
    """`devices/<storage name>` in the state directory, for sockets and nodes of devices."""
    init_pid: int | None = None
    """The pid of the container's init if it is running."""
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The instance's expanded devices, whose names are in use inside the container."""
    ports: Ports = field(kw_only=True)
    volume: OwnVolume = field(kw_only=True)
    reserved: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The results of `Device.reserve`, by device."""

    def volatile(self, device: str, key: str) -> str:
        """Return the value of `volatile.<device>.<key>`, empty if unset."""
        return self.config.get(f"volatile.{device}.{key}", "")


@dataclass(frozen=True)
class BindMount:
    """A bind mount of a host directory into the container; its mount point exists."""

    source: Path
    target: str
    """The absolute path inside."""
    read_only: bool = False


@dataclass
class RunConfig:
    """What a device adds to the container, and changes of its volatile keys."""

    mounts: list[BindMount] = field(default_factory=list)
    nics: list[Pair] = field(default_factory=list)
    read_only_root: bool = False
    volatile: dict[str, str] = field(default_factory=dict)
    """Keys without `volatile.<device>.`; an empty value removes one."""


class Device:
    """One device of one instance. A driver overrides the methods that it needs."""

    keys: ClassVar[KeyTable]
    """The supported keys."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Documented keys that are not supported yet: rejected with NotSupportedYet."""
    live: ClassVar[bool] = False
    """Whether it can be hot-plugged (`attach`, `detach`)."""
    live_keys: ClassVar[frozenset[str]] = frozenset()
    """Config keys that can be changed without detaching and attaching."""

    def __init_subclass__(cls) -> None:
        cls.live = cls.detach is not Device.detach

    def __init__(self, name: str, config: Mapping[str, str], *, instance: bool = True) -> None:
        self.name = name
        self.config = config
        self.instance = instance
        """False for a device of a profile, whose config is not expanded yet."""

    @property
    def place(self) -> tuple[str, ...]:
        """The components of its mount point inside: devices are started after those at parent paths."""
        return ()

    def validate(self) -> None:
        """Validate the complete expanded config, whether the container is running or not.

        Raises InvalidConfig or NotSupportedYet; the message names the device and the key.
        """
        known = {}
        for key, value in self.config.items():
            if key == "type":
                continue
            if key in self.later and value:
                raise NotSupportedYet(f"Device {self.name!r}: the key {key!r} is not supported yet")
            if key not in self.later:
                known[key] = value
        try:
            self.keys.check(known)
        except InvalidConfig as error:
            raise InvalidConfig(f"Invalid device {self.name!r}: {error}") from None

    def invalid(self, key: str, why: str) -> InvalidConfig:
        return InvalidConfig(f"Invalid device {self.name!r}: {key!r} {why}")

    def add(self, host: DeviceHost) -> RunConfig:
        """Return the volatile keys of a device that is added to an instance (a MAC address).

        Called when an instance is created or its devices change, running or not; does not change the host.
        """
        return RunConfig()

    async def check_start(self, host: DeviceHost) -> None:
        """Raise the error of `start` for anything missing on the host; the container may be running."""

    async def start(self, host: DeviceHost) -> RunConfig:
        """Prepare the host before the container starts. Undone by `stop`."""
        return RunConfig()

    async def started(self, host: DeviceHost) -> None:
        """Complete `start` after the container has been started (`host.init_pid` is set)."""

    async def reserve(self, host: DeviceHost) -> dict[str, str]:
        """Volatile keys that name what `attach` will make on the host. They are stored before it does, so
        that whatever ends the daemon leaves nothing of which it does not know.
        """
        return {}

    async def attach(self, host: DeviceHost) -> RunConfig:
        """Add the device to the running container (`host.init_pid` is set)."""
        raise InvalidConfig(f"Device {self.name!r} cannot be added while the instance runs: stop it first")

    async def attached(self, host: DeviceHost) -> bool:
        """Return whether the running container has it, after an interrupted `attach` or `detach`."""
        return True

    async def detach(self, host: DeviceHost) -> RunConfig:
        """Remove the device from the running container."""
        raise InvalidConfig(f"Device {self.name!r} cannot be removed while the instance runs: stop it first")

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        """Change a device in place if only `live_keys` differ; the container may be running."""
        return RunConfig()

    async def killed(self, host: DeviceHost) -> None:
        """Called while a killed container is ending, to start slow clean-up early. `stop` follows."""

    async def stop(self, host: DeviceHost) -> RunConfig:
        """Clean up the host after the container has ended in any way; idempotent."""
        return RunConfig()

    def changes_in_place(self, old: Mapping[str, str]) -> bool:
        """Return whether `update` is sufficient to change from the config `old` to this one."""
        return not self.fixed_while_running(old)

    def fixed_while_running(self, old: Mapping[str, str]) -> list[str]:
        """Return the keys that differ from `old` and that `update` cannot change."""
        return [
            key
            for key in sorted(old.keys() | self.config.keys())
            if old.get(key, "") != self.config.get(key, "")
            and key not in self.live_keys
            and not key.startswith("user.")
        ]


DeviceFactory = Callable[[str, Mapping[str, str], bool], Device]
"""Chooses the driver within a type: name, config, whether it is an instance's."""


@dataclass(frozen=True)
class DeviceType:
    """The record of a type of devices."""

    name: str
    """The value of `type`; `db.codes.DEVICE_TYPES` has its number."""
    load: DeviceFactory
    tables: Mapping[str, KeyTable] = field(default_factory=dict)
    """The keys of its drivers, as `GET /1.0/metadata/configuration` groups them."""


def a_name(check: Callable[[str], object]) -> Validator:
    """A check of names as the validator of a key."""

    def validate(value: str) -> None:
        try:
            check(value)
        except InvalidName as error:
            raise InvalidConfig(error.message) from error

    return validate
