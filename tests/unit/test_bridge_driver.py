"""In which order a bridge comes and goes, and that one refusal does not keep the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from utsuwa.core.errors import HostError
from utsuwa.host import bridges
from utsuwa.networks.bridge import BridgeDriver
from utsuwa.networks.ports import Port
from utsuwa.networks.process import Servers
from utsuwa.networks.rules import Rules
from utsuwa.networks.settings import BridgeSettings, settings


class Recorder:
    """Plays the servers, the rules and the kernel; fails at the step that it is told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = ""

    def note(self, what: str) -> None:
        self.done.append(what)
        if what == self.fails:
            raise HostError(f"{what} failed")

    def step(self, what: str) -> Callable[..., Any]:
        async def run(*_: Any, **__: Any) -> None:
            self.note(what)

        return run


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    for owner, names in (
        (Servers, ("prepare", "ensure", "stop", "remove", "test")),
        (Rules, ("apply", "remove")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, found.step(f"{owner.__name__}.{name}"))
    for name in ("configure", "release", "delete", "allow_forwarding"):
        monkeypatch.setattr(bridges, name, lambda *_, name=name, **__: found.note(name))
    return found


@pytest.fixture
def driver(recorder: Recorder, tmp_path: Any) -> BridgeDriver:
    return BridgeDriver(Servers(tmp_path), Rules("t"))


def bridge(**keys: str) -> BridgeSettings:
    config = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64", "ipv6.routing": "false"}
    return settings("br0", config | {key.replace("_", "."): value for key, value in keys.items()}, "o")


async def test_up(driver: BridgeDriver, recorder: Recorder) -> None:
    await driver.up(bridge())
    steps = ["Servers.prepare", "configure", "allow_forwarding", "Rules.apply", "Servers.ensure"]
    assert recorder.done == steps
    recorder.done.clear()
    await driver.change(bridge(), bridge(ipv4_routing="false"))
    assert recorder.done == ["release", *[step for step in steps if step != "allow_forwarding"]]


@pytest.mark.parametrize("fails", ["", "Servers.stop", "Rules.remove", "release", "delete"])
async def test_down(driver: BridgeDriver, recorder: Recorder, fails: str) -> None:
    recorder.fails = fails
    if fails:
        with pytest.raises(HostError, match=fails):
            await driver.down("br0")
    else:
        await driver.down("br0")
    steps = ["Servers.stop", "Rules.remove", "release", "delete"]
    assert recorder.done == (steps if fails else [*steps, "Servers.remove"])


async def test_down_with_files_kept(driver: BridgeDriver, recorder: Recorder) -> None:
    await driver.down("br0", keep_files=True)
    assert recorder.done == ["Servers.stop", "Rules.remove", "release", "delete"]


async def test_hosts_are_the_ports_with_a_mac(driver: BridgeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    async def tell(self: Servers, bridge: BridgeSettings, hosts: Any) -> None:
        told.extend(host.file for host in hosts)

    monkeypatch.setattr(Servers, "tell_hosts", tell)
    mac = "00:16:3e:00:00:01"
    ports = [
        Port("default", "c1", "eth0", "br0", True, mac, "", ""),
        Port("default", "c2", "eth0", "br0", True, "", "", ""),
        Port("default", "c3", "eth0", "br1", True, mac, "", ""),
    ]
    await driver.tell_hosts(bridge(), ports)
    assert told == ["c1.eth0"]
