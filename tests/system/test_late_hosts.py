"""A host that is not ready when the daemon starts: missing ports, bridges and pools come later."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.networks import box_of, create, launch, lease, patch, prepared

pytestmark = pytest.mark.root

PORT = "ext0"
ADDRESSES = {"ipv4_address": "10.77.0.1/24", "ipv6_address": "none"}


@pytest.fixture
def net(busybox_image: Image) -> Iterator[Daemon]:
    """A daemon for one test alone, which restarts it; what the test made outside of it goes last."""
    with boxed_daemon() as daemon:
        prepared(daemon, busybox_image)
        yield daemon
        daemon.delete_instances()
        for name in (PORT, "late0"):
            remove(daemon, name)


def add_port(daemon: Daemon, name: str = PORT) -> None:
    box_of(daemon).run("ip", "link", "add", "name", name, "type", "veth", "peer", "name", f"{name}-peer")


def remove(daemon: Daemon, name: str) -> None:
    box_of(daemon).run("ip", "link", "del", "dev", name, check=False)


def add_bridge(daemon: Daemon, name: str) -> None:
    box_of(daemon).run("ip", "link", "add", "name", name, "type", "bridge")
    box_of(daemon).run("ip", "link", "set", "dev", name, "up")


def ports(daemon: Daemon) -> list[str]:
    found: list[str] = daemon.get("/1.0/networks/br/state")["bridge"]["upper_devices"]
    return found


def status(daemon: Daemon, name: str) -> str:
    return str(daemon.get(f"/1.0/instances/{name}")["status"])


def told(daemon: Daemon, *words: str) -> list[str]:
    """The lines of the log that hold all these words, but for requests."""
    lines = daemon.log.read_text().splitlines()
    return [line for line in lines if all(word in line for word in words) and "msg=request" not in line]


def warned(daemon: Daemon, text: str) -> list[str]:
    """The messages of the warnings of a type that are not resolved."""
    found = daemon.get("/1.0/warnings?recursion=1")
    return [w["last_message"] for w in found if w["type"] == text and w["status"] != "resolved"]


def test_bridge_is_created_without_a_missing_port(net: Daemon) -> None:
    """It serves its instances as before, and the port joins as soon as it is back (lxd#15273, lxd#4042)."""
    add_port(net)
    create(net, "br", bridge_external_interfaces=PORT, **ADDRESSES)
    launch(net, "c1", "br", dhcp=False)
    net.stop()
    remove(net, PORT)
    net.start()
    assert net.get("/1.0/networks/br")["status"] == "Created"
    assert (
        len(told(net, "level=warning", "'br' lacks an external", f"the host has no interface '{PORT}'")) == 1
    )
    (message,) = warned(net, "External interface of a network missing")
    assert f"the host has no interface '{PORT}'" in message
    net.do("PUT", "/1.0/instances/c1/state", {"action": "restart", "force": True})
    assert lease(net, "c1")
    # Appearing, taken away and made again, and renamed.
    for _ in range(2):
        add_port(net)
        until(lambda: PORT in ports(net))
        until(lambda: not warned(net, "External interface of a network missing"))
        remove(net, PORT)
        until(lambda: PORT not in ports(net))
    add_port(net, "other0")
    box_of(net).run("ip", "link", "set", "dev", "other0", "name", PORT)
    until(lambda: PORT in ports(net))
    box_of(net).run("ip", "link", "set", "dev", PORT, "nomaster")
    until(lambda: PORT in ports(net))


def test_a_port_that_is_somebody_elses_joins_when_it_is_free(net: Daemon) -> None:
    add_port(net)
    create(net, "br", bridge_external_interfaces=PORT, **ADDRESSES)
    net.stop()
    box_of(net).run("ip", "link", "set", "dev", PORT, "nomaster")
    box_of(net).run("ip", "addr", "add", "192.0.2.7/24", "dev", PORT)
    net.start()
    assert told(net, "level=warning", f"'{PORT}' has addresses")
    box_of(net).run("ip", "addr", "del", "192.0.2.7/24", "dev", PORT)
    until(lambda: PORT in ports(net))


def test_other_settings_change_while_a_port_is_missing(net: Daemon) -> None:
    """A port that is added must be there: what is mistyped is told at once."""
    add_port(net)
    create(net, "br", bridge_external_interfaces=PORT, **ADDRESSES)
    remove(net, PORT)
    patch(net, "br", ipv4_dhcp_expiry="2h")
    refused = net.api("PATCH", "/1.0/networks/br", {"config": {"bridge.external_interfaces": f"{PORT},nix0"}})
    assert (refused.status, "no interface 'nix0'" in refused.error) == (400, True)
    add_port(net)
    until(lambda: PORT in ports(net))
    net.do("DELETE", "/1.0/networks/br")
    assert PORT in box_of(net).links()


def test_restart_does_not_stop_an_instance_that_cannot_start(net: Daemon) -> None:
    add_bridge(net, "late0")
    create(net, "br", **ADDRESSES)
    nic = {"type": "nic", "name": "eth0", "nictype": "bridged", "parent": "late0"}
    source = {"type": "image", "alias": "busybox"}
    net.do("POST", "/1.0/instances", {"name": "c1", "source": source, "devices": {"eth0": nic}})
    net.do("PUT", "/1.0/instances/c1/state", {"action": "start"})
    pid = net.get("/1.0/instances/c1/state")["pid"]
    remove(net, "late0")
    for force in (False, True):
        restart = {"action": "restart", "force": force, "timeout": 5}
        failed = net.wait(net.api("PUT", "/1.0/instances/c1/state", restart))
        assert "was not stopped" in failed["err"]
        assert "the host has no bridge 'late0'" in failed["err"]
    assert net.get("/1.0/instances/c1/state")["pid"] == pid
    add_bridge(net, "late0")
    net.do("PUT", "/1.0/instances/c1/state", {"action": "restart", "force": True})
    assert net.get("/1.0/instances/c1/state")["pid"] != pid


def make_autostarted(net: Daemon, name: str) -> None:
    nic = {"type": "nic", "name": "eth0", "nictype": "bridged", "parent": "late0"}
    body = {"name": name, "source": {"type": "image", "alias": "busybox"}, "devices": {"eth0": nic}}
    net.do("POST", "/1.0/instances", {**body, "config": {"boot.autostart": "true"}})


def test_an_instance_starts_when_its_bridge_appears(net: Daemon) -> None:
    """Told in one line meanwhile (lxd#4054, lxd#2001); one that is stopped or unset stays down."""
    for name in ("c1", "stopped", "unset", "deleted"):
        make_autostarted(net, name)
    net.restart()
    for name in ("c1", "stopped", "unset", "deleted"):
        until(lambda name=name: told(net, "level=warning", f"instance '{name}'", "no bridge 'late0'"))
    assert len(warned(net, "Failed to autostart instance")) == 4
    already = net.wait(net.api("PUT", "/1.0/instances/stopped/state", {"action": "stop"}))
    assert "already stopped" in already["err"]
    net.do("PATCH", "/1.0/instances/unset", {"config": {"boot.autostart": "false"}})
    net.do("DELETE", "/1.0/instances/deleted")
    add_bridge(net, "late0")
    until(lambda: status(net, "c1") == "Running", 20)
    until(lambda: told(net, "instance 'c1' has been autostarted after a retry"))
    assert len(told(net, "level=warning", "instance 'c1'")) == 1
    until(lambda: not warned(net, "Failed to autostart instance"))
    assert (status(net, "stopped"), status(net, "unset")) == ("Stopped", "Stopped")
    # One that runs is not started again after it was stopped.
    net.do("PUT", "/1.0/instances/c1/state", {"action": "stop", "force": True})
    remove(net, "late0")
    add_bridge(net, "late0")
    assert status(net, "c1") == "Stopped"


def test_an_instance_starts_when_its_pool_appears(net: Daemon) -> None:
    source = net.home / "disk"
    source.mkdir()
    net.do("POST", "/1.0/storage-pools", {"name": "late", "driver": "dir", "config": {"source": str(source)}})
    root = {"type": "disk", "path": "/", "pool": "late"}
    body = {"name": "c1", "source": {"type": "image", "alias": "busybox"}, "devices": {"root": root}}
    net.do("POST", "/1.0/instances", {**body, "config": {"boot.autostart": "true"}})
    net.stop()
    gone = net.home / "gone"
    box_of(net).run("umount", str(net.dir / "storage-pools/late"), check=False)
    shutil.move(source, gone)
    net.start()
    until(lambda: told(net, "level=warning", "autostart of instance 'c1' failed"))
    (message,) = warned(net, "Storage pool unavailable")
    assert "storage pool 'late' cannot be used" in message
    assert warned(net, "Failed to autostart instance")
    shutil.move(gone, source)
    until(lambda: status(net, "c1") == "Running", 20)
    until(lambda: not warned(net, "Storage pool unavailable"))
    assert not warned(net, "Failed to autostart instance")
    net.delete_instances()
    net.do("DELETE", "/1.0/storage-pools/late")


OCCUPY = """
import socket, sys
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("10.77.0.1", 53))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def port_53_in_use(daemon: Daemon) -> Iterator[None]:
    other = subprocess.Popen(
        [*box_of(daemon).prefix, sys.executable, "-c", OCCUPY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        other.communicate()


def kill_and_wait(pid: int) -> None:
    """Kill a process, which may be no child of ours, and wait until its sockets are closed."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], 10)[0]
    finally:
        os.close(pidfd)


def test_network_is_created_when_port_53_is_free(net: Daemon) -> None:
    """And so does an instance on it; meanwhile warnings say what is missing."""
    create(net, "br", **ADDRESSES)
    nic = {"type": "nic", "name": "eth0", "network": "br"}
    body = {"name": "c1", "source": {"type": "image", "alias": "busybox"}, "devices": {"eth0": nic}}
    net.do("POST", "/1.0/instances", {**body, "config": {"boot.autostart": "true"}})
    net.stop()
    kill_and_wait(int((net.dir / "networks/br/dnsmasq.pid").read_text()))
    with port_53_in_use(net):
        net.start()
        assert net.get("/1.0/networks/br")["status"] == "Unavailable"
        until(lambda: warned(net, "Failed to autostart instance"))
        (message,) = warned(net, "Network unavailable")
        assert "Address already in use" in message
    until(lambda: status(net, "c1") == "Running", 20)
    assert net.get("/1.0/networks/br")["status"] == "Created"
    until(lambda: not warned(net, "Network unavailable") and not warned(net, "Failed to autostart instance"))


def test_an_instance_starts_when_a_path_of_a_disk_appears(net: Daemon) -> None:
    source = net.home / "late-disk"
    source.mkdir()
    disk = {"type": "disk", "source": str(source), "path": "/mnt"}
    body = {"name": "c1", "source": {"type": "image", "alias": "busybox"}, "devices": {"late": disk}}
    net.do("POST", "/1.0/instances", {**body, "config": {"boot.autostart": "true"}})
    net.stop()
    source.rmdir()
    net.start()
    until(lambda: warned(net, "Failed to autostart instance"))
    (message,) = warned(net, "Failed to autostart instance")
    assert str(source) in message
    source.mkdir()
    until(lambda: status(net, "c1") == "Running", 20)
    until(lambda: not warned(net, "Failed to autostart instance"))
