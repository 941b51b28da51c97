"""Commands inside containers through the API: streams, control, recorded output, and clients that leave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def c1(module_daemon: Daemon, busybox: str) -> Iterator[str]:
    """A container that all tests of this module run their commands in."""
    module_daemon.lxc("launch", busybox, "c1", "-c", "environment.COLOUR=green")
    yield "c1"
    module_daemon.delete_instances()


class Exec:
    """One command over websockets, as a client sees it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, secrets: dict[str, str]) -> None:
        self._session = session
        self.url = url
        self.secrets = secrets
        self.sockets: dict[str, ClientWebSocketResponse] = {}

    async def connect(self, *names: str, more: str = "") -> None:
        # As clients do it: a short command has ended before its control channel could come later.
        for name in names or sorted(self.secrets, reverse=True):
            url = f"http://u{self.url}/websocket?secret={self.secrets[name]}{more}"
            self.sockets[name] = await self._session.ws_connect(url, max_msg_size=0)

    async def resume(self, *, offset: int = 0, window: int = 0) -> dict[str, int]:
        """Connect a lasting terminal, also again; return the offsets that come first."""
        await self.connect("0", more=f"&offset={offset}&window={window}")
        return dict(json.loads((await self.sockets["0"].receive()).data))

    async def type(self, line: str) -> None:
        await self.sockets["0"].send_bytes(line.encode() + b"\n")

    async def read_until(self, end: bytes) -> bytes:
        """Output of the terminal that ends with `end`."""
        said = b""
        async with asyncio.timeout(30):
            while not said.endswith(end):
                said += (await self.sockets["0"].receive()).data
        return said

    async def read(self, name: str) -> bytes:
        """Everything of a stream; its end must be told by an empty text message."""
        said = bytearray()
        while (message := await self.sockets[name].receive()).type == WSMsgType.BINARY:
            said += message.data
        assert (message.type, message.data) == (WSMsgType.TEXT, ""), message
        return bytes(said)

    async def control(self, **message: object) -> None:
        await self.sockets["control"].send_str(json.dumps(message))

    def cut(self, name: str) -> None:
        """Drop the connection, as a client does that is killed."""
        connection = self.sockets[name]._conn
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()

    async def ended(self, seconds: float = 30) -> dict[str, Any]:
        async with asyncio.timeout(seconds), self._session.get(f"http://u{self.url}/wait") as reply:
            operation: dict[str, Any] = (await reply.json())["metadata"]
        return operation

    async def code(self) -> int:
        operation = await self.ended()
        assert operation["status"] == "Success", operation
        return int(operation["metadata"]["return"])


Run = Callable[..., Awaitable[Exec]]


@pytest.fixture
async def session(module_daemon: Daemon) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(module_daemon.socket), limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as found:
        yield found


@pytest.fixture
def start(session: aiohttp.ClientSession, c1: str) -> Run:
    """Start a command that waits for its websockets."""

    async def start(*argv: str, **fields: object) -> Exec:
        body = {"command": argv, "wait-for-websocket": True, **fields}
        async with session.post(f"http://u/1.0/instances/{c1}/exec", json=body) as reply:
            answer = await reply.json()
        assert answer["status_code"] == 100, answer
        return Exec(session, answer["operation"], answer["metadata"]["metadata"]["fds"])

    return start


@pytest.fixture
def run(start: Run) -> Run:
    """The same, with all websockets connected."""

    async def run(*argv: str, **fields: object) -> Exec:
        found = await start(*argv, **fields)
        await found.connect()
        return found

    return run


def of_daemon(daemon: Daemon) -> list[int]:
    """The daemon's process and all below it."""
    found, wanted = [], [daemon.pid]
    while wanted:
        pid = wanted.pop()
        try:
            wanted += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            continue
        found.append(pid)
    return found


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def sleeping(seconds: str) -> list[str]:
    """The processes that are `sleep <seconds>`."""
    command = f"sleep\0{seconds}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == command:
                found.append(entry.name)
        except OSError:
            continue
    return found


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.02)


# ---- streams


async def test_three_streams_and_the_code(run: Run) -> None:
    command = await run("sh", "-c", "cat; echo err >&2; exit 9")
    await command.sockets["0"].send_bytes(b"hello ")
    await command.sockets["0"].send_bytes(b"there")
    await command.sockets["0"].send_str("")
    assert await command.read("1") == b"hello there"
    assert await command.read("2") == b"err\n"
    assert await command.code() == 9


async def test_closing_stdin_ends_it(run: Run) -> None:
    command = await run("wc", "-c")
    await command.sockets["0"].send_bytes(b"12345")
    await command.sockets["0"].close()
    assert await command.read("1") == b"5\n"
    assert await command.code() == 0


async def test_the_control_channel_is_not_waited_for(start: Run) -> None:
    command = await start("echo", "hi")
    await command.connect("0", "1", "2")
    assert await command.read("1") == b"hi\n"
    assert await command.code() == 0


async def test_command_does_not_run_before_websockets_are_connected(start: Run) -> None:
    command = await start("sleep", "72001")
    await command.connect("0", "1", "control")
    await asyncio.sleep(0.3)
    assert sleeping("72001") == []
    await command.connect("2")
    await until(lambda: sleeping("72001"))
    await command.control(command="signal", signal=int(signal.SIGTERM))
    assert await command.code() == 128 + signal.SIGTERM


async def test_100_mb_in_both_directions(run: Run) -> None:
    block = os.urandom(1_000_000)
    command = await run("cat")
    sent = hashlib.sha256()

    async def feed() -> None:
        for _ in range(100):
            sent.update(block)
            await command.sockets["0"].send_bytes(block)
        await command.sockets["0"].send_str("")

    feeding = asyncio.create_task(feed())
    received, size = hashlib.sha256(), 0
    while (message := await command.sockets["1"].receive()).type == WSMsgType.BINARY:
        received.update(message.data)
        size += len(message.data)
    await feeding
    assert (size, received.digest()) == (100_000_000, sent.digest())
    assert await command.code() == 0


async def test_a_slow_reader_holds_the_command_up(run: Run, module_daemon: Daemon) -> None:
    def resident() -> int:
        status = Path(f"/proc/{module_daemon.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    before = resident()
    command = await run("sh", "-c", "head -c 200000000 /dev/zero; echo done >&2")
    reader = asyncio.create_task(command.read("2"))
    await asyncio.sleep(1)
    assert not reader.done()
    assert resident() - before < 30_000
    assert len(await command.read("1")) == 200_000_000
    assert await reader == b"done\n"
    assert await command.code() == 0


async def test_output_of_background_processes_is_waited_for(run: Run) -> None:
    command = await run("sh", "-c", "(sleep 0.5; echo late) & echo early")
    assert await command.read("1") == b"early\nlate\n"
    assert await command.code() == 0


async def test_a_client_that_has_read_one_stream_to_its_end_may_close_it(run: Run) -> None:
    command = await run("sh", "-c", "exec >&-; sleep 0.5; echo still >&2; exit 3")
    assert await command.read("1") == b""
    await command.sockets["1"].close()
    assert await command.read("2") == b"still\n"
    assert await command.code() == 3


async def test_a_command_may_close_all_its_streams(run: Run) -> None:
    """The `lxc` client cuts its connections once all output has ended, and waits for the exit code."""
    command = await run("sh", "-c", "exec <&- >&- 2>&-; sleep 0.5; exit 5")
    assert await command.read("1") == await command.read("2") == b""
    for name in ("0", "1", "2"):
        command.cut(name)
    assert await command.code() == 5


# ---- terminals


async def test_a_terminal(run: Run) -> None:
    command = await run(
        "sh", "-c", "tty; stty size; read x; echo got $x; stty size", interactive=True, width=91, height=17
    )
    terminal = command.sockets["0"]
    said = b""
    while b"17 91" not in said:
        said += (await terminal.receive()).data
    await command.control(command="window-resize", args={"width": "66", "height": "22"})
    await command.control(command="window-resize", args={"width": "many", "height": "22"})
    await command.control(command="no-such-command")
    await terminal.send_bytes(b"typed\n")
    said += await command.read("0")
    assert await command.code() == 0
    lines = said.decode().split("\r\n")
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:] == ["17 91", "typed", "got typed", "22 66", ""]


async def test_the_usual_size_and_term(run: Run) -> None:
    command = await run("sh", "-c", "stty size; echo $TERM; ls -ln $(tty)", interactive=True)
    size, term, device = (await command.read("0")).decode().splitlines()
    assert (size, term) == ("25 80", "xterm")
    assert device.split()[2] == "0"  # the container's root owns it
    assert await command.code() == 0


@pytest.mark.alone
async def test_background_processes_do_not_keep_a_terminal_open(run: Run) -> None:
    command = await run("sh", "-c", "trap '' HUP; sleep 72002 & echo hi", interactive=True)
    began = time.monotonic()
    assert await command.read("0") == b"hi\r\n"
    assert await command.code() == 0
    assert time.monotonic() - began < 3
    for pid in sleeping("72002"):
        os.kill(int(pid), signal.SIGKILL)


def processor_time(pid: int) -> float:
    """Seconds that a process has worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_command_can_close_its_terminal(run: Run, module_daemon: Daemon) -> None:
    """It runs on, and its exit code arrives; the daemon does not spin meanwhile."""
    command = await run("sh", "-c", "exec </dev/null >/dev/null 2>&1; sleep 1; exit 6", interactive=True)
    before = processor_time(module_daemon.pid)
    assert await command.read("0") == b""
    assert processor_time(module_daemon.pid) - before < 0.5
    assert await command.code() == 6


@pytest.mark.parametrize("terminal", ["$(tty)", "/dev/tty"])
async def test_a_terminal_may_be_opened_again(run: Run, terminal: str) -> None:
    script = (
        f"T={terminal}; exec </dev/null >/dev/null 2>&1; sleep 0.3; "
        "exec <$T >$T 2>&1; echo ready; read x; echo got $x; exit 7"
    )
    command = await run("sh", "-c", script, interactive=True)
    said = b""
    while b"ready" not in said:
        said += (await command.sockets["0"].receive()).data
    await command.sockets["0"].send_bytes(b"typed\n")
    assert b"got typed\r\n" in await command.read("0")
    assert await command.code() == 7


async def test_disconnected_client_ends_a_command_without_terminal(run: Run) -> None:
    command = await run("sh", "-c", "exec </dev/null >/dev/null 2>&1; sleep 72008", interactive=True)
    await until(lambda: sleeping("72008"))
    command.cut("0")
    assert await command.code() == 128 + signal.SIGKILL
    await until(lambda: not sleeping("72008"))


async def test_ctrl_c(run: Run) -> None:
    command = await run("sleep", "72003", interactive=True)
    await until(lambda: sleeping("72003"))
    await command.sockets["0"].send_bytes(b"\x03")
    assert await command.code() == 128 + signal.SIGINT


async def test_large_terminal_output_is_complete(run: Run) -> None:
    command = await run(
        "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done", interactive=True
    )
    assert (await command.read("0")).decode().split() == [str(n) for n in range(20000)]
    assert await command.code() == 0


# ---- terminals that outlive their websockets


@pytest.fixture
def lasting(start: Run) -> Run:
    """Start a shell that echoes nothing and has no prompt, without connecting to it."""

    async def lasting(linger: int = 600) -> Exec:
        script = 'stty -echo; echo ready; while read -r line; do eval "$line"; done'
        return await start("sh", "-c", script, interactive=True, linger=linger)

    return lasting


async def test_a_lost_terminal_goes_on_and_is_taken_up_again(lasting: Run) -> None:
    shell = await lasting()
    assert await shell.resume() == {"offset": 0, "end": 0}
    said = await shell.read_until(b"ready\r\n")
    await shell.type("kept=7; read go; echo while-away-$kept; read go; echo back-$kept; exit 3")
    await shell.type("go")
    said += await shell.read_until(b"while-away-7\r\n")
    shell.cut("0")
    missing = len(b"while-away-7\r\n")
    assert await shell.resume(offset=len(said) - missing) == {"offset": len(said) - missing, "end": len(said)}
    assert await shell.read_until(b"\n") == b"while-away-7\r\n"
    await shell.connect("control")
    await shell.type("go")
    assert await shell.read("0") == b"back-7\r\n"
    assert await shell.code() == 3


async def test_the_latest_connection_has_the_terminal_and_gets_its_last_output(lasting: Run) -> None:
    shell = await lasting()
    await shell.resume()
    said = await shell.read_until(b"ready\r\n")
    first = shell.sockets["0"]
    assert await shell.resume() == {"offset": 0, "end": len(said)}
    assert (await first.receive()).data == 4001
    assert await shell.read_until(b"ready\r\n") == said
    await shell.type("i=0; while [ $i -lt 50000 ]; do echo $i; i=$((i+1)); done; echo all-is-said")
    await shell.read_until(b"all-is-said\r\n")
    offsets = await shell.resume()
    assert offsets["end"] - offsets["offset"] == 256 * 1024
    rest = await shell.read_until(b"all-is-said\r\n")
    assert len(rest) == 256 * 1024
    await shell.type("exit")
    assert await shell.code() == 0


async def test_output_while_nobody_is_connected_does_not_stop_the_command(lasting: Run) -> None:
    shell = await lasting()
    await shell.resume()
    await shell.read_until(b"ready\r\n")
    await shell.type("read go; yes | head -c 2000000; sleep 72009")
    await shell.type("")
    shell.cut("0")
    await until(lambda: sleeping("72009"), 30)
    await shell.resume()
    for pid in sleeping("72009"):
        os.kill(int(pid), signal.SIGTERM)
    await shell.type("exit 0")
    assert await shell.code() == 0


async def test_a_client_that_acknowledges_is_not_sent_more_than_it_wants(lasting: Run) -> None:
    shell = await lasting()
    await shell.connect("control")
    await shell.resume(window=1000)
    await shell.read_until(b"ready\r\n")
    await shell.type("yes | head -c 5000; echo; echo end")
    received = len(b"ready\r\n")
    while received < 1000:
        received += len((await shell.sockets["0"].receive()).data)
    assert received == 1000
    with pytest.raises(TimeoutError):
        await shell.sockets["0"].receive(timeout=0.3)
    await shell.control(command="acknowledge", args={"offset": "1000"})
    while received < 2000:
        received += len((await shell.sockets["0"].receive()).data)
    assert received == 2000
    await shell.control(command="acknowledge", args={"offset": "no number"})
    await shell.control(command="acknowledge", args={"offset": "2000"})
    await shell.type("exit 4")
    assert await shell.code() == 4


async def test_a_terminal_to_which_nobody_returns_is_killed(lasting: Run) -> None:
    shell = await lasting(linger=1)
    await shell.resume()
    await shell.read_until(b"ready\r\n")
    await shell.type("sleep 72010")
    await until(lambda: sleeping("72010"))
    shell.cut("0")
    assert await shell.code() == 128 + signal.SIGKILL
    await until(lambda: not sleeping("72010"))


async def test_a_lasting_terminal_can_be_cancelled(lasting: Run, session: aiohttp.ClientSession) -> None:
    shell = await lasting()
    await shell.resume()
    await shell.read_until(b"ready\r\n")
    await shell.type("sleep 72011")
    await until(lambda: sleeping("72011"))
    async with session.delete(f"http://u{shell.url}") as reply:
        assert reply.status == 200
    assert (await shell.ended())["status"] == "Cancelled"
    await until(lambda: not sleeping("72011"))
    assert (await shell.sockets["0"].receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)


# ---- clients that leave


@pytest.mark.parametrize("socket", ["0", "1", "2", "control"])
async def test_a_lost_connection_kills_the_command(run: Run, socket: str) -> None:
    command = await run("sh", "-c", "sleep 72004 & sleep 72004; true")
    await until(lambda: len(sleeping("72004")) == 2)
    command.cut(socket)
    assert await command.code() == 128 + signal.SIGKILL
    await until(lambda: not sleeping("72004"))


@pytest.mark.parametrize("how", ["cut", "close"])
async def test_a_terminal_that_is_hung_up(run: Run, how: str) -> None:
    command = await run("sh", "-c", "trap '' HUP; sleep 72005; true", interactive=True)
    await until(lambda: sleeping("72005"))
    if how == "cut":
        command.cut("0")
    else:
        await command.sockets["0"].close()
    assert await command.code() == 128 + signal.SIGKILL
    await until(lambda: not sleeping("72005"))


async def test_a_hundred_cut_off_in_mid_stream_leave_nothing(run: Run, module_daemon: Daemon) -> None:
    first = await run("true")
    await first.ended()
    for socket in first.sockets.values():
        await socket.close()
    await until(lambda: len(of_daemon(module_daemon)) == 4)  # daemon, helper, two idle workers
    before = {pid: descriptors(pid) for pid in of_daemon(module_daemon)[:2]}
    script = "sleep 72006 & cat /dev/zero & cat; sleep 72006"

    async def cut_off(number: int) -> None:
        command = await run("sh", "-c", script, interactive=number % 3 == 0)
        await command.sockets["0"].send_bytes(b"x" * 100_000)
        await asyncio.sleep(number % 5 / 100)
        for name in command.sockets:
            command.cut(name)
        operation = await command.ended(30)
        assert operation["metadata"]["return"] == 128 + signal.SIGKILL

    for start in range(0, 100, 10):
        await asyncio.gather(*(cut_off(number) for number in range(start, start + 10)))
    await until(lambda: not sleeping("72006") and len(of_daemon(module_daemon)) == 4)
    await until(lambda: all(descriptors(pid) <= before[pid] + 1 for pid in before))


async def test_a_killed_helper_does_not_end_commands(run: Run, module_daemon: Daemon) -> None:
    command = await run("cat")
    await command.sockets["0"].send_bytes(b"goes ")
    assert (await command.sockets["1"].receive()).data == b"goes "
    helper = of_daemon(module_daemon)[1]
    os.kill(helper, signal.SIGKILL)
    await command.sockets["0"].send_bytes(b"on")
    await command.sockets["0"].send_str("")
    assert await command.read("1") == b"on"
    assert await command.code() == 0
    again = await run("echo", "again")
    assert await again.read("1") == b"again\n"
    assert await again.code() == 0


# ---- without websockets


def ended(daemon: Daemon, **body: object) -> dict[str, Any]:
    return daemon.wait(daemon.api("POST", "/1.0/instances/c1/exec", body))


def test_command_without_websockets_or_recording(module_daemon: Daemon, c1: str) -> None:
    operation = ended(module_daemon, command=["sh", "-c", "echo lost; cat; exit 4"])
    assert (operation["class"], operation["description"]) == ("task", "Executing command")
    assert operation["metadata"] == {"return": 4}
    assert operation["resources"] == {
        "instances": ["/1.0/instances/c1"],
        "containers": ["/1.0/containers/c1"],
    }


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        (["no-such"], 127, "Command not found: 'no-such' is neither a path in the container nor in its PATH"),
        (
            ["/etc/passwd"],
            126,
            "Command not executable: '/etc/passwd' lacks the permission, or is not a program",
        ),
        (["sh", "-c", "exit 127"], 127, ""),
        (["true", *["x" * 100_000] * 30], 126, "Command 'true' cannot be executed: Argument list too long"),
    ],
)
def test_commands_that_cannot_be_executed(
    module_daemon: Daemon, c1: str, command: list[str], code: int, error: str
) -> None:
    operation = ended(module_daemon, command=command)
    assert (operation["metadata"]["return"], operation["err"]) == (code, error)
    assert operation["status"] == ("Failure" if error else "Success")


def test_environment_user_and_folder(module_daemon: Daemon, c1: str) -> None:
    script = ("--", "sh", "-c", "echo $COLOUR $A; pwd; id -u; id -g")
    said = module_daemon.lxc("exec", c1, "--env", "A=b c", *script).stdout
    assert said == "green b c\n/root\n0\n0\n"
    said = module_daemon.lxc("exec", c1, "--user", "5", "--group", "6", "--cwd", "/etc", *script).stdout
    assert said == "green\n/etc\n5\n6\n"


def test_recorded_output(module_daemon: Daemon, c1: str) -> None:
    command = ["sh", "-c", "echo out; tty; echo err >&2; exit 3"]
    operation = ended(module_daemon, **{"command": command, "record-output": True, "interactive": True})
    assert operation["metadata"]["return"] == 3
    urls = operation["metadata"]["output"]
    base = f"/1.0/instances/{c1}/logs/exec-output"
    assert urls == {
        "1": f"{base}/exec_{operation['id']}.stdout",
        "2": f"{base}/exec_{operation['id']}.stderr",
    }
    assert module_daemon.api("GET", urls["1"]).body == b"out\nnot a tty\n"
    assert module_daemon.api("GET", urls["2"]).body == b"err\n"
    assert sorted(module_daemon.get(base)) == sorted(urls.values())
    folder = module_daemon.dir / "logs" / c1 / "exec-output"
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    for url in urls.values():
        module_daemon.do("DELETE", url)
        assert module_daemon.api("GET", url).status == 404
    assert module_daemon.get(base) == []


def test_logs(module_daemon: Daemon, c1: str) -> None:
    base = f"/1.0/instances/{c1}/logs"
    assert f"{base}/lxc.log" in module_daemon.get(base)
    assert b"lxc.uts.name = c1" in module_daemon.api("GET", f"{base}/lxc.conf").body
    assert module_daemon.api("GET", f"/1.0/containers/{c1}/logs/lxc.conf").status == 200
    assert module_daemon.api("DELETE", f"{base}/lxc.conf").status == 400
    for name in ("no-such", "..%2f..%2fserver.key", "exec-output%2f..%2flxc.conf"):
        assert module_daemon.api("GET", f"{base}/{name}").status in (400, 404)
    assert module_daemon.api("GET", "/1.0/instances/none/logs").status == 404


def test_the_console_log(module_daemon: Daemon, c1: str) -> None:
    url = f"/1.0/instances/{c1}/console"
    module_daemon.lxc("exec", c1, "--", "sh", "-c", "echo seen > /dev/console")
    deadline = time.monotonic() + 30
    while b"seen" not in module_daemon.api("GET", url).body:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "seen" in module_daemon.lxc("console", c1, "--show-log").stdout
    module_daemon.do("DELETE", url)
    assert module_daemon.api("GET", url).body == b""


def test_frozen_and_stopped_containers_are_refused(module_daemon: Daemon, c1: str) -> None:
    url, body = f"/1.0/instances/{c1}/exec", {"command": ["true"]}
    module_daemon.lxc("pause", c1)
    refused = module_daemon.api("POST", url, body)
    module_daemon.lxc("start", c1)
    assert refused.status == 400
    assert b"frozen" in refused.body
    assert module_daemon.do("POST", url, body) == {"return": 0}
    module_daemon.lxc("stop", c1, "--force")
    refused = module_daemon.api("POST", url, body)
    module_daemon.lxc("start", c1)
    assert refused.status == 400
    assert b"Instance is not running" in refused.body


def test_many_at_once_with_the_real_client(module_daemon: Daemon, c1: str) -> None:
    """What LXD's suite calls concurrent_exec: half of them with pipes only."""

    async def one(number: int) -> bytes:
        options = ["--force-noninteractive"] if number % 2 else []
        client = await asyncio.create_subprocess_exec(
            *("lxc", "exec", c1, *options, "--", "cat"),
            env=module_daemon.lxc_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(client.communicate(f"abc{number}\n".encode()), 60)
        assert client.returncode == 0
        return out

    async def all_of_them() -> list[bytes]:
        return await asyncio.gather(*(one(number) for number in range(50)))

    assert asyncio.run(all_of_them()) == [f"abc{number}\n".encode() for number in range(50)]


def test_a_daemon_that_is_killed_leaves_no_command(daemon: Daemon, busybox_image: Any) -> None:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    daemon.lxc("launch", "busybox", "c1")
    for _ in range(3):
        daemon.api("POST", "/1.0/instances/c1/exec", {"command": ["sleep", "72007"]})
    deadline = time.monotonic() + 30
    while len(sleeping("72007")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    members = of_daemon(daemon)
    daemon.kill()
    while sleeping("72007") or any(Path(f"/proc/{pid}").exists() for pid in members):
        assert time.monotonic() < deadline + 10
        time.sleep(0.02)
    daemon.start()
    assert daemon.get("/1.0/instances/c1")["status"] == "Running"
