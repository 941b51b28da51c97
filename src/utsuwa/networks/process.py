"""The dnsmasq of each bridge: started, found again, told of changes, kept alive."""

from __future__ import annotations

import asyncio
import errno
import grp
import logging
import os
import pwd
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidConfig, OutOfSpace, ProcessFailed, UtsuwaError
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.network import dhcp
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import run
from utsuwa.networks import leases
from utsuwa.networks.dnsmasq import Folder, Host, configuration, host_line
from utsuwa.networks.leases import Lease
from utsuwa.networks.settings import BridgeSettings

log = logging.getLogger(__name__)

_ACCOUNTS = ("dnsmasq", "nobody")
"""Whom dnsmasq becomes once it has its sockets: the first of these that the host has."""
_RETRY_SECONDS = (0.2, 1.0, 5.0, 30.0)
"""How long to wait before each attempt to bring a dnsmasq back; the last one again and again."""
_BAD_CONFIG = (1,)
_RELEASE_POLL = 0.02
_RELEASE_POLLS = 50
"""Looks at whether dnsmasq has ended a lease, a poll apart: for a second in all."""


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

    async def tell_hosts(
        self, bridge: BridgeSettings, hosts: Collection[Host], keep: Collection[str] = ()
    ) -> set[str] | None:
        """Write what dnsmasq is to know of the instances' devices, and tell it where that has changed.

        Gives the MACs that it no longer knows, None where all is as before. The files named by `keep` stay.
        """
        folder = self.folder(bridge.name)
        lines = {host.file: host_line(host, bridge.dns_mode) for host in hosts}
        changed, gone = await asyncio.to_thread(_write_hosts, folder, lines, keep)
        pid = await asyncio.to_thread(find, folder) if changed else None
        if pid is None:
            return None
        pidfds.send_signal(pid, signal.SIGHUP)
        return gone

    def leases(self, network: str) -> list[Lease]:
        """The leases that are in force. Blocking."""
        return list(leases.parse(_read(self.folder(network).leases) or "", time.time()))

    async def give_back(self, bridge: BridgeSettings, given: Collection[Lease]) -> None:
        """Ask dnsmasq to end leases before their time, for others to use their addresses."""
        if given:
            await asyncio.to_thread(_release, bridge, self.folder(bridge.name), given)

    async def reclaim(self, bridge: BridgeSettings, given: Collection[Lease]) -> None:
        """As `give_back`, and wait until dnsmasq has done so."""
        await self.give_back(bridge, given)
        rest = {lease.address for lease in given}
        for _ in range(_RELEASE_POLLS):
            rest &= {lease.address for lease in await asyncio.to_thread(self.leases, bridge.name)}
            if not rest:
                return
            await asyncio.sleep(_RELEASE_POLL)
        shown = ", ".join(sorted(rest))
        log.warning("dnsmasq of network %r keeps these leases until they end: %s", bridge.name, shown)

    def leave(self) -> None:
        """The daemon ends: nobody keeps the processes, which run on."""
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
    _make(folder.hosts, 0o750, who.gid)
    raw = bridge.raw_dnsmasq if bridge.raw_dnsmasq.endswith("\n") else f"{bridge.raw_dnsmasq}\n"
    wanted = {folder.conf: configuration(bridge, folder, who.user, who.group), folder.raw: raw}
    changed = {path: text for path, text in wanted.items() if _read(path) != text}
    for path, text in changed.items():
        replace_file(path, text)
    return bool(changed)


def _write_hosts(folder: Folder, lines: Mapping[str, str], keep: Collection[str]) -> tuple[bool, set[str]]:
    """Bring the folder of hosts to these files; whether anything has changed, and the MACs that are gone."""
    if not folder.hosts.is_dir():
        return False, set()
    gid = folder.hosts.stat().st_gid
    changed = False
    known = {
        path.name: (_read(path) or "").split(",")[0].strip()
        for path in folder.hosts.iterdir()
        if path.name not in keep
    }
    for name in known:
        if not lines.get(name):
            (folder.hosts / name).unlink()
            changed = True
    for name, text in lines.items():
        path = folder.hosts / name
        if text and _read(path) != text:
            # dnsmasq reads every file of the folder but those that begin with a dot.
            replace_file(path, text, 0o640)
            os.chown(path, 0, gid)
            changed = True
    return changed, set(known.values()) - {line.split(",")[0].strip() for line in lines.values()}


def _release(bridge: BridgeSettings, folder: Folder, given: Collection[Lease]) -> None:
    server = leases.server_duid(_read(folder.leases) or "")
    for lease in given:
        try:
            if lease.version == 6:
                packet = dhcp.release6_packet(
                    server, lease.address, lease.client_id, lease.iaid, temporary=lease.temporary
                )
                dhcp.release6(bridge.name, packet)
            elif bridge.ipv4 is not None:
                own = str(bridge.ipv4.address.ip)
                dhcp.release(bridge.name, own, lease.address, lease.mac, lease.client_id)
        except OSError as error:
            log.info("the lease of %s cannot be given back: %s", lease.address, error)


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
