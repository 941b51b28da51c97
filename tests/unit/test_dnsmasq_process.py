"""Keeping dnsmasq: files, found again by pid and command, told of hosts, brought back. No real dnsmasq."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.open_warnings import Judged
from utsuwa.core.errors import HostError, InvalidConfig, ProcessFailed
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import Completed
from utsuwa.networks.drivers.bridge import servers as process
from utsuwa.networks.drivers.bridge.dnsmasq import DnsmasqFiles
from utsuwa.networks.drivers.bridge.servers import Account, Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, settings


def bridge(**keys: str) -> BridgeSettings:
    config = {"ipv4.address": "10.1.2.1/24"}
    return settings("br0", config | {key.replace("_", "."): value for key, value in keys.items()}, "o")


class Machine:
    """Processes by number: the folder that each serves, and whether it lives."""

    def __init__(self) -> None:
        self.ends: dict[int, asyncio.Event] = {}
        self.serving: dict[Path, int] = {}
        self.signals: list[tuple[int, int]] = []
        self.starts = 0
        self.refusal: ProcessFailed | None = None

    async def run(self, argv: Sequence[str], **_: Any) -> Completed:
        if self.refusal is not None:
            raise self.refusal
        if "--test" not in argv:
            self.starts += 1
            pid = 1000 + self.starts
            self.ends[pid] = asyncio.Event()
            self.serving[Path(argv[1].removeprefix("--conf-file=")).parent] = pid
        return Completed(tuple(argv), 0, b"", b"")

    def find(self, folder: DnsmasqFiles) -> int | None:
        pid = self.serving.get(folder.path)
        return pid if pid is not None and not self.ends[pid].is_set() else None

    async def wait(self, pid: int) -> None:
        await self.ends[pid].wait()

    def send(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))
        if number != signal.SIGHUP:
            self.ends[pid].set()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    played = Machine()
    monkeypatch.setattr(process, "run", played.run)
    monkeypatch.setattr(process, "find", played.find)
    monkeypatch.setattr(pidfds, "wait", played.wait)
    monkeypatch.setattr(pidfds, "send_signal", played.send)
    monkeypatch.setattr(process, "_RETRY_SECONDS", (0.0, 0.01))
    monkeypatch.setattr(process, "account", lambda: Account("nobody", "nogroup", os.getgid()))
    monkeypatch.setattr(os, "chown", lambda *_: None)
    return played


@pytest.fixture
def judged() -> Judged:
    return Judged()


@pytest.fixture
async def servers(machine: Machine, tmp_path: Path, judged: Judged) -> AsyncIterator[Servers]:
    found = Servers(tmp_path, judged)
    yield found
    found.leave()
    await asyncio.sleep(0)


async def test_it_is_started_once_and_again_only_for_a_change(servers: Servers, machine: Machine) -> None:
    await servers.ensure(bridge())
    await servers.ensure(bridge())
    assert machine.starts == 1
    folder = servers.files("br0")
    assert folder.path.stat().st_mode & 0o777 == 0o710
    assert folder.conf.stat().st_mode & 0o777 == 0o600
    await servers.ensure(bridge(raw_dnsmasq="log-queries"))
    assert machine.starts == 2
    assert folder.raw.read_text() == "log-queries\n"
    assert machine.signals == [(1001, signal.SIGTERM)]
    await servers.ensure(bridge(ipv4_address="none"))
    assert machine.signals[-1] == (1002, signal.SIGTERM)
    assert machine.starts == 2


async def test_one_that_runs_already_is_kept(servers: Servers, machine: Machine, tmp_path: Path) -> None:
    await servers.ensure(bridge())
    servers.leave()
    later = Servers(tmp_path, Judged())
    await later.ensure(bridge())
    assert (machine.starts, machine.signals) == (1, [])
    later.leave()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_dnsmasq_is_restarted_when_it_ends(
    servers: Servers, machine: Machine, judged: Judged, caplog: pytest.LogCaptureFixture
) -> None:
    await servers.ensure(bridge())
    machine.refusal = ProcessFailed(["dnsmasq"], 2, "Address already in use")
    machine.ends[1001].set()
    await until(lambda: judged)
    assert "does not start: dnsmasq: Address already in use" in judged["No addresses and names on a network"]
    assert "has ended: restarting it" in caplog.text
    machine.refusal = None
    await until(lambda: machine.starts == 2 and not judged)
    machine.ends[1002].set()
    await until(lambda: machine.starts == 3)


async def test_one_that_is_stopped_does_not_come_back(servers: Servers, machine: Machine) -> None:
    await servers.ensure(bridge())
    await servers.remove("br0")
    await asyncio.sleep(0.05)
    assert machine.starts == 1
    assert not servers.files("br0").path.exists()


async def test_trial(servers: Servers, machine: Machine, tmp_path: Path) -> None:
    await servers.test(bridge(raw_dnsmasq="ok"))
    assert list(tmp_path.iterdir()) == []
    trial = tmp_path / ".br0.test"
    machine.refusal = ProcessFailed(
        ["dnsmasq"], 1, f"\ndnsmasq: bad option at line 2 of {trial}/dnsmasq.raw\n"
    )
    with pytest.raises(InvalidConfig, match=r"bad option at line 2 of dnsmasq\.raw: change raw\.dnsmasq"):
        await servers.test(bridge(raw_dnsmasq="\nno"))
    machine.refusal = ProcessFailed(["dnsmasq"], None, "not found; install Debian's package 'dnsmasq-base'")
    with pytest.raises(ProcessFailed, match="dnsmasq-base"):
        await servers.test(bridge())
    assert list(tmp_path.iterdir()) == []


async def test_reloads_are_gathered(
    servers: Servers, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dnsmasq reads all files of hosts at each: a hundred instances that go are told of once."""
    monkeypatch.setattr(process, "_RELOAD_SECONDS", 0.02)
    await servers.reload("br0")  # nobody is there
    await servers.ensure(bridge())
    for _ in range(3):
        servers.reload_soon("br0")
    assert machine.signals == []
    await until(lambda: machine.signals)
    await asyncio.sleep(0.05)
    assert machine.signals == [(1001, signal.SIGHUP)]
    servers.reload_soon("br0")
    await servers.reload("br0")
    await asyncio.sleep(0.05)
    assert len(machine.signals) == 2


async def test_a_daemon_that_ends_leaves_no_reload_undone(servers: Servers, machine: Machine) -> None:
    await servers.ensure(bridge())
    servers.reload_soon("br0")
    servers.leave()
    assert machine.signals == [(1001, signal.SIGHUP)]


async def test_one_that_ends_at_once_is_an_error(
    servers: Servers, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "find", lambda folder: None)
    with pytest.raises(HostError, match="immediately after its start"):
        await servers.ensure(bridge())


def test_pid_of_another_process_is_not_accepted(tmp_path: Path) -> None:
    folder = DnsmasqFiles(tmp_path)
    assert process.find(folder) is None
    for text in (f"{os.getpid()}\n", "999999999\n", "nonsense"):
        folder.pid.write_text(text)
        assert process.find(folder) is None


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names = {"dnsmasq", "nobody"}
    real = pwd.getpwuid(0)

    def find(name: str) -> pwd.struct_passwd:
        if name not in names:
            raise KeyError(name)
        return real

    monkeypatch.setattr(pwd, "getpwnam", find)
    return names


def test_accounts(users: set[str]) -> None:
    assert process.account() == Account("dnsmasq", grp.getgrgid(0).gr_name, 0)
    users.discard("dnsmasq")
    assert process.account().user == "nobody"
    users.clear()
    with pytest.raises(HostError, match="dnsmasq-base"):
        process.account()
