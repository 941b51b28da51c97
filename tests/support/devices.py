"""What tests of devices hand them where no daemon is: ports and a volume of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utsuwa.core.errors import InvalidConfig
from utsuwa.networks.base import Uplink


@dataclass
class FakePorts:
    """One network, br0, and the host's other bridges; `asked` are MACs with the addresses that they want."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    async def uplink(self, device: str, bridge: str, managed: bool) -> Uplink | None:
        if bridge != "br0" and managed:
            raise InvalidConfig("does not exist")
        return Uplink("br0", 1300) if bridge == "br0" else None

    async def settle_addresses(self, device: str, bridge: str, mac: str, config: Mapping[str, str]) -> None:
        self.asked.append((mac, config.get("ipv4.address", "")))


@dataclass
class FakeVolume:
    """A plain folder."""

    folder: Path

    @property
    def rootfs(self) -> Path:
        return self.folder / "rootfs"

    async def mount_folder(self, name: str) -> Path:
        return self.folder / "folders" / name
