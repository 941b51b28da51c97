"""Saved guests: what goes on in a whole system does so after a stop, a restore and a move."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.stock.checks.asking import delete, inside, must, run, utsuwa, wait_for
from tests.stock.checks.check import CHECKOUT, STATE, Checks, expect

checks = Checks()

NETWORK, PEER, SAVED, FAR = "saved0", "peer", "saved", Path("/var/lib/stock-far")
"""What `_saved_guest` uses: a network, a container on it that echoes, a guest, and another daemon's state."""
NIC = ("nic", "nictype=bridged", f"parent={NETWORK}", "name=eth0")
POOL = """
storage_pools: [{name: default, driver: overlay}]
profiles: [{name: default, devices: {root: {type: disk, pool: default, path: /}}}]
"""
WAYS: dict[str, Callable[[], str]] = {}
"""Ways of going on with a saved guest, in their order. Each returns the remote where it runs then."""


def _way(function: Callable[[], str]) -> Callable[[], str]:
    WAYS[function.__name__.strip("_")] = function
    return function


@_way
def _stop() -> str:
    utsuwa("stop", "--stateful", SAVED)
    utsuwa("start", SAVED)
    return "local:"


@_way
def _restore() -> str:
    utsuwa("restore", "--stateful", SAVED, "s")
    return "local:"


@_way
def _move() -> str:
    utsuwa("move", SAVED, f"far:{SAVED}")
    return "far:"


def _with_address(name: str, address: str) -> None:
    utsuwa("config", "device", "add", name, "eth0", *NIC)
    utsuwa("start", name)
    script = f"ip address add {address}/24 dev eth0; ip link set eth0 up"
    expect(inside(name, script).code == 0, f"{name} has no address")


def _two_hosts(peer: str) -> None:
    """Start another daemon, as on another host, and a container that echoes what it gets from the guests."""
    config = ("ipv4.address=10.77.0.1/24", "ipv4.dhcp.ranges=10.77.0.100-10.77.0.150", "ipv6.address=none")
    utsuwa("network", "create", NETWORK, *config)
    utsuwa("init", "busybox", PEER)
    _with_address(PEER, peer)
    inside(PEER, "nc -ll -p 5000 -e cat </dev/null >/dev/null 2>&1 &")
    FAR.mkdir(mode=0o711)
    (FAR / "criu").symlink_to("/var/lib/utsuwa/criu")
    must(
        "systemd-run", "--unit=stock-far", f"--setenv=UTSUWA_DIR={FAR}", "--property=Delegate=yes", "utsuwad"
    )
    far = ("env", f"UTSUWA_DIR={FAR}", "UTSUWA_CONF=/root/far-client")
    must(*far, "utsuwad", "waitready")
    must(*far, "utsuwad", "init", "--preseed", stdin=POOL.encode())
    must(*far, "utsuwa", "config", "set", "core.https_address", "127.0.0.1:8444")
    utsuwa("config", "set", "core.https_address", "127.0.0.1:8443")
    token = must(*far, "utsuwa", "config", "trust", "add", "--name", "near", "--quiet").split()[-1]
    utsuwa("remote", "add", "far", token)


def _end_two_hosts() -> None:
    delete(PEER)
    run("utsuwa", "config", "unset", "core.https_address")
    must("env", f"UTSUWA_DIR={FAR}", "utsuwad", "shutdown")
    must("utsuwa", "remote", "remove", "far")
    must("utsuwa", "network", "delete", NETWORK)
    shutil.rmtree(FAR)


def _saved_guest(*, systemd: bool) -> str:
    """Begin what goes on in a guest, and see after each way that it still does, by the same processes."""
    sys.path.append(str(CHECKOUT))
    from tests.support import guest_features

    features = guest_features.ANYWHERE | (guest_features.SYSTEMD if systemd else {})
    shell = "bash" if systemd else "sh"

    def in_guest(remote: str, script: str) -> str:
        return utsuwa("exec", f"{remote}{SAVED}", "--", shell, stdin=script.encode())

    def seen(remote: str, way: str) -> dict[str, list[str]]:
        lines = in_guest(remote, guest_features.check(features, way, long=False)).splitlines()
        return {name: said for name, *said in (line.split("|", 2) for line in lines)}

    _two_hosts(guest_features.PEER)
    remote = "local:"
    try:
        if systemd:
            image = utsuwa("config", "get", "first", "volatile.base_image").strip()
            utsuwa("init", image, SAVED, "-c", "migration.stateful=true")
            utsuwa("config", "device", "add", SAVED, "eth0", *NIC)
            utsuwa("start", SAVED)
            busybox = str(STATE / "busybox")
            utsuwa("file", "pull", f"{PEER}/bin/busybox", busybox)
            utsuwa("file", "push", busybox, f"{SAVED}/root/busybox")
            state = "systemctl is-system-running"
            wait_for("the guest's boot", lambda: inside(SAVED, state).out == "running\n")
        else:
            utsuwa("init", "busybox", SAVED)
            _with_address(SAVED, "10.77.0.5")
        in_guest(remote, guest_features.begin(features))
        begun = seen(remote, "begin")
        expect(all(said[0] == "0" for said in begun.values()), begun)
        utsuwa("snapshot", "--stateful", SAVED, "s")
        for way, go_on in WAYS.items():
            remote = go_on()
            now = seen(remote, way)
            differ = {name: (said, now.get(name)) for name, said in begun.items() if said != now.get(name)}
            expect(not differ, f"after {way}: {differ}")
    finally:
        run("utsuwa", "delete", "--force", f"{remote}{SAVED}")
        _end_two_hosts()
    return f"{', '.join(WAYS)}: {', '.join(begun)}"


@checks("running state: what goes on in a busybox does so after a stop, a restore and a move", long=True)
def busybox_guest() -> str:
    return _saved_guest(systemd=False)


@checks("running state: what goes on in a Debian does so after a stop, a restore and a move", long=True)
def debian_guest() -> str:
    return _saved_guest(systemd=True)
