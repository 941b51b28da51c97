"""The objects that the verbs of this package operate on: loaded instances and running containers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

from utsuwa.core.errors import NotFound
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.instances import InstanceRow
from utsuwa.db.warnings import Subject
from utsuwa.host.cgroups.accounting import Accounts
from utsuwa.host.cgroups.usage import Meter
from utsuwa.host.helper.client import AttachCache
from utsuwa.host.helper.mounting import InnerPath
from utsuwa.host.processes.pidfds import Process
from utsuwa.profiles.expand import Expanded
from utsuwa.projects.restrictions import Restrictions


class Status(Enum):
    """Names and codes of the API."""

    STOPPED = ("Stopped", 102)
    RUNNING = ("Running", 103)
    FROZEN = ("Frozen", 110)
    READY = ("Ready", 113)
    """Running, and has said so through the guest API."""

    @property
    def text(self) -> str:
        return self.value[0]

    @property
    def code(self) -> int:
        return self.value[1]


@dataclass(frozen=True)
class Loaded:
    """An instance as stored, expanded by its profiles; outdated by whatever is written next."""

    row: InstanceRow
    expanded: Expanded
    restrictions: Restrictions
    """The restrictions of its project."""

    @property
    def ref(self) -> InstanceRef:
        return self.row.ref

    @property
    def project(self) -> str:
        return self.row.ref.project

    @property
    def name(self) -> str:
        return self.row.ref.name

    @property
    def data(self) -> InstanceData:
        return self.row.data

    @property
    def subject(self) -> Subject:
        """What its warnings are about."""
        return Subject("instance", self.row.id, self.project)

    @property
    def pool(self) -> str:
        """The storage pool of its root disk. Raises InvalidConfig if it has no root disk."""
        return self.expanded.pool


@dataclass(frozen=True)
class CpuWish:
    """Which CPUs and which memory an instance is to be pinned to; false if to none."""

    limit: str = ""
    """`limits.cpu`."""
    nodes: str = ""
    """`limits.cpu.nodes`; in place of `balanced`, the node that was chosen."""

    @classmethod
    def of(cls, config: Mapping[str, str]) -> CpuWish:
        nodes = config.get("limits.cpu.nodes", "")
        if nodes == "balanced":
            nodes = config.get(CHOSEN_NODES, "")
        return cls(config.get("limits.cpu", ""), nodes)

    def __bool__(self) -> bool:
        return bool(self.limit or self.nodes)


CHOSEN_NODES = "volatile.cpu.nodes"
READY = "volatile.last_state.ready"
POWER = "volatile.last_state.power"
BOOT_ID = "volatile.last_state.boot_id"
MOVED = "MOVED"
"""The last power state of an instance that goes on on another server, and is not started by itself."""


class PendingRestart:
    """A start that will follow the end of a container, because of a restart or of a reboot from inside."""

    def __init__(self) -> None:
        self.cancelled = False
        """Whether the container has been stopped meanwhile, and is not started again."""
        self.keeps_mounts = False
        """Whether nothing happens to the files before that start, which finds them mounted."""
        self.finished = asyncio.Event()
        """Set when the container is running again, or will not be started."""


@dataclass
class Running:
    """A running container. Recreated from the host's state when the daemon is restarted."""

    row_id: int
    ref: InstanceRef
    init_pid: int
    monitor_pid: int | None
    devices: Mapping[str, Mapping[str, str]]
    """The expanded devices, as started and changed since."""
    config: Mapping[str, str]
    """The expanded config, as started and changed since."""
    idmap: IdMap
    """The id map that the container was started with."""
    cpu_wish: CpuWish = field(init=False)
    """The effective limits of CPUs and NUMA nodes, which a change sets before it is stored."""
    cpus: frozenset[int] | None = None
    """The CPUs that it is pinned to; None if it can use all."""
    memory_nodes: frozenset[int] | None = None
    """The NUMA nodes whose memory it is pinned to; None if it can use all."""
    frozen: bool = False
    ready: bool = False
    """Whether it has reported so through the guest API."""
    forced: bool = False
    """Whether it is being stopped by force; a simultaneous reboot from inside is ignored then."""
    pending_restart: PendingRestart | None = None
    """The restart in progress, if any."""
    recorded_as_stopped: bool = True
    """Whether its end was stored and published as final, without a restart."""
    moved: bool = False
    """Whether it goes on on another server, to which its state was sent, or has ended and may do so."""
    keep_power: bool = False
    """Whether the last power state remains RUNNING, because the host shuts down."""
    early_cleanup: asyncio.Future[None] | None = None
    """The clean-up that a forced stop runs while the container is ending; the regular clean-up awaits it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the container has ended and has been cleaned up."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after `ended`, when an ephemeral instance has been deleted as well."""
    init: Process = field(init=False)
    """Opened at the start, as the pid can be reused by any process of the host once init has ended."""
    monitor: Process | None = field(init=False)
    attach_cache: AttachCache | None = field(init=False)
    """The confinement of commands that run inside; None if it must not be cached."""

    def __post_init__(self) -> None:
        self.init = Process(self.init_pid)
        self.monitor = Process(self.monitor_pid) if self.monitor_pid is not None else None
        # raw.lxc may affect attached processes in ways that cannot be read back.
        self.attach_cache = None if self.config.get("raw.lxc") else AttachCache(self.init)
        self.cpu_wish = CpuWish.of(self.config)

    def inside(self, path: str) -> InnerPath:
        """Return a path in the container, for calls of the helper's sessions for mounts."""
        return InnerPath(self.init, path, self.idmap.host_uid(0), self.idmap.host_gid(0))

    @property
    def restarting(self) -> bool:
        """Whether the stop is part of a restart: no `stopped` event, no deletion of an ephemeral instance."""
        return self.pending_restart is not None and not self.pending_restart.cancelled

    @property
    def keeps_mounts(self) -> bool:
        """Whether its files stay mounted for the restart that it is stopped for."""
        return self.restarting and self.pending_restart is not None and self.pending_restart.keeps_mounts

    def release(self) -> None:
        """Close the pidfds; the processes have ended, or continue without the daemon."""
        self.init.close()
        if self.monitor is not None:
            self.monitor.close()

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def subject(self) -> Subject:
        """What its warnings are about."""
        return Subject("instance", self.row_id, self.ref.project)

    @cached_property
    def meter(self) -> Meter:
        """The reader of its resource usage. Blocking. Raises ProcessLookupError if it has ended."""
        return Meter(self.init_pid)

    @cached_property
    def accounts(self) -> Accounts:
        """The reader of what metrics show of it. Blocking. Raises ProcessLookupError if it has ended."""
        return Accounts(self.init_pid)

    @property
    def status(self) -> Status:
        if self.frozen:
            return Status.FROZEN
        return Status.READY if self.ready else Status.RUNNING


RuntimeListener = Callable[[Running, bool], None]
"""Called with a container, and whether it is running."""


class RuntimeTable:
    """The running containers by instance."""

    def __init__(self) -> None:
        self._running: dict[InstanceRef, Running] = {}
        self._restarts: dict[InstanceRef, list[PendingRestart]] = {}
        self._listeners: list[RuntimeListener] = []

    def get(self, ref: InstanceRef) -> Running | None:
        return self._running.get(ref)

    def status(self, ref: InstanceRef) -> Status:
        running = self._running.get(ref)
        return running.status if running else Status.STOPPED

    def add(self, running: Running) -> None:
        self._running[running.ref] = running
        self._tell(running, present=True)

    def remove(self, running: Running) -> None:
        if self._running.get(running.ref) is running:
            del self._running[running.ref]
            self._tell(running, present=False)

    def update(self, changed: Loaded) -> None:
        """Take over the config and devices of an instance that may be running."""
        running = self._running.get(changed.ref)
        if running is not None:
            running.devices = changed.expanded.devices
            running.config = changed.expanded.config
            self._tell(running, present=True)

    def listen(self, listener: RuntimeListener) -> None:
        """Call `listener` whenever a container starts or ends, or its devices change."""
        self._listeners.append(listener)

    def _tell(self, running: Running, *, present: bool) -> None:
        for listener in self._listeners:
            listener(running, present)

    def all(self) -> list[Running]:
        return list(self._running.values())

    @contextmanager
    def expect_restart(self, ref: InstanceRef) -> Iterator[PendingRestart]:
        """Register a restart for the duration of the block, in which it can be cancelled."""
        restart = PendingRestart()
        expected = self._restarts.setdefault(ref, [])
        expected.append(restart)
        try:
            yield restart
        finally:
            expected.remove(restart)
            if not expected:
                del self._restarts[ref]
            restart.finished.set()

    def will_restart(self, ref: InstanceRef) -> bool:
        return any(not restart.cancelled for restart in self._restarts.get(ref, ()))

    def cancel_restarts(self, ref: InstanceRef) -> list[PendingRestart]:
        """Cancel all restarts of an instance, and return them so that the caller can wait for their end."""
        restarts = list(self._restarts.get(ref, ()))
        for restart in restarts:
            restart.cancelled = True
        return restarts


def not_found(name: str) -> NotFound:
    return NotFound(f"Instance {name!r} not found")


@dataclass(frozen=True)
class RuntimePaths:
    """The paths of an instance's generated files, all in its log directory."""

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
        """`reboot` while a container that was running is being started again."""
        return self.folder / "lxc.target.last"

    @property
    def restore(self) -> Path:
        """The directory of programs and logs of the last restore of its running state."""
        return self.folder / "restore"

    @property
    def restored_init(self) -> Path:
        """The pid of a restored container's init, from which the post-stop hook learns of a reboot."""
        return self.folder / "lxc.target.init"

    @property
    def held(self) -> Path:
        """Exists while the container is frozen for a copy of its files, and not by a user."""
        return self.folder / "held"

    @property
    def undecided(self) -> Path:
        """Exists while the container is frozen because it may run on another server, until its next start.

        It contains the id of the move."""
        return self.folder / "undecided"

    @property
    def stop_requested(self) -> Path:
        """Created by a request to stop a container with `boot.autorestart`; removed by the next start."""
        return self.folder / "stop-requested"

    @property
    def killed(self) -> Path:
        """Created before a forced stop removes devices of the container; removed by the next start."""
        return self.folder / "killed"
