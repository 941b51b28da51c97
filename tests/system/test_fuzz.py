"""Thousands of requests that nobody would send: no fault, no leak, no growth, and all works afterwards.

Variables of the environment:

- `UTSUWA_FUZZ_REQUESTS`: how many requests, 4000 or, in long runs, 20,000 unless it says otherwise;
- `UTSUWA_FUZZ_SEED`: the seed of a run that failed, which is printed;
- `UTSUWA_FUZZ_ROUND`: the number of one round of that run, to be repeated alone;
- `UTSUWA_FUZZ_CLIENTS`: how many clients at once; with more than one no run is like another;
- `UTSUWA_FUZZ_TABLE`: a file for the table, which is printed as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.fuzz_requests import control_messages
from tests.support.fuzz_world import Fuzzer, memory, upgrade
from tests.support.images import Image
from tests.support.long import amount

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(3600),
]

REQUESTS = int(os.environ.get("UTSUWA_FUZZ_REQUESTS", amount(4000, long=20000)))
SEED = os.environ.get("UTSUWA_FUZZ_SEED") or secrets.token_hex(4)
ONLY = os.environ.get("UTSUWA_FUZZ_ROUND")
CLIENTS = int(os.environ.get("UTSUWA_FUZZ_CLIENTS", "1"))
TABLE = os.environ.get("UTSUWA_FUZZ_TABLE")
ROUND = amount(2000, long=4000)
"""Requests, until all is deleted and made anew."""
GROWTH = 1.2
"""How much memory the daemon may need in the end, of what it needed after the first round."""
SHOWN = 20
ANSWER_SECONDS = 30
PATIENCE = 0.05
"""Seconds for an answer to what may be no whole request, to which none comes."""


@pytest.fixture(scope="module")
def module_daemon() -> Iterator[Daemon]:
    """In a network namespace of its own, for it makes networks."""
    with boxed_daemon() as daemon:
        yield daemon


def certificate(folder: Path, name: str) -> str:
    """One for a client in base64, as clients send it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        + ["-days", "10", "-subj", f"/CN={name}", "-keyout", folder / "key", "-out", folder / name],
        check=True,
        capture_output=True,
    )
    return "".join(line for line in (folder / name).read_text().splitlines() if "-----" not in line)


def test_requests(module_daemon: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    say(f"UTSUWA_FUZZ_SEED={SEED} UTSUWA_FUZZ_REQUESTS={REQUESTS}")
    assert busybox_image.unified is not None
    certificates = (certificate(tmp_path, "trusted"), certificate(tmp_path, "new"))
    fuzzer = Fuzzer(module_daemon, busybox_image.unified, certificates, CLIENTS)
    rounds = [int(ONLY)] if ONLY else range(max(REQUESTS // ROUND, 1))
    sizes = []
    try:
        for number in rounds:
            fuzzer.attack(min(ROUND, REQUESTS), f"{SEED}:{number}")
            fuzzer.settle()
            sizes.append(memory(module_daemon.pid))
            say(f"round {number}: {sizes[-1] / 2**20:.1f} MiB, failures so far: {len(fuzzer.failures)}")
            module_daemon.make_defaults()
            fuzzer.furnish()
    finally:
        say(fuzzer.table())
        if TABLE:
            Path(TABLE).write_text(f"Seed {SEED}\n\n{fuzzer.table()}")
    assert not fuzzer.failures, "\n".join([f"{len(fuzzer.failures)} failures:", *fuzzer.failures[:SHOWN]])
    assert sizes[-1] <= GROWTH * sizes[0], f"the daemon has grown: {[size >> 20 for size in sizes]} MiB"
    fuzzer.works()


def say(text: str) -> None:
    """For whoever reads the output of a test that failed."""
    print(text)  # noqa: T201


quick = settings(
    max_examples=amount(100, long=300),
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


# ---- bytes that are hardly HTTP

LINES = (
    b"GET /1.0 HTTP/1.1", b"POST /1.0/profiles HTTP/1.1", b"PUT /1.0 HTTP/1.0", b"GET * HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1", b"GET http://[::1/1.0 HTTP/1.1", b"GET //a@b:c/ HTTP/1.1", b"get /1.0 HTTP/1.1",
    b"PRI * HTTP/2.0", b"OPTIONS * HTTP/1.1", b"GET /1.0", b"GET", b"", b" ", b"\0", b"GET /1.0 HTTP/9.9",
    b"GET /1.0?\xff\xfe HTTP/1.1", b"HEAD /1.0 HTTP/1.1",
)  # fmt: skip
HEADER_LINES = (
    b"Host: a", b"Host: a", b"Content-Length: 2", b"Content-Length: -1", b"Content-Length: 1e9",
    b"Content-Length: 99999999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: x", b"Expect: 100-continue", b"Expect: 200-ok", b"Connection: close",
    b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: x", b"Content-Encoding: gzip", b"Content-Type: application/json", b"If-Match: \"",
    b": a", b" folded", b"A" * 5000 + b": b", b"A: " + b"b" * 9000, b"A: \x01", b"A : b", b"Content-Length:",
)  # fmt: skip
BODIES = (
    b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"zz\r\n", b"-1\r\n", b"2\r\n{}", b"ffffffffffffffff\r\n",
    b"\x1f\x8b\x08", b"{}GET /1.0 HTTP/1.1\r\n\r\n",
)  # fmt: skip


def test_bytes_that_are_hardly_http(module_daemon: Daemon) -> None:
    seen: set[bytes] = set()

    @hypothesis_seed(SEED)
    @quick
    @example(b"GET /1.0 HTTP/1.1", [], b"", b"\r\n")
    @given(
        st.sampled_from(LINES[:4]) | st.sampled_from(LINES) | st.binary(max_size=40),
        st.lists(st.sampled_from(HEADER_LINES) | st.binary(max_size=40), max_size=2),
        st.sampled_from(BODIES) | st.binary(max_size=40),
        st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
    )
    def send(line: bytes, headers: list[bytes], body: bytes, end: bytes) -> None:
        sent = end.join([line, b"Host: a", *headers, b"", body])
        answer = exchange(module_daemon, sent, PATIENCE)
        if answer:
            status = answer.split()[1]
            seen.add(status)
            assert status < b"500" or status == b"501", (sent, answer)

    say(f"UTSUWA_FUZZ_SEED={SEED}")
    send()
    assert {b"200", b"400"} <= seen
    assert module_daemon.get("/1.0")["auth"] == "trusted"


def exchange(daemon: Daemon, sent: bytes, patience: float = ANSWER_SECONDS) -> bytes:
    """The first answer to some bytes; empty where none has come after `patience` seconds."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(patience)
        client.connect(str(daemon.socket))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            client.sendall(sent)
            while not whole(answer) and (chunk := client.recv(65536)):
                answer += chunk
    return answer


def whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and len(body) >= int(length[1] if length else 0)


# ---- websockets


def test_websockets_with_wrong_secrets(module_daemon: Daemon, busybox: str) -> None:
    """They are refused, and the right ones still work; what is no frame of a websocket ends it alone."""
    daemon = module_daemon
    daemon.lxc("launch", busybox, "ws")
    command = {"command": ["cat"], "wait-for-websocket": True}
    started = daemon.api("POST", "/1.0/instances/ws/exec", command)
    secret_of = started.metadata["metadata"]["fds"]
    url = f"{started.operation}/websocket"

    @hypothesis_seed(SEED)
    @quick
    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=70))
    def guess(secret: str) -> None:
        answer = exchange(daemon, upgrade(f"{url}?secret={secret}"))
        assert answer.split()[1] in (b"400", b"403", b"404"), (secret, answer)

    say(f"UTSUWA_FUZZ_SEED={SEED}")
    guess()
    for wrong in (secret_of["0"][:-1], f"{secret_of['0']}0", f"{secret_of['0']}%00"):
        assert exchange(daemon, upgrade(f"{url}?secret={wrong}")).startswith(b"HTTP/1.1 403 ")

    @hypothesis_seed(SEED)
    @quick
    @given(st.binary(max_size=200) | st.sampled_from([b"\x89\xfe\xff\xff", b"\x81\xff" + b"\xff" * 8]))
    def listen(frames: bytes) -> None:
        assert exchange(daemon, upgrade("/1.0/events") + frames).startswith(b"HTTP/1.1 101 ")

    listen()
    for secret in secret_of.values():
        assert exchange(daemon, upgrade(f"{url}?secret={secret}") + b"\x81\xff\xff").startswith(
            b"HTTP/1.1 101 "
        )
    assert daemon.wait(started)["status"] in ("Success", "Failure")
    assert daemon.lxc("exec", "ws", "--", "echo", "well").stdout == "well\n"
    daemon.delete_instances()


def test_random_control_messages(module_daemon: Daemon, busybox: str) -> None:
    """It may end the command, and nothing else."""
    daemon = module_daemon
    daemon.lxc("launch", busybox, "told")

    @hypothesis_seed(SEED)
    @settings(quick, max_examples=40)
    @given(st.lists(st.tuples(st.sampled_from([1, 2]), control_messages()), max_size=5), st.booleans())
    def tell(messages: list[tuple[int, bytes]], terminal: bool) -> None:
        command = {"command": ["cat"], "wait-for-websocket": True, "interactive": terminal}
        started = daemon.api("POST", "/1.0/instances/told/exec", command)
        secret_of = started.metadata["metadata"]["fds"]
        with contextlib.ExitStack() as stack:
            sockets = {}
            for name in sorted(secret_of, reverse=True):  # the control websocket before the streams
                sockets[name] = stack.enter_context(socket.socket(socket.AF_UNIX))
                sockets[name].settimeout(ANSWER_SECONDS)
                sockets[name].connect(str(daemon.socket))
                sockets[name].sendall(upgrade(f"{started.operation}/websocket?secret={secret_of[name]}"))
                assert sockets[name].recv(4096).startswith(b"HTTP/1.1 101 ")
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for kind, message in messages:
                    sockets["control"].sendall(frame(kind, message))
                sockets["0"].sendall(frame(2, b"\x04"))  # for a terminal the end of what is typed
                sockets["0"].sendall(frame(1, b""))  # and this for a pipe
            ended = daemon.wait(started)
        assert ended["status"] in ("Success", "Failure"), ended
        assert "nternal" not in ended["err"], ended

    say(f"UTSUWA_FUZZ_SEED={SEED}")
    tell()
    assert daemon.lxc("exec", "told", "--", "echo", "well").stdout == "well\n"
    daemon.delete_instances()


def frame(kind: int, content: bytes) -> bytes:
    """One whole message of a client's; its mask changes nothing."""
    return struct.pack(">BBQL", 0x80 | kind, 0x80 | 127, len(content), 0) + content
