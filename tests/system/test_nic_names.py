"""The names of network interfaces inside containers: what can start, and who moves on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

P2P = {"type": "nic", "nictype": "p2p"}


def interfaces(daemon: Daemon, name: str) -> set[str]:
    return set(daemon.get(f"/1.0/instances/{name}/state")["network"]) - {"lo"}


def names(daemon: Daemon, name: str) -> dict[str, str]:
    """The interfaces that the devices without a configured name were given."""
    config = daemon.get(f"/1.0/instances/{name}")["config"]
    return {
        key.split(".")[1]: value
        for key, value in config.items()
        if key.endswith(".name") and key.startswith("volatile.")
    }


@pytest.fixture
def box(shared_daemon: Daemon, busybox: str) -> Daemon:
    """With a stopped instance `c1` that has a nic without a name from a profile."""
    shared_daemon.lxc("profile", "create", "nic")
    shared_daemon.lxc("profile", "device", "add", "nic", "lan", "nic", "nictype=p2p")
    shared_daemon.lxc("init", busybox, "c1", "-p", "default", "-p", "nic")
    shared_daemon.lxc("config", "device", "add", "c1", "eth0", "none")
    return shared_daemon


@pytest.fixture(autouse=True)
def no_profile(shared_daemon: Daemon) -> object:
    yield
    shared_daemon.delete_instances()
    shared_daemon.lxc("profile", "delete", "nic", check=False)


def test_a_nic_without_a_name_moves_on(box: Daemon) -> None:
    """Another one that is called as it was is added while the instance is stopped (lxd#6185, lxd#4446)."""
    (given,) = names(box, "c1").values()
    box.lxc("config", "device", "add", "c1", "second", "nic", "nictype=p2p", f"name={given}")
    assert names(box, "c1") != {"lan": given}
    box.lxc("start", "c1")
    assert interfaces(box, "c1") == {given, *names(box, "c1").values()}
    assert len(interfaces(box, "c1")) == 2


def test_the_names_of_a_running_instance_stay(box: Daemon) -> None:
    box.lxc("start", "c1")
    (given,) = names(box, "c1").values()
    nic = {**P2P, "name": given}
    patch = box.api("PATCH", "/1.0/instances/c1", {"devices": {"second": nic}})
    instance = box.get("/1.0/instances/c1")
    put = box.api("PUT", "/1.0/instances/c1", {**instance, "devices": {"second": nic}})
    profile = box.api("PATCH", "/1.0/profiles/nic", {"devices": {"second": nic}})
    for refused in (patch, put, profile):
        assert refused.status == 400, refused.body
        assert f"'second': 'name' '{given}' is taken by device 'lan'" in refused.error
    box.lxc("config", "device", "add", "c1", "second", "nic", "nictype=p2p")
    assert interfaces(box, "c1") == set(names(box, "c1").values())
    assert len(interfaces(box, "c1")) == 2


def test_two_configured_names_are_never_the_same(box: Daemon, busybox: str) -> None:
    """Whether the other one stands in the instance or in a profile."""
    box.lxc("profile", "device", "set", "nic", "lan", "name=web0")
    nic = {**P2P, "name": "web0"}
    source = {"type": "image", "alias": busybox}
    body = {"name": "c2", "source": source, "profiles": ["default", "nic"], "devices": {"second": nic}}
    for refused in (
        box.api("POST", "/1.0/instances", body),
        box.api("PATCH", "/1.0/instances/c1", {"devices": {"second": nic}}),
        box.api("PATCH", "/1.0/profiles/nic", {"devices": {"second": nic}}),
    ):
        assert refused.status == 400, refused.body
        assert "'second': 'name' 'web0' is taken by device 'lan'" in refused.error


@pytest.mark.parametrize("name", ["e", "lo", "all", "default"])
def test_a_name_that_no_container_could_start_with_is_refused(box: Daemon, name: str) -> None:
    refused = box.lxc(
        "config", "device", "add", "c1", "a", "nic", "nictype=p2p", f"name={name}", check=False
    ).stderr
    assert "Invalid device 'a'" in refused
    assert f"'{name}'" in refused


@pytest.mark.parametrize("name", ["e1", ".x", "-x", "a" * 15])
def test_other_odd_names_work(box: Daemon, name: str) -> None:
    box.lxc("config", "device", "add", "c1", "a", "nic", "nictype=p2p", f"name={name}")
    box.lxc("start", "c1")
    assert name in interfaces(box, "c1")


# ---- addresses and names as the server and projects choose them


def device_key(daemon: Daemon, name: str, key: str) -> str:
    return daemon.lxc("config", "get", name, key).stdout.strip()


def test_patterns_of_addresses(box: Daemon, busybox: str) -> None:
    box.lxc("config", "set", "network.hwaddr_pattern=02:ab:xx:xx:xx:xx")
    try:
        box.lxc("init", busybox, "c2", "-p", "default", "-p", "nic")
        assert device_key(box, "c2", "volatile.lan.hwaddr").startswith("02:ab:")
        box.lxc("project", "create", "web", "-c", "features.images=false", "-c", "features.profiles=false")
        box.lxc("project", "set", "web", "network.hwaddr_pattern=0e:cd:ef:xx:xx:xx")
        box.lxc("init", busybox, "c3", "--project=web", "-p", "default", "-p", "nic")
        found = box.lxc("config", "get", "c3", "volatile.lan.hwaddr", "--project=web").stdout
        assert found.startswith("0e:cd:ef:")
        for wrong, reason in (("01:xx:xx:xx:xx:xx", "multicast"), ("02:00:00:00:00:01", "equal")):
            refused = box.lxc("config", "set", f"network.hwaddr_pattern={wrong}", check=False)
            assert reason in refused.stderr
    finally:
        box.lxc("delete", "c3", "--project=web", check=False)
        box.lxc("project", "delete", "web", check=False)
        box.lxc("config", "unset", "network.hwaddr_pattern")


def test_host_names_by_address(box: Daemon) -> None:
    """Of interfaces at the start and attached later; a change that replaces one keeps its name."""
    box.lxc("config", "set", "instances.nic.host_name=mac")
    try:
        box.lxc("start", "c1")
        box.lxc("config", "device", "add", "c1", "second", "nic", "nictype=p2p")
        name = ""
        for device in ("lan", "second"):
            mac = device_key(box, "c1", f"volatile.{device}.hwaddr")
            name = device_key(box, "c1", f"volatile.{device}.host_name")
            assert name == f"lxd{mac.replace(':', '')[2:]}"
            assert Path(f"/sys/class/net/{name}").exists()
        box.lxc("config", "device", "set", "c1", "second", "mtu=1400")
        assert device_key(box, "c1", "volatile.second.host_name") == name
        assert Path(f"/sys/class/net/{name}/mtu").read_text().strip() == "1400"
    finally:
        box.lxc("config", "unset", "instances.nic.host_name")
