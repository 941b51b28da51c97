"""Names and leases of a bridge: files of hosts that change one by one, and what dnsmasq is told of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.instances import ref
from tests.support.open_warnings import Judged
from utsuwa.host.files import atomic
from utsuwa.host.network import dhcp
from utsuwa.networks.base import PortUpdate
from utsuwa.networks.drivers.bridge import addresses, hosts
from utsuwa.networks.drivers.bridge.addresses import BridgeAddresses
from utsuwa.networks.drivers.bridge.servers import Servers
from utsuwa.networks.drivers.bridge.settings import BridgeSettings, settings
from utsuwa.networks.ports import Port

A, B = "00:16:3e:00:00:0a", "00:16:3e:00:00:0b"
ONE = Port(ref("c1"), "eth0", "br0", True, A, "", "")
TWO = Port(ref("c2"), "eth0", "br0", True, B, "", "")


class Dnsmasq(Servers):
    """Counts what it is told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Judged())
        self.told: list[str] = []

    async def reload(self, network: str) -> None:
        self.told.append("reload")

    def reload_soon(self, network: str) -> None:
        self.told.append("soon")


@pytest.fixture
def dnsmasq(tmp_path: Path) -> Dnsmasq:
    return Dnsmasq(tmp_path)


@pytest.fixture
def service(dnsmasq: Dnsmasq) -> BridgeAddresses:
    dnsmasq.files("br0").hosts.mkdir(parents=True)
    return BridgeAddresses(dnsmasq)


def bridge(**keys: str) -> BridgeSettings:
    config = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64"}
    return settings("br0", config | {key.replace("_", "."): value for key, value in keys.items()}, "o")


def written(dnsmasq: Dnsmasq) -> dict[str, str]:
    return {path.name: path.read_text() for path in dnsmasq.files("br0").hosts.iterdir()}


async def test_hosts_change_one_by_one(
    service: BridgeAddresses, dnsmasq: Dnsmasq, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await service.update(bridge(), [ONE], None) == PortUpdate(True)
    assert dnsmasq.told.pop() == "reload"
    touched: list[str] = []

    def write(path: Path, text: str, mode: int) -> None:
        touched.append(path.name)
        atomic.replace_file(path, text, mode)

    monkeypatch.setattr(hosts, "replace_file", write)
    assert service.is_current("br0")
    assert await service.update(bridge(), [TWO], [TWO.instance]) == PortUpdate(True)
    assert await service.update(bridge(), [TWO], [TWO.instance]) == PortUpdate(False)
    assert (touched, dnsmasq.told) == (["c2.eth0"], [])
    assert written(dnsmasq) == {"c1.eth0": f"{A},c1\n", "c2.eth0": f"{B},c2\n"}
    assert (dnsmasq.files("br0").hosts / "c2.eth0").stat().st_mode & 0o777 == 0o640

    static = replace(TWO, ipv4="10.1.2.9")
    assert await service.update(bridge(), [static], [TWO.instance]) == PortUpdate(True)
    assert dnsmasq.told.pop() == "reload"
    assert await service.update(bridge(), [], [TWO.instance]) == PortUpdate(True, frozenset({B}))
    assert dnsmasq.told == ["soon"]
    assert list(written(dnsmasq)) == ["c1.eth0"]


async def test_a_renamed_instance_keeps_its_address(service: BridgeAddresses, dnsmasq: Dnsmasq) -> None:
    await service.update(bridge(), [ONE], None)
    renamed = replace(ONE, instance=ref("new"))
    assert await service.update(bridge(), [renamed], [ONE.instance, renamed.instance]) == PortUpdate(True)
    assert written(dnsmasq) == {"new.eth0": f"{A},new\n"}


async def test_all_ports_are_updated_when_the_network_changes(
    service: BridgeAddresses, dnsmasq: Dnsmasq
) -> None:
    """Also after a start: a daemon that was killed may not have told of what is gone."""
    (dnsmasq.files("br0").hosts / "old.eth0").write_text(f"{B},old\n")
    assert await service.update(bridge(), [ONE], None) == PortUpdate(True, frozenset({B}))
    service.forget("br0")
    assert not service.is_current("br0")
    assert await service.update(bridge(dns_mode="none"), [ONE], None) == PortUpdate(True, frozenset({A}))
    assert written(dnsmasq) == {}
    assert dnsmasq.told == ["reload", "reload"]


async def test_a_running_instance_is_known_by_its_old_mac_until_it_has_a_new_one(
    service: BridgeAddresses, dnsmasq: Dnsmasq
) -> None:
    await service.update(bridge(), [ONE], None)
    later = replace(ONE, mac="", running=True)
    assert await service.update(bridge(), [later], [ONE.instance]) == PortUpdate(False)
    assert list(written(dnsmasq)) == ["c1.eth0"]
    assert await service.update(bridge(), [replace(later, running=False)], [ONE.instance]) == PortUpdate(
        True, frozenset({A})
    )
    assert written(dnsmasq) == {}


async def test_files_that_could_not_be_written_are_retried(
    service: BridgeAddresses, dnsmasq: Dnsmasq, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.update(bridge(), [ONE], None)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hosts, "replace_file", full)
        with pytest.raises(OSError, match="No space"):
            await service.update(bridge(), [TWO], [TWO.instance])
    assert not service.is_current("br0")
    await service.update(bridge(), [ONE, TWO], None)
    assert list(sorted(written(dnsmasq))) == ["c1.eth0", "c2.eth0"]


async def test_nothing_is_written_before_the_directory_exists(dnsmasq: Dnsmasq) -> None:
    assert await BridgeAddresses(dnsmasq).update(bridge(), [ONE], None) == PortUpdate(False)


async def test_leases_are_released(
    service: BridgeAddresses,
    dnsmasq: Dnsmasq,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(dhcp, "release", lambda *what: given.append(what))
    monkeypatch.setattr(dhcp, "release6", lambda *what: given.append(what))
    monkeypatch.setattr(addresses, "_RELEASE_POLL", 0.001)
    assert await service.leases(bridge()) == []
    file = dnsmasq.files("br0").leases
    file.write_text("0 00:16:3e:00:00:01 10.1.2.9 c1 *\nduid aa:bb\n0 7 fd42::9 c1 cc\n")
    four, six = await service.leases(bridge())
    assert await service.leases(bridge(), ["fd42::9"]) == [six]
    reclaiming = asyncio.create_task(service.reclaim(bridge(), [four, six]))
    async with asyncio.timeout(30):
        while len(given) < 2:
            await asyncio.sleep(0.005)
    assert not reclaiming.done()
    file.write_text("")
    await reclaiming
    assert given[0] == ("br0", "10.1.2.1", "10.1.2.9", "00:16:3e:00:00:01", b"")
    assert given[1][0] == "br0"
    assert not caplog.records
    file.write_text("0 00:16:3e:00:00:01 10.1.2.9 c1 *\n")
    await service.reclaim(bridge(), [four])
    assert "keeps these leases until they expire: 10.1.2.9" in caplog.text


@pytest.mark.parametrize(
    ("ranges", "mac", "static", "room"),
    [
        ("", B, [], True),
        ("10.1.2.9-10.1.2.9", B, [], False),
        ("10.1.2.9-10.1.2.9", "00:16:3e:00:00:01", [], True),  # it has a lease already
        ("10.1.2.9-10.1.2.10", B, [], True),
        ("10.1.2.9-10.1.2.10", B, [replace(ONE, ipv4="10.1.2.10")], False),
        ("10.1.2.9-10.1.2.10", B, [replace(ONE, ipv4="none")], True),
    ],
)
async def test_free_address_depends_on_ranges_leases_and_static_addresses(
    service: BridgeAddresses, dnsmasq: Dnsmasq, ranges: str, mac: str, static: list[Port], room: bool
) -> None:
    dnsmasq.files("br0").leases.write_text("0 00:16:3e:00:00:01 10.1.2.9 c1 *\n")
    assert await service.has_free_address(bridge(ipv4_dhcp_ranges=ranges), mac, static) is room
    assert await service.has_free_address(bridge(ipv4_address="none"), mac, static)


def test_views(service: BridgeAddresses) -> None:
    found = service.views(bridge(), [replace(ONE, ipv4="10.1.2.9"), TWO], [])
    assert [(view.kind, view.hostname) for view in found] == [
        ("gateway", "br0.gw"),
        ("gateway", "br0.gw"),
        ("static", "c1"),
        ("dynamic", "c1"),
        ("dynamic", "c2"),
    ]
