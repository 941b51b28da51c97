"""Networks on hosts that have no IPv6, each in a network namespace whose switches are the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import NetBox

pytestmark = pytest.mark.root


@pytest.fixture
def net(busybox_image: Image) -> Iterator[Daemon]:
    with boxed_daemon() as daemon:
        daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"eth0": {"type": "none"}}})
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield daemon


def box_of(daemon: Daemon) -> NetBox:
    assert daemon.box is not None
    return daemon.box


def switch_ipv6(daemon: Daemon, on: bool) -> None:
    for name in ("all", "default"):
        box_of(daemon).run("sysctl", "-w", f"net.ipv6.conf.{name}.disable_ipv6={int(not on)}")


def hide_ipv6(daemon: Daemon, folder: Path) -> None:
    """As on a kernel that was booted with ipv6.disable=1."""
    box_of(daemon).run("mount", "--bind", str(folder), "/proc/sys/net/ipv6")


def init_auto(daemon: Daemon) -> None:
    argv = [sys.executable, "-m", "utsuwa.daemon.main", "init", "--auto"]
    env = {**os.environ, "UTSUWA_DIR": str(daemon.dir)}
    ended = subprocess.run(
        [*box_of(daemon).prefix, *argv], env=env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


def launch(daemon: Daemon, network: str, **keys: str) -> str:
    """An instance on the network; the IPv4 address that dnsmasq gives it."""
    nic = {"type": "nic", "name": "eth0", "network": network}
    nic |= {key.replace("_", "."): value for key, value in keys.items()}
    source = {"type": "image", "alias": "busybox"}
    daemon.do("POST", "/1.0/instances", {"name": "c1", "source": source, "devices": {"eth0": nic}})
    daemon.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
    udhcpc = ("udhcpc", "-i", "eth0", "-nqf", "-t5", "-T1", "-s", "/bin/true")
    return daemon.lxc("exec", "c1", "--", *udhcpc).stderr


@pytest.mark.parametrize("lack", ["sysctl", "kernel"])
def test_init_ends_with_a_network_that_works(net: Daemon, lack: str, tmp_path: Path) -> None:
    """IPv4 alone, and the log says what is missing (lxd#2842, lxd#8705)."""
    if lack == "sysctl":
        switch_ipv6(net, False)
    else:
        hide_ipv6(net, tmp_path)
    net.do("PATCH", "/1.0/profiles/default", {"devices": {}})
    profile = net.get("/1.0/profiles/default")
    profile["devices"].pop("eth0")
    net.do("PUT", "/1.0/profiles/default", profile)
    init_auto(net)
    (network,) = [n for n in net.get("/1.0/networks?recursion=1") if n["managed"]]
    assert network["status"] == "Created"
    assert network["config"]["ipv6.address"] == "none"
    assert box_of(net).addresses(network["name"]) == {network["config"]["ipv4.address"]}
    if lack == "sysctl":  # the kernel mounts no /proc in a container while ours is hidden in part
        prefix = network["config"]["ipv4.address"].rsplit(".", 1)[0]
        assert f"lease of {prefix}." in launch(net, network["name"])
    assert f"network '{network['name']}' gets no IPv6 subnet" in net.log.read_text()


def test_existing_network_works_with_ipv4_until_ipv6_is_available(net: Daemon) -> None:
    """Its IPv6 comes back, with the routes of its instances, once the host has it (lxd#2842)."""
    addresses = {"ipv4.address": "10.77.0.1/24", "ipv6.address": "fd42:77::1/64"}
    keys = {"ipv4.routes": "10.91.0.0/24", "ipv6.routes": "fd42:91::/64"}
    net.do("POST", "/1.0/networks", {"name": "br", "config": addresses | keys})
    switch_ipv6(net, False)
    net.restart()
    box = box_of(net)
    assert net.get("/1.0/networks/br")["status"] == "Created"
    assert box.addresses("br") == {"10.77.0.1/24"}
    assert "network 'br' has no IPv6 because net.ipv6.conf.br.disable_ipv6 is set" in net.log.read_text()
    assert "lease of 10.77.0." in launch(net, "br", ipv4_routes="10.92.0.0/24", ipv6_routes="fd42:92::/64")
    assert "there is no route to fd42:92::/64 over 'br'" in net.log.read_text()
    assert "10.92.0.0/24" in box.run("ip", "route")
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})

    switch_ipv6(net, True)
    net.restart()
    assert box.addresses("br") == set(addresses.values())
    net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
    routes = box.run("ip", "-6", "route")
    assert "fd42:91::/64" in routes
    assert "fd42:92::/64" in routes


def test_an_explicit_address_is_kept_for_later(net: Daemon) -> None:
    switch_ipv6(net, False)
    config = {"ipv4.address": "10.77.0.1/24", "ipv6.address": "fd42:77::1/64", "ipv6.nat": "true"}
    net.do("POST", "/1.0/networks", {"name": "br", "config": config})
    assert net.get("/1.0/networks/br")["config"]["ipv6.address"] == "fd42:77::1/64"
    assert box_of(net).addresses("br") == {"10.77.0.1/24"}
    net.do("PATCH", "/1.0/networks/br", {"config": {"ipv4.address": "10.78.0.1/24"}})
    assert box_of(net).addresses("br") == {"10.78.0.1/24"}


def test_read_only_switches(net: Daemon) -> None:
    """As /proc/sys is in some containers: instances could reach each other and the host, no further."""
    switch_ipv6(net, False)
    box_of(net).run("mount", "--bind", "/proc/sys", "/proc/sys")
    box_of(net).run("mount", "-o", "remount,bind,ro", "/proc/sys")
    net.do("POST", "/1.0/networks", {"name": "br", "config": {"ipv4.address": "10.77.0.1/24"}})
    assert box_of(net).addresses("br") == {"10.77.0.1/24"}
    assert net.get("/1.0/networks/br")["status"] == "Created"
    log = net.log.read_text()
    assert "on the network 'br' have no external connectivity by IPv4" in log
    assert "cannot set the sysctl net.ipv4.ip_forward to 1: Read-only file system" in log
