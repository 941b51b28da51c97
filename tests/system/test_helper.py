"""The helper process with a real container, started by lxc-start alone: no daemon is needed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks
from utsuwa.core.errors import HostError, InvalidConfig, StartFailed
from utsuwa.host import lxc
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.cgroups.usage import Meter
from utsuwa.host.helper import client
from utsuwa.host.helper.client import Attached, AttachSpec, Helper, Terminal
from utsuwa.host.helper.replies import HelperGone
from utsuwa.host.helper.rtnetlink import interfaces
from utsuwa.host.processes import pidfds, pipes

pytestmark = pytest.mark.root

BASE = 100000
ENV = {"PATH": "/bin"}


class Box:
    """A folder with a busybox rootfs and a config for an unprivileged container of its own name."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ut-helper-", dir="/var/tmp"))
        self.folder.chmod(0o711)
        self.name = self.folder.name
        self.cgroup = f"utsuwa-test-{self.name}"
        self.lxcpath = self.folder / "lxc"
        self.conf = self.folder / "conf"
        self.log = self.folder / "log"
        self.lxcpath.mkdir()
        self._make_rootfs(self.folder / "rootfs")
        self.write_conf()

    def _make_rootfs(self, root: Path) -> None:
        for name in ("bin", "dev", "proc", "sys", "etc", "root", "tmp", "sbin"):
            (root / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for name in ("sh", "sleep", "true", "cat", "tty", "stty", "id", "pwd", "env", "head", "ls", "kill"):
            (root / "bin" / name).symlink_to("busybox")
        (root / "bin/not-executable").touch()
        init = root / "sbin/init"
        init.write_text("#!/bin/sh\ntrap 'exit 0' PWR\nwhile :; do sleep 1000 & wait; done\n")
        init.chmod(0o755)
        for path in (root, *root.rglob("*")):
            os.chown(path, BASE, BASE, follow_symlinks=False)

    def write_conf(self, *more: str) -> None:
        lines = [
            f"lxc.rootfs.path = dir:{self.folder}/rootfs",
            f"lxc.uts.name = {self.name}",
            f"lxc.idmap = u 0 {BASE} 65536",
            f"lxc.idmap = g 0 {BASE} 65536",
            "lxc.mount.auto = proc:rw sys:rw",
            "lxc.pty.max = 64",
            f"lxc.cgroup.dir = {self.cgroup}",
            *(more or ("lxc.net.0.type = empty",)),
        ]
        self.conf.write_text("\n".join(lines) + "\n")

    async def start(self) -> None:
        await lxc.start(self.name, self.lxcpath, self.conf, self.log)

    async def stop(self, helper: Helper) -> None:
        pid = await helper.init_pid(self.name, self.lxcpath)
        if pid is not None:
            monitor = lxc.monitor_pid(pid)
            pidfds.kill(pid)
            await pidfds.wait(pid)
            if monitor is not None:
                await pidfds.wait(monitor)

    def remove(self) -> None:
        # The monitor of a start that failed ends a little after lxc-start has told so.
        deadline = time.monotonic() + 30
        while leaks.processes_of(self.lxcpath) and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.rmtree(self.folder)
        for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            for folder, _, _ in os.walk(hierarchy / self.cgroup, topdown=False):
                remove_cgroup(Path(folder))


def remove_cgroup(folder: Path) -> None:
    """The kernel needs a moment after the last process has ended."""
    for _ in range(50):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return


@pytest.fixture
def box() -> Iterator[Box]:
    found = Box()
    yield found
    found.remove()


@pytest.fixture
async def running(box: Box, helper: Helper) -> AsyncIterator[Box]:
    await box.start()
    yield box
    await box.stop(helper)


def spec(box: Box, *argv: str, **changes: Any) -> AttachSpec:
    return AttachSpec(**{"name": box.name, "lxcpath": box.lxcpath, "argv": argv, "env": ENV, **changes})


async def attach(helper: Helper, box: Box, *argv: str, **changes: Any) -> tuple[Attached, int]:
    """A command with its output in a pipe, whose reading end is given back."""
    reading, writing = pipes.pipe()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        return await helper.attach(spec(box, *argv, **changes), null, writing, writing), reading
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        os.close(null)


async def output(helper: Helper, box: Box, *argv: str, **changes: Any) -> tuple[int, int | None, str]:
    """Exit code, errno and output of a command."""
    attached, reading = await attach(helper, box, *argv, **changes)
    os.set_blocking(reading, False)
    said = b""
    while part := await pipes.read(reading):
        said += part
    os.close(reading)
    code = await attached.wait()
    attached.close()
    return code, attached.failure, said.decode()


def processes(*words: str) -> list[int]:
    """The processes whose command line is just that."""
    wanted = b"".join(word.encode() + b"\0" for word in words)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command == wanted:
                found.append(int(entry.name))
    return found


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.02)


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def helper_pid(helper: Helper) -> int:
    assert helper._process is not None
    return helper._process.pid


def workers(helper: Helper) -> list[int]:
    children = Path(f"/proc/{helper_pid(helper)}/task/{helper_pid(helper)}/children")
    return [int(pid) for pid in children.read_text().split()]


async def test_where_a_container_is(running: Box, helper: Helper) -> None:
    pid = await helper.init_pid(running.name, running.lxcpath)
    assert pid is not None
    assert lxc.monitor_pid(pid) is not None
    assert await helper.state(running.name, running.lxcpath) == "RUNNING"
    assert await helper.init_pid("another", running.lxcpath) is None
    assert await helper.state("another", running.lxcpath) == "STOPPED"


async def test_freezing(running: Box, helper: Helper) -> None:
    pid = await helper.init_pid(running.name, running.lxcpath)
    assert pid is not None
    await helper.freeze(running.name, running.lxcpath)
    assert cgroups.frozen(pid)
    await helper.unfreeze(running.name, running.lxcpath)
    assert not cgroups.frozen(pid)
    with pytest.raises(HostError):
        await helper.freeze("another", running.lxcpath)


async def test_usage(running: Box, helper: Helper) -> None:
    pid = await helper.init_pid(running.name, running.lxcpath)
    assert pid is not None
    usage = Meter(pid).read()
    assert usage.cpu_ns > 0
    assert usage.memory > 0
    assert usage.processes == 2


async def test_how_a_command_runs(running: Box, helper: Helper) -> None:
    code, failure, said = await output(
        helper, running, "/bin/sh", "-c", "id -u; id -g; pwd; env; ls /proc/self/fd; umask",
        env={"A": "1 2", "PATH": "/bin"}, uid=5, gid=6, cwd="/root",
    )  # fmt: skip
    lines = said.splitlines()
    assert (code, failure, lines[:3], lines[-1]) == (0, None, ["5", "6", "/root"], "0022")
    assert {"A=1 2", "PATH=/bin", "container=lxc"} <= set(lines)
    assert [line for line in lines if line.isdigit()][2:] == [
        "0",
        "1",
        "2",
        "3",
        "0022",
    ]  # 3 is of `ls` itself


@pytest.mark.parametrize(
    ("argv", "code", "number"),
    [
        (["true"], 0, None),
        (["sh", "-c", "exit 7"], 7, None),
        (["sh", "-c", "exit 127"], 127, None),
        (["sh", "-c", "kill -9 $$"], 128 + signal.SIGKILL, None),
        (["missing"], 127, 2),
        (["/bin/missing"], 127, 2),
        (["/bin/sh/x"], 127, 20),
        (["/bin/not-executable"], 126, 13),
        (["/root"], 126, 13),
    ],
)
async def test_exit_codes(
    running: Box, helper: Helper, argv: list[str], code: int, number: int | None
) -> None:
    assert await output(helper, running, *argv) == (code, number, "")


async def test_a_missing_working_directory_is_the_root(running: Box, helper: Helper) -> None:
    assert await output(helper, running, "pwd", cwd="/nonexistent") == (0, None, "/\n")


async def test_large_arguments(running: Box, helper: Helper) -> None:
    word = "x" * 100_000
    found = await output(helper, running, "sh", "-c", "echo ${#A} ${#1}", "0", word, env=ENV | {"A": word})
    assert found == (0, None, "100000 100000\n")
    code, number, _ = await output(helper, running, "true", *[word] * 30)
    assert (code, number) == (126, 7)  # E2BIG


async def test_a_terminal(running: Box, helper: Helper) -> None:
    terminal = Terminal(91, 17, BASE, BASE)
    attached = await helper.attach(
        spec(running, "sh", "-c", "tty; stty size; read x; echo $x", terminal=terminal)
    )
    assert attached.master is not None
    os.set_blocking(attached.master, False)
    os.write(attached.master, b"typed\n")
    said = b""
    try:
        while True:
            said += await pipes.read(attached.master)
    except OSError:
        pass
    assert await attached.wait() == 0
    attached.close()
    assert set(said.decode().split()) == {"/dev/pts/1", "17", "91", "typed"}


async def test_signals(running: Box, helper: Helper) -> None:
    attached, reading = await attach(helper, running, "sleep", "1000")
    await attached.signal(0xFFFF)  # makes no sense and does nothing
    await attached.signal(signal.SIGTERM)
    assert await asyncio.wait_for(attached.wait(), 5) == 128 + signal.SIGTERM
    await attached.signal(signal.SIGTERM)
    attached.close()
    os.close(reading)


@pytest.mark.parametrize("how", ["close", "kill"])
async def test_abandoning_a_command_kills_its_session(running: Box, helper: Helper, how: str) -> None:
    attached, reading = await attach(helper, running, "sh", "-c", "sleep 71234 & sleep 71234 & wait")
    await until(lambda: len(processes("sleep", "71234")) == 2)
    if how == "kill":
        await attached.kill()
        assert await attached.wait() == 128 + signal.SIGKILL
        assert processes("sleep", "71234") == []
    attached.close()
    attached.close()
    await until(lambda: not processes("sleep", "71234"))
    os.close(reading)


async def test_background_processes_outlive_their_command(running: Box, helper: Helper) -> None:
    attached, reading = await attach(helper, running, "sh", "-c", "sleep 71235 & exit 4")
    assert await attached.wait() == 4
    attached.close()
    os.close(reading)
    await until(lambda: len(processes("sleep", "71235")) == 1)


async def test_many_cut_off_leave_nothing(running: Box, helper: Helper) -> None:
    await output(helper, running, "true")
    await until(lambda: len(workers(helper)) == 2)
    await asyncio.sleep(0.1)
    before = descriptors(os.getpid()), descriptors(helper_pid(helper))

    async def cut_off(number: int) -> None:
        task = asyncio.create_task(attach(helper, running, "sleep", "71236"))
        await asyncio.sleep(number % 10 / 500)
        if number % 2:
            task.cancel()
        try:
            attached, reading = await task
        except asyncio.CancelledError:
            return
        attached.close()
        os.close(reading)

    for start in range(0, 60, 10):
        await asyncio.gather(*(cut_off(number) for number in range(start, start + 10)))
    await until(lambda: not processes("sleep", "71236") and len(workers(helper)) == 2)
    assert (descriptors(os.getpid()), descriptors(helper_pid(helper))) == before


async def test_a_killed_helper_is_started_again(
    running: Box, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utsuwa.host.helper.client._RESTART_DELAY", 0.05)
    attached, reading = await attach(helper, running, "sleep", "71237")
    await until(lambda: len(workers(helper)) == 3)
    first, idle = helper_pid(helper), workers(helper)
    os.kill(first, signal.SIGKILL)
    await until(lambda: helper._process is not None and helper_pid(helper) != first)
    assert (await output(helper, running, "true"))[0] == 0
    assert not attached.ended  # its worker does not need the helper any more
    await attached.kill()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in idle))
    attached.close()
    os.close(reading)


async def test_command_ends_with_its_killed_worker(running: Box, helper: Helper) -> None:
    await until(lambda: len(workers(helper)) == 2)
    idle = set(workers(helper))
    attached, reading = await attach(helper, running, "sleep", "71238")
    await until(lambda: processes("sleep", "71238"))
    (stat,) = [Path(f"/proc/{pid}/stat").read_text() for pid in processes("sleep", "71238")]
    worker = int(stat.rpartition(")")[2].split()[1])
    assert worker in idle
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(HelperGone, match="ended unexpectedly"):
        await asyncio.wait_for(attached.wait(), 5)
    await until(lambda: not processes("sleep", "71238"))
    attached.close()
    os.close(reading)


CLIENT = """
import asyncio, sys
from pathlib import Path
from utsuwa.host.helper.client import AttachSpec, Helper
async def main():
    helper = Helper()
    await helper.start()
    for _ in range(3):
        spec = AttachSpec(sys.argv[1], Path(sys.argv[2]), ["sleep", "71239"], {"PATH": "/bin"})
        await helper.attach(spec, 0, 1, 2)
    print("ready", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_helper_ends_with_a_killed_daemon(running: Box) -> None:
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, running.name, str(running.lxcpath), stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    assert await client.stdout.readline() == b"ready\n"
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    assert len(children) == 1

    def members() -> list[int]:
        workers = Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split()
        return [int(children[0]), *processes("sleep", "71239"), *map(int, workers)]

    await until(lambda: len(members()) > 6)
    all_of_it = members()
    client.kill()
    await client.wait()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in all_of_it))


async def test_containers_that_do_not_run_are_refused(box: Box, helper: Helper) -> None:
    with pytest.raises(HostError, match="Failed to get init pid"):
        await output(helper, box, "true")
    assert (await helper.init_pid(box.name, box.lxcpath)) is None


async def test_closed_helper_raises(box: Box) -> None:
    helper = Helper()
    await helper.start()
    pid = helper_pid(helper)
    await helper.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(HostError, match="the daemon is shutting down"):
        await helper.state(box.name, box.lxcpath)


async def test_checking_configuration(box: Box, helper: Helper, tmp_path: Path) -> None:
    await helper.check_config(box.conf)
    bad = tmp_path / "bad"
    bad.write_text("lxc.no.such.key = 1\n")
    with pytest.raises(InvalidConfig, match='liblxc refuses it: .*Unsupported config key "lxc.no.such'):
        await helper.check_config(bad)
    with pytest.raises(InvalidConfig):
        await helper.check_config(tmp_path / "missing")


def _ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


async def test_network_state(box: Box, helper: Helper) -> None:
    host_name = f"ut{os.getpid()}"
    box.write_conf(
        "lxc.net.0.type = veth",
        f"lxc.net.0.veth.pair = {host_name}",
        "lxc.net.0.name = eth0",
        "lxc.net.0.hwaddr = 00:16:3e:00:00:01",
        "lxc.net.0.flags = up",
        "lxc.net.0.ipv4.address = 10.9.8.7/24",
    )
    await box.start()
    try:
        pid = await helper.init_pid(box.name, box.lxcpath)
        assert pid is not None
        states = await helper.network_states([pid, pid])
        assert states[pid].keys() == {"lo", "eth0"}
        eth0 = states[pid]["eth0"]
        assert (eth0.host_name, eth0.hwaddr, eth0.type) == (host_name, "00:16:3e:00:00:01", "broadcast")
        address = eth0.addresses[0]
        assert (address.family, address.address, address.netmask) == ("inet", "10.9.8.7", "24")
        assert eth0.state == "up"
        assert host_name in {link["name"] for link in interfaces()}
        ended = _ended()
        many = await helper.network_states([pid, ended] * client._MANY)  # by two workers
        assert many.keys() == {pid}
        assert (many[pid]["eth0"].host_name, many[pid]["lo"].host_name) == (host_name, "")
    finally:
        await box.stop(helper)
    assert await helper.network_states([pid]) == await helper.network_states([]) == {}


async def test_an_init_that_does_not_start(box: Box) -> None:
    (box.folder / "rootfs/sbin/init").unlink()
    with pytest.raises(StartFailed, match='No such file or directory - Failed to exec "/sbin/init"'):
        await box.start()
