"""The contract of devices: what an instance's device does when, what it may ask for, and what it adds.

A device is built for one operation from its merged config and told about its instance; it keeps no
state of its own between operations but `volatile`, which the instances manager stores. Methods run
in the event loop (await host work in threads); each says whether the container runs.
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
    """The daemon's networks, and the host's bridges, as devices that join them see them."""

    async def uplink(self, device: str, bridge: str, managed: bool) -> Uplink | None:
        """What a device is connected to; None for a bridge that is not the daemon's.

        Raises InvalidConfig where there is no such bridge, HostError where it cannot be made.
        """

    async def settle_addresses(self, device: str, bridge: str, mac: str, config: Mapping[str, str]) -> None:
        """Make sure that the device's static addresses are free, or that any is. Raises InvalidConfig."""


class OwnVolume(Protocol):
    """The instance's own volume, as devices that show parts of it see it."""

    @property
    def rootfs(self) -> Path: ...

    async def mount_folder(self, name: str) -> Path:
        """Show a folder beside the root file system through the id map, and return where."""


@dataclass(frozen=True)
class DeviceHost:
    """What a device may know of its instance."""

    project: str
    instance: str
    storage_name: str
    config: Mapping[str, str]
    """The instance's expanded config, volatile keys included."""
    idmap: IdMap
    devices_path: Path
    """`devices/<storage name>` in the state folder: the device's own place for sockets and nodes."""
    init_pid: int | None = None
    """The pid of the container's init where it runs."""
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The instance's expanded devices: names that are taken inside the container."""
    ports: Ports = field(kw_only=True)
    volume: OwnVolume = field(kw_only=True)
    reserved: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What `Device.reserve` has given, by device."""

    def volatile(self, device: str, key: str) -> str:
        """The value of `volatile.<device>.<key>`, empty where there is none."""
        return self.config.get(f"volatile.{device}.{key}", "")


@dataclass(frozen=True)
class BindMount:
    """A folder of the host that the container sees; its mount point is there."""

    source: Path
    target: str
    """The absolute path inside."""
    read_only: bool = False


@dataclass
class RunConfig:
    """What starting a device adds to the container, and changes of its volatile keys."""

    mounts: list[BindMount] = field(default_factory=list)
    nics: list[Pair] = field(default_factory=list)
    read_only_root: bool = False
    volatile: dict[str, str] = field(default_factory=dict)
    """Keys without `volatile.<device>.`; an empty value removes one."""


class Device:
    """One device of one instance. A driver overrides what it has work for."""

    keys: ClassVar[KeyTable]
    """The keys that are in force."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that are documented, but that this version does not serve: refused with NotSupportedYet."""
    live: ClassVar[bool] = False
    """Whether it may be added to or removed from a running container: its class says how (`detach`)."""
    live_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of the config whose change needs no detach and attach."""

    def __init_subclass__(cls) -> None:
        cls.live = cls.detach is not Device.detach

    def __init__(self, name: str, config: Mapping[str, str], *, instance: bool = True) -> None:
        self.name = name
        self.config = config
        self.instance = instance
        """False while the config stands in a profile, where it is not merged yet."""

    @property
    def place(self) -> tuple[str, ...]:
        """The parts of the path at which it is mounted inside: devices come after those above them."""
        return ()

    def validate(self) -> None:
        """Check the merged config as a whole, the container running or not.

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
        """Volatile keys that the device has from the moment it belongs to an instance (a MAC address).

        Called when an instance is created or its devices change, running or not; touches no host state.
        """
        return RunConfig()

    async def check_start(self, host: DeviceHost) -> None:
        """Raise what `start` would raise for want of something on the host; the container may still run."""

    async def start(self, host: DeviceHost) -> RunConfig:
        """Prepare the host before the container starts. Undone by `stop`."""
        return RunConfig()

    async def started(self, host: DeviceHost) -> None:
        """Finish what `start` began, now that the container runs (`host.init_pid` is set)."""

    async def reserve(self, host: DeviceHost) -> dict[str, str]:
        """Volatile keys that name what `attach` will make on the host. They are stored before it does, so
        that whatever ends the daemon leaves nothing of which it does not know.
        """
        return {}

    async def attach(self, host: DeviceHost) -> RunConfig:
        """Add the device to the running container (`host.init_pid` is set)."""
        raise InvalidConfig(f"Device {self.name!r} cannot be added while the instance runs: stop it first")

    async def attached(self, host: DeviceHost) -> bool:
        """Whether the running container has it, as far as a kill amid `attach` or `detach` leaves open."""
        return True

    async def detach(self, host: DeviceHost) -> RunConfig:
        """Take the device from the running container."""
        raise InvalidConfig(f"Device {self.name!r} cannot be removed while the instance runs: stop it first")

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        """Change a device in place where only `live_keys` differ; the container may run."""
        return RunConfig()

    async def killed(self, host: DeviceHost) -> None:
        """The container was killed and is just ending: take away early what takes long. `stop` follows."""

    async def stop(self, host: DeviceHost) -> RunConfig:
        """Clean the host after the container ended, whatever way it ended; safe to repeat."""
        return RunConfig()

    def changes_in_place(self, old: Mapping[str, str]) -> bool:
        """Whether `update` is enough to come from the config `old` to this one."""
        return not self.fixed_while_running(old)

    def fixed_while_running(self, old: Mapping[str, str]) -> list[str]:
        """The keys that differ from `old` and that `update` cannot change."""
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
    """A type of devices, by which it is known everywhere."""

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
