"""The row about the guest API, which a process in a running container asks."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.support.guest import inside

from bench.places import Place, running

if TYPE_CHECKING:
    from bench.rows import Bench

_REPEATS = 5
_REQUESTS = 50
_ASK = """
if child := os.fork():  # only children are in the other pid namespace, by which LXD finds the container
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
count = int(sys.argv[2])
begun = time.monotonic()
for _ in range(count):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        connection.sendall(b"GET /1.0/meta-data HTTP/1.1\\r\\nHost: lxd\\r\\nConnection: close\\r\\n\\r\\n")
        reply = b""
        while data := connection.recv(65536):
            reply += data
    assert b"instance-id: " in reply, reply
print((time.monotonic() - begun) / count)
"""


class GuestRows:
    """The part `guest`, on each daemon's best pool: it does not depend on it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self, number: int, _places: Sequence[Place]) -> None:
        bench = self._bench
        places, name = bench.best_places(), f"g{number}"
        with running(places, name):
            for _ in range(_REPEATS):
                bench.turns("guest-metadata", bench.on_running(name, _ask), places)


def _ask(place: Place, name: str) -> float:
    pid = int(place.daemon.wire.get(f"/1.0/instances/{name}/state")["pid"])
    path = f"/dev/{'incus' if place.daemon.kind.name == 'incus' else 'lxd'}/sock"
    ended = subprocess.run([*inside(pid, _ASK), path, str(_REQUESTS)], capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"the guest API does not answer: {ended.stderr[-500:]}")
    return float(ended.stdout)
