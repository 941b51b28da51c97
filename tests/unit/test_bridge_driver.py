"""In which order a bridge comes and goes, and that one refusal does not keep the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.networks import dotted
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
        async def run(*_: Any, **__: Any) -> None:
            self.note(what)

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
def driver(recorder: Recorder, tmp_path: Any) -> BridgeDriver:
    return BridgeDriver("o", Servers(tmp_path), Firewall("t"))


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
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For dnsmasq and the firewall as well: dnsmasq cannot bind an address that is not there (lxd#2842)."""
    seen: list[BridgeSettings | Contribution] = []

    async def see(_: object, what: BridgeSettings | Contribution) -> None:
        seen.append(what)

    monkeypatch.setattr(Servers, "ensure", see)
    monkeypatch.setattr(Firewall, "apply", see)
    monkeypatch.setattr(ip_switches, "ipv6_lack", lambda name: f"{name} has it off")
    await driver.up(bridge())
    lacking = replace(bridge(), ipv6=None)
    assert seen == [contribution(lacking), lacking]
    assert "network 'br0' has no IPv6 for now, for br0 has it off" in caplog.text
    caplog.clear()
    await driver.up(bridge(ipv6_address="none"))
    assert caplog.text == ""


async def test_a_network_without_a_way_out_where_forwarding_cannot_be_set(
    driver: BridgeDriver, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """/proc/sys may be read-only."""
    recorder.fails = "allow_forwarding"
    await driver.up(bridge())
    assert recorder.done[-2:] == ["Firewall.apply", "Servers.ensure"]
    assert "on the network 'br0' reach nothing outside of the host by IPv4" in caplog.text


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


async def test_missing_ports_are_told_once_and_join_later(
    driver: BridgeDriver,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    missing = {"ext0": "the host has no interface 'ext0'"}
    monkeypatch.setattr(bridges, "join", lambda name, external: dict(missing))
    here = bridge(bridge_external_interfaces="ext0")
    await driver.up(here)
    await driver.join(here)
    assert [record.getMessage() for record in caplog.records] == [
        "network 'br0' does without its external interface for now: the host has no interface 'ext0'; "
        "it joins as soon as it can"
    ]
    missing["ext0"] = "'ext0' already has another master"
    await driver.join(here)
    assert "already has another master" in caplog.records[-1].getMessage()
    missing.clear()
    await driver.join(here)
    await driver.join(here)
    assert len(caplog.records) == 3
    assert caplog.records[-1].getMessage() == "the external interface 'ext0' has joined the network 'br0'"
