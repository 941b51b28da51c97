"""What tests of devices hand them where no daemon is: ports and a volume of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidConfig, NotFound
from utsuwa.core.refs import InstanceRef
from utsuwa.host.mounts.detached import Options
from utsuwa.host.mounts.device_folder import DeviceNumber
from utsuwa.networks.base import Uplink


@dataclass
class FakePorts:
    """One network, br0, and the host's other bridges; `asked` are MACs with the addresses that they want."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    async def uplink(self, device: str, bridge: str, managed: bool) -> Uplink | None:
        if bridge != "br0" and managed:
            raise InvalidConfig("does not exist")
        return Uplink("br0", 1300) if bridge == "br0" else None

    async def settle_addresses(
        self, instance: InstanceRef, device: str, bridge: str, mac: str, config: Mapping[str, str]
    ) -> None:
        self.asked.append((mac, config.get("ipv4.address", "")))

    async def set_priority(self, interface: str, bridge: str, mac: str, priority: int) -> None: ...


@dataclass
class FakeVolume:
    """A plain folder."""

    folder: Path

    @property
    def rootfs(self) -> Path:
        return self.folder / "rootfs"

    async def mount_folder(self, name: str) -> Path:
        return self.folder / "folders" / name


@dataclass
class FakeContainer:
    """What is mounted inside, by path; `refused` are paths that cannot be mounted."""

    paths: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    devices: set[DeviceNumber] = field(default_factory=set)

    async def mount(self, tree: int, path: str, propagation: int = 0) -> None:
        if path in self.refused:
            raise HostError("Not a directory")
        self.paths.append(path)

    async def unmount(self, path: str, *, remove_file: bool = False) -> bool:
        found = path in self.paths
        if found:
            self.paths.remove(path)
        return found

    async def allow_device(self, device: DeviceNumber, *, allow: bool) -> None:
        (self.devices.add if allow else self.devices.discard)(device)

    async def mounted(self, path: str) -> bool:
        return path in self.paths


class FakeVolumes:
    """The volume `v1` of the pool `p`; notes which devices use it."""

    def __init__(self, folder: Path = Path("/nowhere")) -> None:
        self.path = folder
        self.users: set[str] = set()

    async def check(self, pool: str, volume: str) -> None:
        if (pool, volume) != ("p", "v1"):
            raise NotFound(f"Storage volume {volume!r} not found on pool {pool!r}")

    async def open_tree(self, device: str, pool: str, volume: str, options: Options) -> int:
        await self.check(pool, volume)
        self.users.add(device)
        return os.open(self.path, os.O_PATH | os.O_CLOEXEC)

    async def folder(self, pool: str, volume: str) -> Path:
        return self.path

    async def keep(self, device: str, pool: str, volume: str) -> None:
        self.users.add(device)

    def close(self, device: str) -> None:
        self.users.discard(device)
