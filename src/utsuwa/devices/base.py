"""The contract of devices: when methods are called, what they may use, and what they add to containers.

A device is created for one operation from its expanded config, and receives its instance as an argument; it
keeps no state between operations except volatile keys, which the instance manager stores. Methods run in the
event loop (await host work in threads); each documents whether the container is running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from utsuwa.core.config_keys import KeyTable, Validator
from utsuwa.core.errors import InvalidConfig, InvalidName, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.host.cgroups.io_limits import IoLimit
from utsuwa.host.mounts.detached import Options
from utsuwa.host.mounts.device_folder import DeviceFolder, DeviceNumber
from utsuwa.host.network.veth import Pair
from utsuwa.networks.base import Uplink


class Ports(Protocol):
    """The interface of devices to the daemon's networks and the host's bridges."""

    async def uplink(self, device: str, bridge: str, managed: bool) -> Uplink | None:
        """Return the uplink of a device; None for an unmanaged bridge.

        Raises InvalidConfig if the bridge does not exist, HostError if it cannot be created.
        """

    async def settle_addresses(
        self, instance: InstanceRef, device: str, bridge: str, mac: str, config: Mapping[str, str]
    ) -> None:
        """Ensure that the device's static addresses, or any address, are free. Raises InvalidConfig."""

    async def set_priority(self, interface: str, bridge: str, mac: str, priority: int) -> None:
        """Set the priority of packets that arrive from an instance at an interface of the host.

        `bridge` is that of which it is a port, or empty. 0 removes the priority, if there was one. Raises
        HostError, ProcessFailed.
        """


class OwnVolume(Protocol):
    """The interface of devices to the instance's own volume."""

    @property
    def rootfs(self) -> Path: ...

    async def mount_folder(self, name: str) -> Path:
        """Mount a directory beside the root file system with the id map, and return its path."""


class CustomVolumes(Protocol):
    """The interface of the devices of one instance to custom volumes of storage pools."""

    async def check(self, pool: str, volume: str) -> None:
        """Raise NotFound, OtherMember or Unavailable unless the volume can be used on this host."""

    async def open_tree(self, device: str, pool: str, volume: str, options: Options) -> int:
        """Return a detached mount of a volume whose owners the instance sees; its use is noted until `close`.

        Raises the errors of `check`, Busy, HostError, and InvalidConfig if its owners cannot be shown.
        """

    async def folder(self, pool: str, volume: str) -> Path:
        """Return the directory of a volume on the host."""

    async def keep(self, device: str, pool: str, volume: str) -> None:
        """Note a use again when the daemon starts."""

    def close(self, device: str) -> None:
        """The device does not use a volume any more; does nothing if it did not."""


class RunningContainer(Protocol):
    """The interface of devices to the running container. All methods raise HostError with a reason."""

    async def mount(self, tree: int, path: str, propagation: int = 0) -> None:
        """Attach a detached mount at a path inside, which is created if it does not exist.

        `propagation` are flags of mount(2).
        """

    async def unmount(self, path: str, *, remove_file: bool = False) -> bool:
        """Unmount what is mounted at a path inside; return whether anything was.

        With `remove_file`, the empty file that it was mounted on is removed.
        """

    async def mounted(self, path: str) -> bool:
        """Return whether a path inside is a mount point."""

    async def allow_device(self, device: DeviceNumber, *, allow: bool) -> None:
        """Allow or deny the container's cgroup to use a device, if its devices are restricted."""


@dataclass(frozen=True)
class BindMount:
    """A bind mount of a host directory or file into the container that is about to start."""

    source: Path
    target: str
    """The absolute path inside."""
    read_only: bool = False
    recursive: bool = False
    """Whether mounts below the source are included."""
    propagation: str = ""
    """Option of mount(8); empty for `private`."""
    create: Literal["", "dir", "file"] = ""
    """The type of mount point that liblxc creates below file systems that it mounts; others exist already."""


@dataclass(frozen=True)
class NicNaming:
    """The addresses and names of new interfaces, if the device does not have its own."""

    mac_pattern: str = "00:16:3e:xx:xx:xx"
    """A MAC address with an `x` for each random digit."""
    by_mac: bool = False
    """Whether names on the host are derived from MAC addresses, instead of random."""


@dataclass(frozen=True)
class DeviceHost:
    """The facts about its instance that a device may use."""

    instance: InstanceRef
    config: Mapping[str, str]
    """The instance's expanded config, volatile keys included."""
    idmap: IdMap
    folder: DeviceFolder
    """For nodes and mounts of devices that are bound into the container."""
    init_pid: int | None = None
    """The pid of the container's init if it is running."""
    devices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The instance's expanded devices, whose names are in use inside the container."""
    ports: Ports = field(kw_only=True)
    volume: OwnVolume = field(kw_only=True)
    volumes: CustomVolumes = field(kw_only=True)
    container: RunningContainer = field(kw_only=True)
    mounts: Sequence[BindMount] = ()
    """The mounts of the devices that were started before this one."""
    disk_paths: Sequence[str] = ()
    """The paths on the host below which the project's disks must be; none if they may be anywhere."""
    frozen: Callable[[], Sequence[Path]] = list
    """Returns the directories of snapshots and images, in which nothing may be changed."""
    reserved: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The results of `Device.reserve`, by device."""
    naming: NicNaming = NicNaming()

    def volatile(self, device: str, key: str) -> str:
        """Return the value of `volatile.<device>.<key>`, empty if unset."""
        return self.config.get(f"volatile.{device}.{key}", "")


@dataclass
class RunConfig:
    """What a device adds to the container, and changes of its volatile keys."""

    mounts: list[BindMount] = field(default_factory=list)
    nics: list[Pair] = field(default_factory=list)
    allowed_devices: list[DeviceNumber] = field(default_factory=list)
    """Devices of the host that the container may use."""
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

    @property
    def watched(self) -> Path | None:
        """A path on the host whose changes are followed while the container runs (`follow`), if any."""
        return None

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

    def known_disk(self, disk: str | None) -> str:
        """Return a disk whose requests are to be limited. Raises InvalidConfig if there is none."""
        if disk is None:
            raise InvalidConfig(
                f"Invalid device {self.name!r}: its requests cannot be limited, as it is not on a single disk"
            )
        return disk

    def invalid(self, key: str, why: str) -> InvalidConfig:
        return InvalidConfig(f"Invalid device {self.name!r}: {key!r} {why}")

    def add(self, host: DeviceHost) -> RunConfig:
        """Return the volatile keys of a device that is added to an instance (a MAC address).

        Called when an instance is created or its devices change, running or not; does not change the host.
        """
        return RunConfig()

    async def check_added(self, host: DeviceHost) -> None:
        """Raise InvalidConfig for what a new or changed device names and the host does not have.

        The container may be running. What the host has may be gone when the instance starts.
        """

    async def check_start(self, host: DeviceHost) -> None:
        """Raise the error of `start` for anything missing on the host; the container may be running."""

    async def start(self, host: DeviceHost) -> RunConfig:
        """Prepare the host before the container starts. Undone by `stop`."""
        return RunConfig()

    async def started(self, host: DeviceHost) -> None:
        """Complete `start` after the container has been started (`host.init_pid` is set)."""

    async def reserve(self, host: DeviceHost) -> dict[str, str]:
        """Return volatile keys with the names of what `attach` will create on the host.

        They are stored before `attach` is called, so that nothing unknown is left if the daemon is killed.
        """
        return {}

    async def attach(self, host: DeviceHost) -> RunConfig:
        """Add the device to the running container (`host.init_pid` is set)."""
        raise InvalidConfig(
            f"Device {self.name!r} cannot be added while the instance is running: stop it first"
        )

    async def attached(self, host: DeviceHost) -> bool:
        """Return whether the running container has it, after an interrupted `attach` or `detach`."""
        return True

    async def detach(self, host: DeviceHost) -> RunConfig:
        """Remove the device from the running container."""
        raise InvalidConfig(
            f"Device {self.name!r} cannot be removed while the instance is running: stop it first"
        )

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        """Change a device in place if only `live_keys` differ; the container may be running."""
        return RunConfig()

    async def follow_config(self, host: DeviceHost) -> None:
        """Apply what the instance's own config says of the device; the container is running.

        Called after every change of config and devices, so it is quick if nothing has changed.
        """

    async def follow(self, host: DeviceHost) -> None:
        """Update the running container after a change of the watched path."""

    async def io_limits(self, host: DeviceHost) -> list[tuple[str, IoLimit]]:
        """Return limits of the container's requests to disks of the host (`major:minor`); it may be running.

        Raises InvalidConfig if a disk is not known.
        """
        return []

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
"""Creates the driver for a device: name, config, whether it is an instance's and not a profile's."""


@dataclass(frozen=True)
class DeviceType:
    """The record of a type of devices."""

    name: str
    """The value of `type`; `db.codes.DEVICE_TYPES` has its number."""
    load: DeviceFactory
    tables: Mapping[str, KeyTable] = field(default_factory=dict)
    """The keys of its drivers, as `GET /1.0/metadata/configuration` groups them."""


def a_name(check: Callable[[str], object]) -> Validator:
    """Return a validator that applies a check of names."""

    def validate(value: str) -> None:
        try:
            check(value)
        except InvalidName as error:
            raise InvalidConfig(error.message) from error

    return validate
