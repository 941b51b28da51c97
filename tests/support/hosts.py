"""Two daemons as on two hosts: network namespaces of their own, joined by a bridge in a third one."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import client, criu
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import NetBox
from tests.support.servers import PASSWORD
from utsuwa.operations.kinds import INSTANCE_SETTLE

LAN = "lan0"
"""The bridge on each host of which containers are ports, and the one in between."""
GUEST = "10.99.0.5"
_COUNT = "i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done"
_SERVE = f"""
ip addr add {GUEST}/24 dev eth0; ip link set eth0 up
echo '{_COUNT}' >/count; echo 'while read x; do echo "got $x"; done' >/answer
(while :; do nc -l -p 5000 -e sh /count; done) </dev/null >/dev/null 2>&1 &
(while :; do nc -l -p 5001 -e sh /answer; done) </dev/null >/dev/null 2>&1 &
"""
_PEER = """
import socket, sys, time

def connect(port):
    for _ in range(200):
        try:
            return socket.create_connection((sys.argv[1], port), timeout=60)
        except OSError:
            time.sleep(0.05)
    sys.exit("no connection")

counting, answering = connect(5000), connect(5001)
lines = counting.makefile()
longest, expected, last = 0.0, 0, time.monotonic()
sys.stdin.fileno()
import threading
wanted = []

def listen():
    for line in sys.stdin:
        wanted.append(line.strip())

threading.Thread(target=listen, daemon=True).start()
while True:
    number = int(lines.readline())
    now = time.monotonic()
    if number != expected:
        sys.exit(f"{number} came after {expected - 1}")
    expected, longest, last = number + 1, max(longest, now - last), now
    if wanted:
        answering.sendall(wanted.pop(0).encode() + b"\\n")
        print(f"{longest:.3f}", expected, answering.recv(100).decode().strip(), flush=True)
        longest, last = 0.0, time.monotonic()
"""


@dataclass
class Peer:
    """A process on the network with two connections to the guest: one that counts, and one that answers."""

    process: subprocess.Popen[str]

    def report(self, word: str) -> float:
        """Check both connections; return the longest time without a count, in seconds, since the last one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline().split()
        assert line[2:] == ["got", word], f"a connection was lost: {line}"
        return float(line[0])


@dataclass
class Hosts:
    """`near` is `local:` and `near:` of the client, which runs on its host, `far` is `far:`."""

    near: Daemon
    far: Daemon
    switch: NetBox

    def lxc(self, *words: str, check: bool = True) -> str:
        """Run Debian's client; return stdout, or without `check` stderr."""
        return self._run(["lxc", *words], self.near.lxc_environment(), check=check)

    def utsuwa(self, *words: str) -> str:
        """Run the own client, with the remotes of the other one; return stdout."""
        env = client.environment(self.near) | {"UTSUWA_CONF": str(self.near.conf)}
        return self._run(client.command(*words), env, check=True)

    def _run(self, argv: Sequence[str], env: Mapping[str, str], *, check: bool) -> str:
        assert self.near.box is not None
        ended = subprocess.run(
            [*self.near.box.prefix, *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        if not check:
            return ended.stderr
        assert ended.returncode == 0, (
            f"{' '.join(argv)}: {ended.stdout}{ended.stderr}\n--- near\n{self.near.log_tail()}\n"
            f"--- far\n{self.far.log_tail()}"
        )
        return ended.stdout

    def state(self, daemon: Daemon, name: str) -> str:
        """Return the status of an instance; empty if it does not exist."""
        reply = daemon.api("GET", f"/1.0/instances/{name}")
        return str(reply.metadata["status"]) if reply.status == 200 else ""

    def where(self, name: str) -> list[str]:
        """Return the hosts on which an instance runs."""
        both = {"near": self.near, "far": self.far}
        return [host for host, daemon in both.items() if self.state(daemon, name) == "Running"]

    def serve(self, name: str) -> None:
        """Have an instance, which runs on `near`, serve what `peer` connects to."""
        self.near.lxc("exec", name, "--", "sh", "-c", _SERVE)

    @contextmanager
    def peer(self) -> Iterator[Peer]:
        self.switch.run("ip", "neigh", "flush", "dev", LAN)  # an earlier instance had another MAC address
        process = subprocess.Popen(
            [*self.switch.prefix, "python3", "-c", _PEER, GUEST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            found = Peer(process)
            found.report("first")
            yield found
        finally:
            process.kill()
            process.communicate()

    def settled(self) -> None:
        """Wait until neither daemon has operations or undecided moves any more."""
        end = time.monotonic() + 60
        while any(_busy(daemon) for daemon in (self.near, self.far)):
            assert time.monotonic() < end, (
                f"it is not settled:\n{self.near.log_tail()}\n{self.far.log_tail()}"
            )
            time.sleep(0.05)

    def clean(self) -> None:
        self.near.delete_instances()
        self.far.delete_instances()


def _busy(daemon: Daemon) -> Any:
    records = (daemon.dir / "migration").glob("*.undecided")
    # A target tells for a while that it does not run there; the source need not have asked for that.
    undecided = [path for path in records if _runs(path) is not False]
    running = daemon.get("/1.0/operations?recursion=1").get("running", [])
    return undecided or [one for one in running if one["description"] != INSTANCE_SETTLE.text]


def _runs(record: Path) -> bool | None:
    """Return what the record of a move says; one that is removed meanwhile is settled."""
    try:
        return json.loads(record.read_bytes())["runs"]  # type: ignore[no-any-return]
    except FileNotFoundError:
        return False


@contextmanager
def hosts(
    image: Image, near_env: Mapping[str, str] | None = None, far_env: Mapping[str, str] | None = None
) -> Iterator[Hosts]:
    """Start both, with CRIU and the image `busybox`; fail if one leaves anything behind."""
    with ExitStack() as stack:
        switch = _box(stack)
        switch.run("ip", "link", "add", LAN, "address", "02:00:00:00:00:09", "type", "bridge")
        switch.run("ip", "addr", "add", "10.99.0.9/24", "dev", LAN)
        switch.run("ip", "link", "set", LAN, "up")
        found = []
        for number, env in ((1, near_env), (2, far_env)):
            box = _box(stack)
            _join(switch, box, number)
            daemon = Daemon(env, box=box)
            stack.callback(_close, daemon)
            daemon.start()
            daemon.make_defaults()
            devices = {"eth0": {"type": "nic", "nictype": "bridged", "parent": LAN, "name": "eth0"}}
            daemon.do("PATCH", "/1.0/profiles/default", {"devices": devices})
            criu.provide(daemon, criu.installed())
            config = {"core.https_address": f"10.99.0.{number}:8443", "core.trust_password": PASSWORD}
            daemon.do("PATCH", "/1.0", {"config": config})
            daemon.import_image(image.metadata, image.rootfs, alias="busybox")
            found.append(daemon)
        both = Hosts(found[0], found[1], switch)
        for number, name in ((1, "near"), (2, "far")):
            url = f"https://10.99.0.{number}:8443"
            both.lxc("remote", "add", name, url, "--accept-certificate", "--password", PASSWORD)
        yield both


def _box(stack: ExitStack) -> NetBox:
    box = NetBox()
    stack.callback(box.close)
    return box


def _join(switch: NetBox, box: NetBox, number: int) -> None:
    port = f"host{number}"
    switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", "uplink", "netns", str(box.pid))
    switch.run("ip", "link", "set", port, "master", LAN, "up")
    mac = f"02:00:00:00:00:0{number}"  # otherwise, that of a bridge changes with its ports
    box.run("ip", "link", "add", LAN, "address", mac, "type", "bridge")
    box.run("ip", "addr", "add", f"10.99.0.{number}/24", "dev", LAN)
    box.run("ip", "link", "set", "uplink", "master", LAN, "up")
    box.run("ip", "link", "set", LAN, "up")


def _close(daemon: Daemon) -> None:
    problems = daemon.close()
    assert not problems, "\n".join(["the daemon left behind or did wrong:", *problems])
