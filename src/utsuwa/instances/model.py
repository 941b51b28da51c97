"""What the verbs share: an instance as it is loaded, its status, and the services they work with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

from utsuwa import devices
from utsuwa.core.errors import NotFound
from utsuwa.core.idmap import IdMap
from utsuwa.core.names import storage_name
from utsuwa.core.volumes import Volume
from utsuwa.db.instances import InstanceRow
from utsuwa.host.cgroups.usage import Meter
from utsuwa.host.helper.client import AttachCache
from utsuwa.host.processes.pidfds import Process


class Status(Enum):
    """Names and codes as the API shows them."""

    STOPPED = ("Stopped", 102)
    RUNNING = ("Running", 103)
    FROZEN = ("Frozen", 110)

    @property
    def text(self) -> str:
        return self.value[0]

    @property
    def code(self) -> int:
        return self.value[1]


@dataclass(frozen=True)
class Loaded:
    """An instance as stored, with its profiles merged in. A snapshot of one moment: never kept."""

    row: InstanceRow
    expanded_config: dict[str, str]
    expanded_devices: dict[str, dict[str, str]]

    @property
    def project(self) -> str:
        return self.row.project

    @property
    def name(self) -> str:
        return self.row.name

    @cached_property
    def storage_name(self) -> str:
        return storage_name(self.row.project, self.row.name)

    @property
    def key(self) -> tuple[str, str]:
        return (self.row.project, self.row.name)

    @property
    def volume(self) -> Volume:
        """Its root volume."""
        return Volume("container", self.row.project, self.row.name)

    def root_disk(self) -> tuple[str, Mapping[str, str]]:
        """The name and the config of the root disk device; raises InvalidConfig where there is none."""
        return devices.root_disk(self.expanded_devices)

    @property
    def pool(self) -> str:
        return self.root_disk()[1]["pool"]

    @property
    def root_size(self) -> str:
        """The size of the root disk as it is configured; empty where none is."""
        return self.root_disk()[1].get("size", "")


class Comeback:
    """A container that is to start again once it has ended: by a restart, or by a reboot from inside."""

    def __init__(self) -> None:
        self.abandoned = False
        """Whether somebody has stopped it since: it stays stopped."""
        self.over = asyncio.Event()
        """Set when it runs again, or will not any more."""


@dataclass
class Running:
    """A container that runs: what the daemon holds of it, found again after a restart."""

    row_id: int
    project: str
    name: str
    init_pid: int
    monitor_pid: int | None
    devices: Mapping[str, Mapping[str, str]]
    """The expanded devices that it was started with, kept up to date by live changes."""
    config: Mapping[str, str]
    """Its expanded config, kept up to date by live changes."""
    idmap: IdMap
    """The map that it was started with."""
    cpu_limit: str = field(init=False)
    """`limits.cpu` as it is in force: a change sets it before it is stored."""
    cpus: frozenset[int] | None = None
    """The CPUs that it was given; None where it has all."""
    frozen: bool = False
    forced: bool = False
    """Whether the stop under way was forced: a reboot that it meets is not followed."""
    comeback: Comeback | None = None
    """The restart under way, where there is one."""
    noted_as_stopped: bool = True
    """Whether its end was stored and told as one that nothing follows."""
    keep_power: bool = False
    """Whether the last power state stays RUNNING: the host goes down, not the user's instance."""
    hastened: asyncio.Future[None] | None = None
    """What a forced stop takes away beside the container's end: the clean-up after that waits for it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the container has ended and everything of it is cleaned away."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after that, when an ephemeral one is deleted."""
    init: Process = field(init=False)
    """Held from the start: once init has ended its id may be that of any process of the host."""
    monitor: Process | None = field(init=False)
    attach_cache: AttachCache | None = field(init=False)
    """For the commands that are run inside."""

    def __post_init__(self) -> None:
        self.init = Process(self.init_pid)
        self.monitor = Process(self.monitor_pid) if self.monitor_pid is not None else None
        # Lines of its own for liblxc may concern attached processes in ways that cannot be read back.
        self.attach_cache = None if self.config.get("raw.lxc") else AttachCache(self.init)
        self.cpu_limit = self.config.get("limits.cpu", "")

    @property
    def restarting(self) -> bool:
        """Whether whoever stops it will start it again: neither `stopped` events nor an ephemeral's end."""
        return self.comeback is not None and not self.comeback.abandoned

    def release(self) -> None:
        """Let go of the processes, which have ended or run on without the daemon."""
        self.init.close()
        if self.monitor is not None:
            self.monitor.close()

    @property
    def key(self) -> tuple[str, str]:
        return (self.project, self.name)

    @cached_property
    def storage_name(self) -> str:
        return storage_name(self.project, self.name)

    @cached_property
    def meter(self) -> Meter:
        """What reads its usage; made by a thread. ProcessLookupError where it has ended."""
        return Meter(self.init_pid)

    @property
    def status(self) -> Status:
        if self.frozen:
            return Status.FROZEN
        return Status.RUNNING


class RuntimeTable:
    """The running containers by project and name."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Running] = {}
        self._comebacks: dict[tuple[str, str], list[Comeback]] = {}

    def get(self, key: tuple[str, str]) -> Running | None:
        return self._running.get(key)

    def status(self, key: tuple[str, str]) -> Status:
        running = self._running.get(key)
        return running.status if running else Status.STOPPED

    def add(self, running: Running) -> None:
        self._running[running.key] = running

    def remove(self, running: Running) -> None:
        if self._running.get(running.key) is running:
            del self._running[running.key]

    def all(self) -> list[Running]:
        return list(self._running.values())

    @contextmanager
    def coming_back(self, key: tuple[str, str]) -> Iterator[Comeback]:
        """As long as this lasts, what stops the instance can keep it from coming back."""
        comeback = Comeback()
        expected = self._comebacks.setdefault(key, [])
        expected.append(comeback)
        try:
            yield comeback
        finally:
            expected.remove(comeback)
            if not expected:
                del self._comebacks[key]
            comeback.over.set()

    def comes_back(self, key: tuple[str, str]) -> bool:
        return any(not comeback.abandoned for comeback in self._comebacks.get(key, ()))

    def abandon(self, key: tuple[str, str]) -> list[Comeback]:
        """Keep the instance from coming back; gives what was under way, to be waited for."""
        comebacks = list(self._comebacks.get(key, ()))
        for comeback in comebacks:
            comeback.abandoned = True
        return comebacks


def not_found(name: str) -> NotFound:
    return NotFound(f"Instance {name!r} not found")


@dataclass(frozen=True)
class RuntimePaths:
    """Where one instance's generated files lie, all in its log folder."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "lxc.conf"

    @property
    def log(self) -> Path:
        return self.folder / "lxc.log"

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    @property
    def target(self) -> Path:
        """Written by the post-stop hook: `stop` or `reboot`."""
        return self.folder / "lxc.target"

    @property
    def last_target(self) -> Path:
        """Where that is put aside while the container is started again after a reboot."""
        return self.folder / "lxc.target.last"

    @property
    def killed(self) -> Path:
        """Made when a forced stop begins to take the container apart; the next start removes it."""
        return self.folder / "killed"
