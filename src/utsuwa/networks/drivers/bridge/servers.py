"""The dnsmasq processes of bridges: starting, finding, reloading and supervising them."""

from __future__ import annotations

import asyncio
import errno
import grp
import logging
import os
import pwd
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidConfig, OutOfSpace, ProcessFailed, UtsuwaError
from utsuwa.core.warning_types import DNSMASQ_ENDED
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import run
from utsuwa.networks.drivers.bridge.dnsmasq import DnsmasqFiles, configuration
from utsuwa.networks.drivers.bridge.settings import BridgeSettings
from utsuwa.networks.troubles import Judge

log = logging.getLogger(__name__)

_ACCOUNTS = ("dnsmasq", "nobody")
"""Candidates for the user that dnsmasq switches to; the first existing one is used."""
_RETRY_SECONDS = (0.2, 1.0, 5.0, 30.0)
"""Delays before the attempts to restart a dnsmasq; the last one is repeated."""
_BAD_CONFIG = (1,)
_RELOAD_SECONDS = 1.0
"""Delay after which removed hosts are dropped."""


@dataclass(frozen=True)
class Account:
    """An unprivileged user, with its group."""

    user: str
    group: str
    gid: int


def account() -> Account:
    """Return the account for dnsmasq. Raises HostError if the host has none. Blocking."""
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
            return Account(name, grp.getgrgid(entry.pw_gid).gr_name, entry.pw_gid)
        except KeyError:
            continue
    raise HostError("dnsmasq needs an unprivileged user: install Debian's package 'dnsmasq-base'")


class Servers:
    """All dnsmasq processes of this daemon, one per network; they keep running when the daemon stops."""

    def __init__(self, root: Path, judge: Judge) -> None:
        self._root = root
        self._judge = judge
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._to_reload: dict[str, asyncio.Task[None]] = {}
        """Scheduled reloads, by network."""

    def files(self, network: str) -> DnsmasqFiles:
        return DnsmasqFiles(self._root / network)

    async def test(self, bridge: BridgeSettings) -> None:
        """Check a configuration with `dnsmasq --test`. Raises InvalidConfig with its message."""
        trial = DnsmasqFiles(self._root / f".{bridge.name}.test")
        try:
            await asyncio.to_thread(_write, trial, bridge)
            await run([*trial.argv, "--test"])
        except ProcessFailed as error:
            if error.code not in _BAD_CONFIG:
                raise
            why = error.stderr.strip().removeprefix("dnsmasq:").strip().replace(f"{trial.path}/", "")
            raise InvalidConfig(f"dnsmasq rejects its configuration: {why}: change raw.dnsmasq") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, trial.path, ignore_errors=True)

    async def prepare(self, network: str) -> None:
        """Create the network's directory."""
        await asyncio.to_thread(_prepare, self.files(network).path)

    async def ensure(self, bridge: BridgeSettings) -> None:
        """Ensure that dnsmasq runs with these settings; start, restart or stop it if necessary.

        Raises ProcessFailed with dnsmasq's message.
        """
        files = self.files(bridge.name)
        changed = await asyncio.to_thread(_write, files, bridge)
        await self._stop_supervising(bridge.name)
        pid = await asyncio.to_thread(find, files)
        if not bridge.serves or changed:
            await self.stop(bridge.name)
            pid = None
        if bridge.serves:
            if pid is None:
                pid = await _start(files)
            self._supervise(bridge.name, pid)
        self._judge(DNSMASQ_ENDED, bridge.name, "")

    async def stop(self, network: str) -> None:
        """Stop a network's dnsmasq, if it is running; its leases are kept."""
        await self._stop_supervising(network)
        files = self.files(network)
        pid = await asyncio.to_thread(find, files)
        if pid is not None:
            await _end(pid)
        files.pid.unlink(missing_ok=True)

    async def remove(self, network: str) -> None:
        """Stop a network's dnsmasq and remove its files."""
        await self.stop(network)
        await asyncio.to_thread(shutil.rmtree, self.files(network).path, ignore_errors=True)

    async def reload(self, network: str) -> None:
        """Make dnsmasq reload all files of hosts, which drops removed ones."""
        waiting = self._to_reload.pop(network, None)
        if waiting is not None:
            waiting.cancel()
        await asyncio.to_thread(_reload, self.files(network))

    def will_reload(self, network: str) -> bool:
        """Return whether a reload is scheduled, so that dnsmasq still has hosts whose files are removed."""
        return network in self._to_reload

    def reload_soon(self, network: str) -> None:
        """Schedule one reload for several changes, as dnsmasq takes 20 us per host, and logs each."""
        if network not in self._to_reload:
            name = f"hosts of {network}"
            self._to_reload[network] = asyncio.create_task(self._reload_later(network), name=name)

    async def _reload_later(self, network: str) -> None:
        await asyncio.sleep(_RELOAD_SECONDS)
        del self._to_reload[network]
        await asyncio.to_thread(_reload, self.files(network))

    def leave(self) -> None:
        """Stop supervising the processes, which keep running, when the daemon stops."""
        for network, task in self._to_reload.items():
            task.cancel()
            _reload(self.files(network))
        self._to_reload.clear()
        for supervisor in self._supervisors.values():
            supervisor.cancel()
        self._supervisors.clear()

    async def _stop_supervising(self, network: str) -> None:
        """Stop restarting a network's dnsmasq."""
        supervisor = self._supervisors.pop(network, None)
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])

    def _supervise(self, network: str, pid: int) -> None:
        name = f"dnsmasq of {network}"
        self._supervisors[network] = asyncio.create_task(self._restart_on_exit(network, pid), name=name)

    async def _restart_on_exit(self, network: str, pid: int) -> None:
        """Restart dnsmasq whenever it ends unexpectedly."""
        files = self.files(network)
        while True:
            await pidfds.wait(pid)
            log.warning("dnsmasq of network %r has ended: restarting it", network)
            attempt = 0
            while True:
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                try:
                    pid = await _start(files)
                    break
                except UtsuwaError as error:
                    self._judge(
                        DNSMASQ_ENDED, network, f"dnsmasq of network {network!r} does not start: {error}"
                    )
                    attempt += 1
            self._judge(DNSMASQ_ENDED, network, "")


async def _start(files: DnsmasqFiles) -> int:
    """Start dnsmasq, which daemonizes once it is ready, and return its pid.

    Raises ProcessFailed with its message.
    """
    files.pid.unlink(missing_ok=True)
    await run(files.argv)
    pid = await asyncio.to_thread(find, files)
    if pid is None:
        raise HostError("dnsmasq ended immediately after its start: see the system's log")
    return pid


async def _end(pid: int) -> None:
    pidfds.send_signal(pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(pidfds.wait(pid), 2)
    except TimeoutError:
        pidfds.kill(pid)
        await pidfds.wait(pid)


def find(files: DnsmasqFiles) -> int | None:
    """Return the pid of the dnsmasq that uses these files; None if it is not running. Blocking.

    The pid file alone is not sufficient, as another process may have the pid by now.
    """
    try:
        pid = int(files.pid.read_text().strip())
        command = Path("/proc", str(pid), "cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(files.argv[1]) in command.split(b"\0") else None


def _write(files: DnsmasqFiles, bridge: BridgeSettings) -> bool:
    """Write all files except those of hosts; return whether anything has changed."""
    who = account()
    with _writing(files.path):
        return _write_as(who, files, bridge)


def _write_as(who: Account, files: DnsmasqFiles, bridge: BridgeSettings) -> bool:
    _make(files.path, 0o710, who.gid)
    _make(files.hosts, 0o2750, who.gid)  # setgid: new files inherit the group
    raw = bridge.raw_dnsmasq if bridge.raw_dnsmasq.endswith("\n") else f"{bridge.raw_dnsmasq}\n"
    wanted = {files.conf: configuration(bridge, files, who.user, who.group), files.raw: raw}
    changed = {path: text for path, text in wanted.items() if _read(path) != text}
    for path, text in changed.items():
        replace_file(path, text)
    return bool(changed)


def _reload(files: DnsmasqFiles) -> None:
    pid = find(files)
    if pid is not None:
        pidfds.send_signal(pid, signal.SIGHUP)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Translate OSError on writing a network's files to HostError or OutOfSpace."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace(
                f"No space left for the files in {path}: free some space and try again"
            ) from error
        raise HostError(f"The files in {path} cannot be written: {error.strerror}") from error


def _make(path: Path, mode: int, gid: int) -> None:
    path.mkdir(mode=mode, exist_ok=True)
    os.chown(path, 0, gid)
    path.chmod(mode)


def _prepare(path: Path) -> None:
    with _writing(path):
        _make(path, 0o710, account().gid)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
