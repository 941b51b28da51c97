"""Helpers for tests of networks: networks, containers on them, and their leases."""

from __future__ import annotations

from typing import Any

from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import NetBox

UDHCPC = """#!/bin/sh
case "$1" in
bound|renew)
    ip addr flush dev $interface scope global; ip addr add $ip/$mask dev $interface
    ip route add default via $router
    echo "search $domain" >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done ;;
esac
"""


def prepared(daemon: Daemon, image: Image) -> Daemon:
    """Import the image `busybox`, and mask the nic of the default profile."""
    daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"eth0": {"type": "none"}}})
    daemon.import_image(image.metadata, image.rootfs, alias="busybox")
    return daemon


def box_of(daemon: Daemon) -> NetBox:
    assert daemon.box is not None
    return daemon.box


def dotted(key: str) -> str:
    """`ipv4_dhcp_ranges` as the key `ipv4.dhcp.ranges`."""
    return key.replace("_", ".").replace("external.interfaces", "external_interfaces")


def create(daemon: Daemon, name: str, **config: str) -> dict[str, Any]:
    keys = {dotted(key): value for key, value in config.items()}
    daemon.do("POST", "/1.0/networks", {"name": name, "config": keys})
    shown: dict[str, Any] = daemon.get(f"/1.0/networks/{name}")
    return shown


def patch(daemon: Daemon, name: str, **config: str) -> None:
    keys = {dotted(key): value for key, value in config.items()}
    daemon.do("PATCH", f"/1.0/networks/{name}", {"config": keys})


def launch(daemon: Daemon, name: str, network: str, *, dhcp: bool = True, **device: str) -> str:
    """Start a container on the network and give its IPv4 address, where DHCP is asked for one."""
    nic = {"type": "nic", "name": "eth0", "network": network}
    nic |= {dotted(key): value for key, value in device.items()}
    source = {"type": "image", "alias": "busybox"}
    daemon.do("POST", "/1.0/instances", {"name": name, "source": source, "devices": {"eth0": nic}})
    daemon.do("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
    return lease(daemon, name) if dhcp else ""


def lease(daemon: Daemon, name: str, interface: str = "eth0") -> str:
    daemon.lxc("exec", name, "--", "sh", "-c", "cat >/tmp/udhcpc; chmod +x /tmp/udhcpc", input=UDHCPC)
    command = ("udhcpc", "-i", interface, "-nqf", "-t", "5", "-T", "1", "-s", "/tmp/udhcpc")
    daemon.lxc("exec", name, "--", *command)
    addresses = daemon.get(f"/1.0/instances/{name}/state")["network"][interface]["addresses"]
    (found,) = [a["address"] for a in addresses if a["family"] == "inet"]
    return str(found)


def dnsmasq_pid(daemon: Daemon, network: str) -> int:
    return int((daemon.dir / "networks" / network / "dnsmasq.pid").read_text())
