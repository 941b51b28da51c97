"""The dnsmasq of each bridge: started, found again, told to read its files anew, kept alive."""

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
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import run
from utsuwa.networks.drivers.bridge.dnsmasq import Folder, configuration
from utsuwa.networks.drivers.bridge.settings import BridgeSettings

log = logging.getLogger(__name__)

_ACCOUNTS = ("dnsmasq", "nobody")
"""Whom dnsmasq becomes once it has its sockets: the first of these that the host has."""
_RETRY_SECONDS = (0.2, 1.0, 5.0, 30.0)
"""How long to wait before each attempt to bring a dnsmasq back; the last one again and again."""
_BAD_CONFIG = (1,)
_RELOAD_SECONDS = 1.0
"""How long hosts that are gone may be known on."""


@dataclass(frozen=True)
class Account:
    """An unprivileged user, with its group."""

    user: str
    group: str
    gid: int


def account() -> Account:
    """Raises HostError where the host has none of the users. Blocking."""
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
            return Account(name, grp.getgrgid(entry.pw_gid).gr_name, entry.pw_gid)
        except KeyError:
            continue
    raise HostError("dnsmasq needs a user without rights: install Debian's package 'dnsmasq-base'")


class Servers:
    """All dnsmasq processes of this daemon, one a network; they run on when the daemon ends."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._to_reload: dict[str, asyncio.Task[None]] = {}
        """By network: what will have dnsmasq read its hosts anew."""

    def folder(self, network: str) -> Folder:
        return Folder(self._root / network)

    async def test(self, bridge: BridgeSettings) -> None:
        """Have dnsmasq read a configuration that is not in use. Raises InvalidConfig with its message."""
        trial = Folder(self._root / f".{bridge.name}.test")
        try:
            await asyncio.to_thread(_write, trial, bridge)
            await run([*trial.argv, "--test"])
        except ProcessFailed as error:
            if error.code not in _BAD_CONFIG:
                raise
            why = error.stderr.strip().removeprefix("dnsmasq:").strip().replace(f"{trial.path}/", "")
            raise InvalidConfig(f"dnsmasq refuses its configuration: {why}: change raw.dnsmasq") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, trial.path, ignore_errors=True)

    async def prepare(self, network: str) -> None:
        """Make the network's folder."""
        await asyncio.to_thread(_prepare, self.folder(network).path)

    async def ensure(self, bridge: BridgeSettings) -> None:
        """Have dnsmasq run with just these settings: started, restarted, stopped or left alone.

        Raises ProcessFailed with dnsmasq's message.
        """
        folder = self.folder(bridge.name)
        changed = await asyncio.to_thread(_write, folder, bridge)
        await self._let_go(bridge.name)
        pid = await asyncio.to_thread(find, folder)
        if not bridge.serves or changed:
            await self.stop(bridge.name)
            pid = None
        if bridge.serves:
            if pid is None:
                pid = await _start(folder)
            self._keep(bridge.name, pid)

    async def stop(self, network: str) -> None:
        """End a network's dnsmasq; its leases stay. Does nothing where there is none."""
        await self._let_go(network)
        folder = self.folder(network)
        pid = await asyncio.to_thread(find, folder)
        if pid is not None:
            await _end(pid)
        folder.pid.unlink(missing_ok=True)

    async def remove(self, network: str) -> None:
        """End a network's dnsmasq and remove its files."""
        await self.stop(network)
        await asyncio.to_thread(shutil.rmtree, self.folder(network).path, ignore_errors=True)

    async def reload(self, network: str) -> None:
        """Have dnsmasq read all files of hosts anew, and forget those that are gone."""
        waiting = self._to_reload.pop(network, None)
        if waiting is not None:
            waiting.cancel()
        await asyncio.to_thread(_reload, self.folder(network))

    def will_reload(self, network: str) -> bool:
        """Whether dnsmasq still knows hosts whose files are gone."""
        return network in self._to_reload

    def reload_soon(self, network: str) -> None:
        """As `reload`, once for all that ask for it in a while: dnsmasq takes 20 us a host, and logs each."""
        if network not in self._to_reload:
            name = f"hosts of {network}"
            self._to_reload[network] = asyncio.create_task(self._reload_later(network), name=name)

    async def _reload_later(self, network: str) -> None:
        await asyncio.sleep(_RELOAD_SECONDS)
        del self._to_reload[network]
        await asyncio.to_thread(_reload, self.folder(network))

    def leave(self) -> None:
        """The daemon ends: nobody keeps the processes, which run on."""
        for network, task in self._to_reload.items():
            task.cancel()
            _reload(self.folder(network))
        self._to_reload.clear()
        for keeper in self._keepers.values():
            keeper.cancel()
        self._keepers.clear()

    async def _let_go(self, network: str) -> None:
        """Nobody brings it back from here on."""
        keeper = self._keepers.pop(network, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])

    def _keep(self, network: str, pid: int) -> None:
        name = f"dnsmasq of {network}"
        self._keepers[network] = asyncio.create_task(self._bring_back(network, pid), name=name)

    async def _bring_back(self, network: str, pid: int) -> None:
        """Start dnsmasq again whenever it ends without having been told to."""
        folder = self.folder(network)
        while True:
            await pidfds.wait(pid)
            log.warning("dnsmasq of network %r has ended: starting it again", network)
            attempt = 0
            while True:
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                try:
                    pid = await _start(folder)
                    break
                except UtsuwaError as error:
                    log.warning("dnsmasq of network %r does not start: %s", network, error)
                    attempt += 1


async def _start(folder: Folder) -> int:
    """The pid of a new dnsmasq. It goes to the background by itself, in a session of its own, once it
    serves; until then what it has to say comes as the message of ProcessFailed."""
    folder.pid.unlink(missing_ok=True)
    await run(folder.argv)
    pid = await asyncio.to_thread(find, folder)
    if pid is None:
        raise HostError("dnsmasq ended as soon as it had started: look into the system's log")
    return pid


async def _end(pid: int) -> None:
    pidfds.send_signal(pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(pidfds.wait(pid), 2)
    except TimeoutError:
        pidfds.kill(pid)
        await pidfds.wait(pid)


def find(folder: Folder) -> int | None:
    """The pid of the dnsmasq that runs with this folder; None where there is none. Blocking.

    The pid file alone proves nothing: the number may have been given to another process since.
    """
    try:
        pid = int(folder.pid.read_text().strip())
        command = Path("/proc", str(pid), "cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(folder.argv[1]) in command.split(b"\0") else None


def _write(folder: Folder, bridge: BridgeSettings) -> bool:
    """Write all files but the hosts' for these settings; gives whether anything has changed."""
    who = account()
    with _writing(folder.path):
        return _write_as(who, folder, bridge)


def _write_as(who: Account, folder: Folder, bridge: BridgeSettings) -> bool:
    _make(folder.path, 0o710, who.gid)
    _make(folder.hosts, 0o2750, who.gid)  # what is written there has its group from the beginning
    raw = bridge.raw_dnsmasq if bridge.raw_dnsmasq.endswith("\n") else f"{bridge.raw_dnsmasq}\n"
    wanted = {folder.conf: configuration(bridge, folder, who.user, who.group), folder.raw: raw}
    changed = {path: text for path, text in wanted.items() if _read(path) != text}
    for path, text in changed.items():
        replace_file(path, text)
    return bool(changed)


def _reload(folder: Folder) -> None:
    pid = find(folder)
    if pid is not None:
        pidfds.send_signal(pid, signal.SIGHUP)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Files below a network's folder; raises HostError or OutOfSpace where the disk refuses them."""
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
