"""The contract of devices: what an instance's device does when, and what it hands to liblxc.

A device is built for one operation from its merged config and told about its instance; it keeps no
state of its own between operations but `volatile`, which the instances manager stores. Methods run
in the event loop (await host work in threads); each says whether the container runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from utsuwa.core.config_keys import KeyTable
from utsuwa.storage.base import IdMap


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


@dataclass
class RunConfig:
    """What starting a device adds to the container: lines for lxc.conf, and changes of its volatile keys."""

    lxc: list[tuple[str, str]] = field(default_factory=list)
    """Pairs for lxc.conf; `{nic}` in a key is replaced by the index of the network interface."""
    volatile: dict[str, str] = field(default_factory=dict)
    """Keys without `volatile.<device>.`; an empty value removes one."""


class Device(Protocol):
    """One device of one instance."""

    keys: KeyTable
    name: str
    config: Mapping[str, str]
    live: bool
    """Whether it may be added to or removed from a running container."""

    def validate(self) -> None:
        """Check the merged config as a whole, the container running or not; raises InvalidConfig."""

    async def start(self, host: DeviceHost) -> RunConfig:
        """Prepare the host before the container starts. Undone by `stop`."""

    async def attach(self, host: DeviceHost) -> RunConfig:
        """Add the device to the running container (`host.init_pid` is set)."""

    async def detach(self, host: DeviceHost) -> RunConfig:
        """Take the device from the running container."""

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        """Change a device in place where only `live_keys` differ; the container may run."""

    async def stop(self, host: DeviceHost) -> RunConfig:
        """Clean the host after the container ended, whatever way it ended; safe to repeat."""

    live_keys: frozenset[str]
    """Keys of the config whose change needs no detach and attach."""
