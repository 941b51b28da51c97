"""In which order a bridge comes and goes, and that one refusal does not keep the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.networks import dotted
from tests.support.open_warnings import Judged
from utsuwa.core.errors import HostError
from utsuwa.host.network import bridges, ip_switches
from utsuwa.networks.drivers.bridge.driver import BridgeDriver
from utsuwa.networks.drivers.bridge.rules import contribution
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, settings
from utsuwa.networks.firewall import Firewall
from utsuwa.networks.ruleset import Contribution


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
        async def run(*_: Any, **__: Any) -> list[str]:
            self.note(what)
            return []

        return run


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    for owner, names in (
        (Servers, ("prepare", "ensure", "stop", "remove", "test")),
        (Firewall, ("apply", "remove")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, found.step(f"{owner.__name__}.{name}"))
    for module, name in (
        (bridges, "configure"),
        (bridges, "release"),
        (bridges, "delete"),
        (ip_switches, "allow_forwarding"),
    ):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: found.note(name))
    monkeypatch.setattr(ip_switches, "ipv6_lack", lambda _: "")
    return found


@pytest.fixture
def judged() -> Judged:
    return Judged()


@pytest.fixture
def driver(recorder: Recorder, tmp_path: Any, judged: Judged) -> BridgeDriver:
    return BridgeDriver("o", Servers(tmp_path, judged), Firewall("t"), judged)


def bridge(**keys: str) -> BridgeSettings:
    config = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64", "ipv6.routing": "false"}
    return settings("br0", config | {dotted(key): value for key, value in keys.items()}, "o")


async def test_up(driver: BridgeDriver, recorder: Recorder) -> None:
    await driver.up(bridge())
    steps = ["Servers.prepare", "configure", "allow_forwarding", "Firewall.apply", "Servers.ensure"]
    assert recorder.done == steps
    recorder.done.clear()
    await driver.change(bridge(), bridge(ipv4_routing="false"))
    assert recorder.done == ["release", *[step for step in steps if step != "allow_forwarding"]]


async def test_a_host_without_ipv6_gets_ipv4_alone_and_a_warning(
    driver: BridgeDriver,
    judged: Judged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For dnsmasq and the firewall as well: dnsmasq cannot bind an address that is not there (lxd#2842)."""
    seen: list[BridgeSettings | Contribution] = []

    async def see(_: object, what: BridgeSettings | Contribution) -> list[str]:
        seen.append(what)
        return ["ip filter FORWARD"]

    monkeypatch.setattr(Servers, "ensure", see)
    monkeypatch.setattr(Firewall, "apply", see)
    monkeypatch.setattr(ip_switches, "ipv6_lack", lambda name: f"{name} has it off")
    await driver.up(bridge())
    lacking = replace(bridge(), ipv6=None)
    assert seen == [contribution(lacking), lacking]
    assert "network 'br0' has no IPv6 because br0 has it off" in judged["No IPv6 on a network"]
    await driver.up(bridge(ipv6_address="none"))
    assert list(judged) == ["Firewall drops traffic of a network"]
    assert "the firewall chain 'ip filter FORWARD' drops" in judged["Firewall drops traffic of a network"]


async def test_network_without_uplink_if_forwarding_cannot_be_set(
    driver: BridgeDriver, recorder: Recorder, judged: Judged
) -> None:
    """/proc/sys may be read-only."""
    recorder.fails = "allow_forwarding"
    await driver.up(bridge())
    assert recorder.done[-2:] == ["Firewall.apply", "Servers.ensure"]
    assert "on the network 'br0' have no external connectivity by IPv4" in judged["A network has no way out"]
    recorder.fails = ""
    await driver.up(bridge())
    assert judged == {}


@pytest.mark.parametrize("fails", ["", "Servers.stop", "Firewall.remove", "release", "delete"])
async def test_down(driver: BridgeDriver, recorder: Recorder, fails: str) -> None:
    recorder.fails = fails
    if fails:
        with pytest.raises(HostError, match=fails):
            await driver.down("br0")
    else:
        await driver.down("br0")
    steps = ["Servers.stop", "Firewall.remove", "release", "delete"]
    assert recorder.done == (steps if fails else [*steps, "Servers.remove"])


async def test_down_with_files_kept(driver: BridgeDriver, recorder: Recorder) -> None:
    await driver.down("br0", keep_files=True)
    assert recorder.done == ["Servers.stop", "Firewall.remove", "release", "delete"]


async def test_missing_ports_are_a_warning_and_join_later(
    driver: BridgeDriver,
    recorder: Recorder,
    judged: Judged,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    missing = {"ext0": "the host has no interface 'ext0'"}
    monkeypatch.setattr(bridges, "join", lambda name, external: dict(missing))
    here = bridge(bridge_external_interfaces="ext0")
    await driver.up(here)
    await driver.join(here)
    assert judged == {
        "External interface of a network missing": "network 'br0' lacks an external interface: "
        "the host has no interface 'ext0'; it will be attached when possible"
    }
    missing["ext0"] = "'ext0' already has another master"
    await driver.join(here)
    assert "already has another master" in judged["External interface of a network missing"]
    missing.clear()
    await driver.join(here)
    await driver.join(here)
    assert judged == {}
    assert [record.getMessage() for record in caplog.records] == [
        "the external interface 'ext0' was attached to the network 'br0'"
    ]
