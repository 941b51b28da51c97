"""Limits shown by loads that hit them, before and after a live change."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.api import Reply
from tests.support.box import program
from tests.support.daemon import Daemon
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.cgroups.usage import Meter
from utsuwa.host.processes import oom_scores as processes_scores
from utsuwa.host.system.facts import parse_cpu_list

pytestmark = pytest.mark.root

ALLOWED = "awk '/Cpus_allowed_list/ {print $2}' /proc/self/status"


class Box:
    """A running container with limits."""

    def __init__(self, daemon: Daemon, name: str, *, image: str = "busybox", **limits: str) -> None:
        self.daemon = daemon
        self.name = name
        config = [word for key, value in limits.items() for word in ("-c", f"limits.{key}={value}")]
        daemon.lxc("launch", image, name, *config)

    @property
    def pid(self) -> int:
        return int(self.daemon.get(f"/1.0/instances/{self.name}/state")["pid"])

    def sh(self, script: str) -> subprocess.CompletedProcess[str]:
        return self.daemon.lxc("exec", self.name, "--", "sh", "-c", script, check=False)

    def change(self, **limits: str) -> None:
        self.daemon.do("PATCH", f"/1.0/instances/{self.name}", {"config": _named(limits)})

    def refused(self, **limits: str) -> str:
        """The error of a change that must be refused with status 400 and change nothing."""
        url = f"/1.0/instances/{self.name}"
        before = self.daemon.get(url)["config"]
        reply: Reply = self.daemon.api("PATCH", url, {"config": _named(limits)})
        assert reply.status == 400, reply.body
        assert self.daemon.get(url)["config"] == before
        return reply.error

    def cpus(self) -> set[int]:
        return parse_cpu_list(self.sh(ALLOWED).stdout)

    def cpu_ns(self) -> int:
        return Meter(self.pid).read().cpu_ns

    def throttled(self) -> int:
        """How often it was stopped because its time in a period was used up."""
        folders = cgroups.folders_of(self.pid)
        text = (folders.get("cpu", folders.get("", Path())) / "cpu.stat").read_text()
        return int(dict(line.split() for line in text.splitlines())["nr_throttled"])

    def fits(self, mebibytes: int) -> bool:
        """Whether a process may have that much memory, all of it touched; else it must be killed for it."""
        done = self.sh(f"dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1")
        assert done.returncode in (0, 137), done
        return done.returncode == 0

    def keep(self, mebibytes: int) -> None:
        """Use memory that the kernel cannot take back but by swapping it out."""
        done = self.sh(
            f"mkdir -p /t && mount -t tmpfs t /t && dd if=/dev/zero of=/t/f bs=1M count={mebibytes}"
        )
        assert done.returncode == 0, done

    def loops(self, number: int) -> None:
        self.sh(f"for i in $(seq {number}); do (while :; do :; done) </dev/null >/dev/null 2>&1 & done")


def _named(limits: dict[str, str]) -> dict[str, str]:
    return {f"limits.{key}": value for key, value in limits.items()}


Launch = Callable[..., Box]


@pytest.fixture
def launch(shared_daemon: Daemon, busybox: str) -> Launch:
    """`launch("c1", memory="40MiB")`."""

    def start(name: str, **limits: str) -> Box:
        return Box(shared_daemon, name, **limits)

    return start


def cpu_seconds(*boxes: Box, seconds: float = 1.0) -> list[float]:
    """The CPU time that each uses per second."""
    before, start = [box.cpu_ns() for box in boxes], time.monotonic()
    time.sleep(seconds)
    after, took = [box.cpu_ns() for box in boxes], time.monotonic() - start
    return [(b - a) / 1e9 / took for a, b in zip(before, after, strict=True)]


def reaches(box: Box, least: float) -> float:
    """The CPU time per second, once it is above `least`: the host may be busy with other things."""
    used = 0.0
    for _ in range(10):
        (used,) = cpu_seconds(box)
        if used > least:
            break
    assert used > least
    return used


# ---- memory


def test_memory(launch: Launch) -> None:
    c1 = launch("c1", memory="25MiB")  # a host with swap gives as much again
    assert c1.fits(15)
    assert not c1.fits(60)
    c1.change(memory="100MiB")
    assert c1.fits(60)
    c1.change(memory="25MiB")
    assert not c1.fits(60)
    c1.change(memory="")
    assert c1.fits(60)
    c1.change(memory="1%", **{"memory.enforce": "soft"})
    assert c1.fits(400)


def test_a_share_of_the_hosts_memory(launch: Launch) -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    c1 = launch("c1", memory="1%")
    assert c1.fits(total // 200)
    assert not c1.fits(total // 40)


def test_less_memory_than_is_in_use(launch: Launch) -> None:
    c1 = launch("c1", memory="100MiB", **{"memory.swap": "false"})
    c1.keep(40)
    assert "uses" in c1.refused(memory="20MiB")
    assert "uses" in c1.refused(memory="20MiB", processes="500", **{"cpu.allowance": "10%"})
    c1.sh("sleep 60 </dev/null >/dev/null 2>&1 &")
    assert "processes" in c1.refused(memory="60MiB", processes="1", cpu="0-0")
    assert len(c1.cpus()) > 1
    assert c1.fits(40)
    assert not c1.fits(80)
    c1.sh("umount /t")
    c1.change(memory="20MiB")
    assert not c1.fits(40)


@pytest.fixture
def host_swap(tmp_path: Path) -> Iterator[None]:
    """A host with swap, if only for a moment."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    file = tmp_path / "swap"
    file.write_bytes(bytes(2**27))
    file.chmod(0o600)
    subprocess.run(["mkswap", file], check=True, capture_output=True)
    if subprocess.run(["swapon", file], check=False, capture_output=True).returncode:
        pytest.skip("this host cannot swap")
    try:
        yield
    finally:
        subprocess.run(["swapoff", file], check=True)


@pytest.mark.usefixtures("host_swap")
def test_swap(launch: Launch) -> None:
    c1 = launch("c1", memory="25MiB", **{"memory.swap": "60MiB"})
    assert c1.fits(60)
    c1.change(**{"memory.swap": "false"})
    assert not c1.fits(60)
    c1.change(**{"memory.swap": "80MiB"})
    assert c1.fits(60)


# ---- processes


def test_processes(launch: Launch) -> None:
    c1 = launch("c1", processes="20")
    bomb = "for i in $(seq 60); do sleep 60 </dev/null >/dev/null 2>&1 & done"

    def most() -> int:
        c1.sh(bomb)
        found = int(c1.daemon.get("/1.0/instances/c1/state")["processes"])
        c1.sh("kill -9 -1")
        return found

    assert 10 <= most() <= 20
    c1.change(processes="40")
    assert 30 <= most() <= 40
    c1.change(processes="")
    assert most() > 60
    c1.sh("for i in 1 2 3; do sleep 60 </dev/null >/dev/null 2>&1 & done")
    assert "processes" in c1.refused(processes="2")


# ---- CPU


@pytest.mark.alone
def test_time_in_each_period(launch: Launch) -> None:
    c1 = launch("c1", **{"cpu.allowance": "10ms/100ms"})
    c1.loops(2)
    assert 0 < cpu_seconds(c1)[0] < 0.2
    c1.change(**{"cpu.allowance": "30ms/100ms"})
    assert reaches(c1, 0.2) < 0.4
    c1.change(**{"cpu.allowance": ""})
    before = c1.throttled()
    assert reaches(c1, 0.1)
    assert c1.throttled() == before


@pytest.mark.alone
def test_shares_of_a_cpu(launch: Launch) -> None:
    """Both are held to one CPU, so that they are in each other's way whatever else the host does."""
    one = launch("one", cpu="0-0", **{"cpu.allowance": "10%"})
    two = launch("two", cpu="0-0", **{"cpu.allowance": "100%"})
    one.loops(1)
    two.loops(1)
    low, high = cpu_seconds(one, two, seconds=1.5)
    assert high > 3 * low
    one.change(**{"cpu.allowance": "100%"})
    two.change(**{"cpu.allowance": "10%"})
    high, low = cpu_seconds(one, two, seconds=1.5)
    assert high > 3 * low


def test_priority(launch: Launch) -> None:
    one = launch("one", cpu="0-0", **{"cpu.priority": "0"})
    two = launch("two", cpu="0-0")
    one.loops(1)
    two.loops(1)
    low, high = cpu_seconds(one, two, seconds=1.5)
    assert high > 3 * low
    one.change(**{"cpu.priority": ""})
    first, second = cpu_seconds(one, two, seconds=1.5)
    assert first > 0.5 * second


def test_cpus(launch: Launch) -> None:
    host = parse_cpu_list(Path("/sys/devices/system/cpu/online").read_text())
    c1 = launch("c1", cpu="0-0")
    assert c1.cpus() == {0}
    c1.change(cpu="1-1")
    assert c1.cpus() == {1}
    c1.change(cpu="")
    assert c1.cpus() == host
    c1.change(cpu="1")
    assert len(c1.cpus()) == 1
    beyond = max(host) + 1
    assert str(beyond) in c1.refused(cpu=f"0,{beyond}")


def cpuset(box: Box, file: str) -> str:
    folders = cgroups.folders_of(box.pid)
    return (folders.get("cpuset", folders.get("", Path())) / file).read_text().strip()


def chosen_node(daemon: Daemon, name: str) -> str:
    return daemon.lxc("config", "get", name, "volatile.cpu.nodes").stdout.strip()


def test_numa_nodes(launch: Launch, shared_daemon: Daemon) -> None:
    node = parse_cpu_list(Path("/sys/devices/system/node/node0/cpulist").read_text())
    c1 = launch("c1", **{"cpu.nodes": "0"})
    assert (c1.cpus(), cpuset(c1, "cpuset.mems")) == (node, "0")
    c1.change(**{"cpu.nodes": "balanced", "cpu": "1"})
    assert (len(c1.cpus()), cpuset(c1, "cpuset.mems")) == (1, "0")
    assert chosen_node(shared_daemon, "c1") == "0"
    shared_daemon.restart()
    assert len(c1.cpus()) == 1
    assert "has no NUMA node 63" in c1.refused(**{"cpu.nodes": "0,63"})
    c1.change(**{"cpu.nodes": "", "cpu": ""})
    assert len(c1.cpus()) >= len(node)
    assert chosen_node(shared_daemon, "c1") == ""


def oom_scores(box: Box) -> list[int]:
    """Of init, of a command, and of a process that was running before."""
    inside = box.sh("cat /proc/self/oom_score_adj; cat /proc/$(cat /pid)/oom_score_adj").stdout.split()
    return [int(Path(f"/proc/{box.pid}/oom_score_adj").read_text()), *map(int, inside)]


def test_oom_priority(launch: Launch, shared_daemon: Daemon) -> None:
    own, lowest = processes_scores.own(), processes_scores.lowest()
    first = max(-300, lowest)  # below that, this host does not let the daemon go
    c1 = launch("c1", **{"memory.oom_priority": str(first)})
    c1.sh("sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/pid")
    assert oom_scores(c1) == [first, first, first]
    if lowest > -1000:
        assert "no CAP_SYS_RESOURCE" in c1.refused(**{"memory.oom_priority": "-1000"})
    c1.change(**{"memory.oom_priority": "500"})
    assert oom_scores(c1) == [500, 500, 500]
    Path(f"/proc/{c1.pid}/oom_score_adj").write_text("7")
    shared_daemon.restart()
    assert oom_scores(c1)[:2] == [500, 500]
    c1.change(**{"memory.oom_priority": ""})
    assert oom_scores(c1)[:2] == [own, own]


def test_numbers_of_cpus_are_spread(launch: Launch, shared_daemon: Daemon) -> None:
    c1, c2 = launch("c1", cpu="1"), launch("c2", cpu="1")
    assert c1.cpus().isdisjoint(c2.cpus())
    where = c2.cpus()
    c3 = launch("c3", cpu=f"{min(where)}-{min(where)}")  # comes to where c2 is
    shared_daemon.lxc("delete", "c1", "--force")
    assert c2.cpus().isdisjoint(c3.cpus())
    shared_daemon.restart()
    assert c2.cpus().isdisjoint(c3.cpus())
    assert c3.cpus() == where


# ---- resource limits of processes


def open_files(box: Box) -> tuple[str, str, str]:
    """Of init (soft, hard), and of a command."""
    fields = Path(f"/proc/{box.pid}/limits").read_text().split("Max open files")[1].split()
    return fields[0], fields[1], box.sh("ulimit -n").stdout.strip()


def test_resource_limits(launch: Launch) -> None:
    c1 = launch("c1", **{"kernel.nofile": "300:400"})
    assert open_files(c1) == ("300", "400", "300")
    many = 'i=3; while [ $i -lt 250 ]; do eval "exec $i</dev/null" || exit 9; i=$((i+1)); done'
    assert c1.sh(many).returncode == 0
    c1.change(**{"kernel.nofile": "100"})
    assert open_files(c1) == ("100", "100", "100")
    assert c1.sh(many).returncode != 0
    c1.change(**{"kernel.nofile": ""})  # init has the daemon's again where the daemon may raise limits
    assert c1.sh(many).returncode == 0


def test_open_files_of_the_daemon_are_its_own_affair(shared_daemon: Daemon, launch: Launch) -> None:
    """It takes all it may have; containers and commands get what it was started with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shared_daemon.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        shared_daemon.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert shared_daemon.process is not None
    assert resource.prlimit(shared_daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    c1 = launch("c1")
    assert open_files(c1) == ("600", str(hard), "600")
    c1.change(**{"kernel.nofile": f"100:{hard}"})
    c1.change(**{"kernel.nofile": ""})
    assert open_files(c1) == ("600", str(hard), "600")


# ---- huge pages

HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
FOUR_HUGE_PAGES = bytes.fromhex(
    "b809000000 31ff be00008000 ba03000000 41ba22000400 49c7c0ffffffff 4531c9 0f05"  # mmap 8 MiB of them
    "4885c0 781b"  # failed: the last line
    "b904000000 c60001 480500002000 ffc9 75f3"  # write to each of the four
    "b83c000000 31ff 0f05"  # exit 0
    "b83c000000 bf01000000 0f05"  # exit 1
)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """A host that has some."""
    before = HUGE.read_text()
    HUGE.write_text("16")
    yield
    HUGE.write_text(before)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program is in its machine code")
@pytest.mark.skipif("hugetlb" not in cgroups.controllers(), reason="the kernel does not limit huge pages")
@pytest.mark.usefixtures("huge_pages")
def test_huge_pages(launch: Launch) -> None:
    c1 = launch("c1", **{"hugepages.2MB": "4MiB"})
    octal = "".join(f"\\{byte:03o}" for byte in program(FOUR_HUGE_PAGES))
    assert c1.sh(f"printf '{octal}' > /huge; chmod 755 /huge").returncode == 0
    assert c1.sh("/huge").returncode == 128 + signal.SIGBUS
    c1.change(**{"hugepages.2MB": "8MiB"})
    assert c1.sh("/huge").returncode == 0
    c1.change(**{"hugepages.2MB": "2MiB"})
    assert c1.sh("/huge").returncode == 128 + signal.SIGBUS


@pytest.mark.skipif("hugetlb" in cgroups.controllers(), reason="the kernel limits huge pages")
def test_huge_pages_that_cannot_be_limited(launch: Launch) -> None:
    assert "huge pages" in launch("c1").refused(**{"hugepages.2MB": "8MiB"})


# ---- disks

READER = """
import mmap, os, random, sys, time
cgroup, disk, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
with open(cgroup + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
handle, buffer = os.open(disk, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 65536)
done, end = 0, time.time() + seconds
while time.time() < end:
    os.preadv(handle, [buffer], random.randrange(512) * 65536)
    done += 1
print(done)
"""
READERS = 4


@pytest.fixture
def fair_disk(tmp_path: Path) -> Iterator[str]:
    """A disk of 32 MiB whose scheduler heeds weights."""
    image = tmp_path / "disk"
    image.write_bytes(os.urandom(2**25))
    argv = ["losetup", "-f", "--show", "--direct-io=on", str(image)]
    disk = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    try:
        scheduler = Path("/sys/block", disk.removeprefix("/dev/"), "queue/scheduler")
        if "bfq" not in scheduler.read_text():
            pytest.skip("the kernel has no disk scheduler with weights")
        scheduler.write_text("bfq")
        yield disk
    finally:
        subprocess.run(["losetup", "-d", disk], check=True)


def blocks_read(disk: str, *boxes: Box) -> list[int]:
    """How much each gets from the disk in a second, with several processes reading at once."""
    readers = []
    for box in boxes:
        folders = cgroups.folders_of(box.pid)
        argv = [sys.executable, "-c", READER, str(folders.get("blkio", folders.get(""))), disk, "1.5"]
        readers.append([subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(READERS)])
    return [sum(int(process.communicate(timeout=30)[0]) for process in group) for group in readers]


def reads_more(disk: str, high: Box, low: Box) -> bool:
    """Whether one gets more than twice as much as the other, in one of five times: the machine works on."""
    for _ in range(5):
        more, less = blocks_read(disk, high, low)
        if more > 2 * less:
            return True
    return False


@pytest.mark.alone  # it measures shares of a disk, and other tests read and write, too
def test_disk_priority(launch: Launch, fair_disk: str) -> None:
    """The readers are processes of the host in the containers' cgroups: no container sees that disk."""
    one, two = launch("one", **{"disk.priority": "0"}), launch("two", **{"disk.priority": "10"})
    assert reads_more(fair_disk, two, one)
    one.change(**{"disk.priority": "10"})
    two.change(**{"disk.priority": "0"})
    assert reads_more(fair_disk, one, two)


# ---- profiles, and a daemon that restarts


def test_profile_change_applies_to_all_instances_or_none(launch: Launch, shared_daemon: Daemon) -> None:
    one, two = launch("one"), launch("two")
    two.keep(40)
    default = "/1.0/profiles/default"
    config = {"limits.memory": "25MiB", "limits.memory.swap": "false", "limits.cpu": "0-0"}
    reply = shared_daemon.api("PATCH", default, {"config": config})
    assert reply.status == 400
    assert "uses" in reply.error
    assert one.fits(60)
    assert len(one.cpus()) > 1
    two.sh("umount /t")
    shared_daemon.do("PATCH", default, {"config": config})
    try:
        assert not one.fits(60)
        assert not two.fits(60)
        assert one.cpus() == {0}
    finally:
        whole = shared_daemon.get(default)
        shared_daemon.do("PUT", default, {**whole, "config": {}})
    assert two.fits(60)
    assert len(two.cpus()) > 1


def test_a_change_that_a_kill_cut_off_is_put_right(launch: Launch, shared_daemon: Daemon) -> None:
    c1 = launch("c1", memory="100MiB")
    shared_daemon.stop()
    folders = cgroups.folders_of(_init_of(shared_daemon, "c1"))
    memory = folders.get("memory", folders.get("", Path()))
    name = "memory.limit_in_bytes" if "memory" in folders else "memory.max"
    (memory / name).write_text(str(20 * 2**20))
    shared_daemon.start()
    assert c1.fits(60)
    assert not c1.fits(220)


def _init_of(daemon: Daemon, name: str) -> int:
    argv = ["lxc-info", "-P", str(daemon.dir / "containers"), "-n", name, "-pH"]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


# ---- below a systemd


@pytest.mark.debian
def test_limits_apply_to_cgroups_created_by_systemd(shared_daemon: Daemon, debian: str) -> None:
    box = Box(shared_daemon, "deb", image=debian, memory="150MiB", cpu="0-0", **{"memory.swap": "false"})

    def service(script: str) -> str:
        done = box.sh(f"systemd-run --quiet --wait --pipe sh -c '{script}'")
        return done.stdout.strip()

    while box.sh("systemctl is-system-running").stdout.strip() not in ("running", "degraded"):
        time.sleep(0.2)
    cgroup = service("cat /proc/self/cgroup")
    assert "/system.slice/" in cgroup
    hog = "head -c 300M /dev/zero | tail | wc -c"
    assert service(hog) == "0"
    assert service("grep Cpus_allowed_list /proc/self/status").split()[1] == "0"
    box.change(memory="", cpu="1-1")
    assert service(hog) == str(300 * 2**20)
    assert service("grep Cpus_allowed_list /proc/self/status").split()[1] == "1"


# ---- bad input


@pytest.mark.parametrize(
    "limits",
    [
        {"memory": "101%"},
        {"memory": "0%"},
        {"memory": "12 apples"},
        {"memory.enforce": "softly"},
        {"memory.swap": "perhaps"},
        {"memory.swap.priority": "11"},
        {"processes": "0"},
        {"processes": "-5"},
        {"cpu": "0"},
        {"cpu": "1-0"},
        {"cpu": "0-0,7000"},
        {"cpu.allowance": "150%"},
        {"cpu.allowance": "100ms/0ms"},
        {"cpu.allowance": "50"},
        {"cpu.priority": "11"},
        {"disk.priority": "-1"},
        {"hugepages.64KB": "1MiB"},
        {"kernel.nofile": "20:10"},
    ],
)
def test_bad_values(module_daemon: Daemon, victim: Box, limits: dict[str, str]) -> None:
    (key,) = limits
    assert f"limits.{key}" in victim.refused(**limits)
    body = {"name": "bad", "source": {"type": "none"}, "config": _named(limits)}
    refused = module_daemon.api("POST", "/1.0/instances", body)
    assert refused.status == 400
    assert f"limits.{key}" in refused.error
    assert module_daemon.api("GET", "/1.0/instances/bad").status == 404


@pytest.fixture(scope="module")
def victim(module_daemon: Daemon, busybox: str) -> Box:
    """A running container that is refused everything."""
    return Box(module_daemon, "victim")
