"""TCP connections of containers whose running state is saved."""

from __future__ import annotations

import sys

import pytest

from tests.support import criu
from tests.support.daemon import Daemon
from tests.support.networks import box_of, create

pytestmark = pytest.mark.root

SERVE = """
ip addr add 10.77.0.5/24 dev eth0; ip link set eth0 up
(while :; do nc -l -p 5000 -e sh -c 'while read x; do echo "got $x"; done'; done) </dev/null >/dev/null 2>&1 &
"""
CLIENT = """
import contextlib, socket, struct, subprocess, sys, threading, time

bridge, meanwhile = sys.argv[1], sys.argv[2:] == ["meanwhile"]
started = threading.Event()

def connect():
    for _ in range(100):
        try:
            return socket.create_connection(("10.77.0.5", 5000), timeout=20)
        except ConnectionRefusedError:
            time.sleep(0.05)

def ask(text):
    connection.sendall(text + b"\\n")
    return received()

def received():
    return connection.recv(100).decode().strip()

def last_sent():
    last = b""
    with contextlib.suppress(TimeoutError):
        while packet := wire.recvfrom(2000):
            if packet[1][2] == socket.PACKET_OUTGOING and packet[0][23] == socket.IPPROTO_TCP:
                last = packet[0]
    return last

def with_checksum(packet):
    # The kernel leaves it to the interface to compute it, which a bridge does not.
    segment = packet[34:50] + b"\\0\\0" + packet[52:]
    summed = packet[26:34] + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:50] + struct.pack("!H", total ^ 0xFFFF) + packet[52:]

def repeat(packet):
    while not started.wait(0.0005):
        with contextlib.suppress(OSError):
            wire.send(packet)

connection = connect()
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind((bridge, 0))
wire.settimeout(1)
print(ask(b"first"))
acknowledgement = with_checksum(last_sent())
subprocess.run(["lxc", "stop", "--stateful", "c1"], check=True)
if meanwhile:
    connection.sendall(b"while stopped\\n")
    threading.Thread(target=repeat, args=(acknowledgement,)).start()
subprocess.run(["lxc", "start", "c1"], check=True)
started.set()
if meanwhile:
    print(received())
print(ask(b"again"))
subprocess.run(["lxc", "snapshot", "--stateful", "c1", "s"], check=True)
print(ask(b"runs on"))
subprocess.run(["lxc", "restore", "--stateful", "c1", "s"], check=True)
try:
    print(ask(b"gone") or "closed")  # its end may be read before the reset that answers what was sent
except OSError:
    print("closed")
connection = connect()
print(ask(b"new"))
"""


@pytest.fixture(scope="module")
def d(module_net: Daemon) -> Daemon:
    criu.provide(module_net, criu.installed())
    return module_net


@pytest.mark.parametrize("meanwhile", [False, True])
def test_connections_go_on_after_a_stop_and_end_with_a_restore(d: Daemon, meanwhile: bool) -> None:
    """Also with what was sent `meanwhile`, and if packets arrive at each moment of the start."""
    name = f"br{int(meanwhile)}"
    create(d, name, ipv4_address="10.77.0.1/24", ipv6_address="none")
    d.lxc("launch", "busybox", "c1", "-n", name)
    d.lxc("exec", "c1", "--", "sh", "-c", SERVE)
    environment = [f"{name}={value}" for name, value in d.lxc_environment().items()]
    words = [name, "meanwhile"] if meanwhile else [name]
    output = box_of(d).run("env", "-i", *environment, sys.executable, "-c", CLIENT, *words)
    said = [line for line in output.splitlines() if line.startswith(("got", "closed"))]
    stopped = ["got while stopped"] if meanwhile else []
    assert said == ["got first", *stopped, "got again", "got runs on", "closed", "got new"]
    d.lxc("delete", "--force", "c1")
    d.lxc("network", "delete", name)
