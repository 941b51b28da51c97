"""Containers run by liblxc from generated configurations: they boot, end as told, and are confined."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.box import MACHINE, Box, Lxcfs, call, call_32
from tests.support.devices import FakeContainer, FakePorts, FakeVolume, FakeVolumes
from tests.support.images import Image
from tests.support.instances import ref
from utsuwa import devices
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.devices import DeviceHost
from utsuwa.host.mounts.device_folder import DeviceFolder
from utsuwa.host.network import veth

pytestmark = pytest.mark.root

needs_x86 = pytest.mark.skipif(MACHINE != "x86_64", reason="the programs are x86_64 code")

CONFIG = {
    "environment.GREETING": " hello ",
    "limits.kernel.nofile": "1000:2000",
    "linux.sysctl.net.ipv4.ip_forward": "1",
    "security.syscalls.deny_compat": "true",
    "raw.lxc": "lxc.environment = RAW=1",
}

FORBIDDEN = {
    "kexec_load": call(246),
    "kexec_file_load": call(320),
    "init_module": call(175),
    "finit_module": call(313),
    "delete_module": call(176),
    "open_by_handle_at": call(304),
    "iopl": call(172, 3),
    "ioperm": call(173, 0x70, 2, 1),
    "swapoff": call(168, 0x400000),
    "acct": call(163, 0x400000),
    "mknod_block": call(133, 0x400001, 0o60600, 0xFE00),
    "ptrace_host": call(101, 16, os.getpid()),
}
REFUSED = {errno.EPERM, errno.EACCES, errno.ENOSYS}


@pytest.fixture(scope="module")
def box(busybox_image: Image) -> Iterator[Box]:
    with Box(busybox_image, CONFIG) as made:
        for name, code in FORBIDDEN.items():
            made.add_program(f"try_{name}", code)
        made.add_program("socketcall_32", call_32(102))
        made.add_program("getpid", call(39))
        made.start()
        yield made


def test_configuration_is_applied_to_the_container(box: Box) -> None:
    first = box.idmap.uids[0]
    assert box.run("cat", "/proc/self/uid_map").split() == ["0", str(first.host), str(first.count)]
    assert box.run("hostname") == "box\n"
    environment = Path(f"/proc/{box.pid}/environ").read_bytes().split(b"\0")
    assert {b"GREETING= hello ", b"RAW=1", b"container=lxc"} <= set(environment)
    assert "1000" in box.run("sh", "-c", "ulimit -n")
    assert box.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
    assert box.run("ls", "/sys/class/net") == "lo\n"
    assert f"/{box.cgroup}/lxc.payload.box" in Path(f"/proc/{box.pid}/cgroup").read_text()


def test_it_has_a_filter_and_fewer_capabilities(box: Box) -> None:
    status = dict(line.split(":\t", 1) for line in box.run("cat", "/proc/self/status").splitlines())
    assert status["Seccomp"] == "2"
    bounds = int(status["CapBnd"], 16)
    for capability in (16, 17, 25, 32, 33):  # module, raw I/O, time, MAC override and admin
        assert not bounds >> capability & 1
    assert bounds >> 21 & 1  # administration of its own namespaces


@needs_x86
def test_forbidden_system_calls_fail(box: Box) -> None:
    names = " ".join(FORBIDDEN)
    said = box.run("sh", "-c", f"for name in {names}; do try_$name; echo $name $?; done")
    codes = {name: int(code) for name, code in map(str.split, said.splitlines())}
    assert codes.keys() == FORBIDDEN.keys()
    assert codes.pop("ptrace_host") in REFUSED | {errno.ESRCH}
    assert {name: errno.errorcode.get(code) for name, code in codes.items() if code not in REFUSED} == {}


@pytest.mark.parametrize(
    "command",
    [
        "date -s @$(date +%s)",
        "echo x > /proc/sys/kernel/core_pattern",
        "mknod /tmp/disk b 254 0",
        "mount -t ext4 /bin/busybox /mnt",
        "mount -t debugfs none /mnt",
    ],
)
def test_root_in_the_container_cannot_change_the_host(box: Box, command: str) -> None:
    assert re.search("[Pp]ermission denied|not permitted", box.run("sh", "-c", command))


@needs_x86
def test_calls_of_32_bit_programs_are_refused_alone(box: Box) -> None:
    assert box.run("sh", "-c", "socketcall_32; echo $?") == f"{errno.ENOSYS}\n"
    assert box.run("sh", "-c", "getpid; [ $? != 38 ] && echo served") == "served\n"


async def test_interfaces_are_added_and_removed_while_it_runs(box: Box) -> None:
    config = {"type": "nic", "nictype": "p2p", "name": "lan0", "mtu": "1400", "hwaddr": "00:16:3e:00:00:01"}
    device = devices.load("eth0", config)
    device.validate()

    def host(**volatile: str) -> DeviceHost:
        keys = {f"volatile.eth0.{key}": value for key, value in volatile.items()}
        own = (keys, box.idmap, DeviceFolder(box.folder), box.pid)
        ports, volume, container = FakePorts(), FakeVolume(box.folder), FakeContainer()
        return DeviceHost(
            ref("box"), *own, ports=ports, volume=volume, volumes=FakeVolumes(), container=container
        )

    run = await device.attach(host())
    host_name = run.volatile["host_name"]
    try:
        inside = Path("/sys/class/net/lan0")
        shown = box.run("sh", "-c", f"cat {inside}/mtu {inside}/address; ip link set lan0 up && echo up")
        assert shown == "1400\n00:16:3e:00:00:01\nup\n"
        assert veth.exists(host_name)
        with pytest.raises(InvalidConfig, match="exists already"):
            await device.attach(host())
    finally:
        gone = await device.detach(host(host_name=host_name))
    assert gone.volatile == {"host_name": ""}
    assert not veth.exists(host_name)
    assert "lan0" not in box.run("ls", "/sys/class/net")
    await device.stop(host(host_name=host_name))


async def test_only_pairs_are_removed() -> None:
    await veth.delete("lo")
    assert veth.exists("lo")


async def test_names_are_free_on_both_sides_when_a_pair_is_deleted(box: Box) -> None:
    pair = veth.Pair("early0", "lan1", "00:16:3e:00:00:02")
    for _ in range(3):
        await asyncio.to_thread(veth.create, pair, box.pid)
        await veth.delete("early0")
        assert not veth.exists("early0")
        assert "lan1" not in Path(f"/proc/{box.pid}/net/dev").read_text()
        assert not Path(f"/proc/{box.pid}/root/sys/class/net/lan1").exists()
    await veth.delete("early0")


async def test_what_the_kernel_refuses_is_told(box: Box) -> None:
    pair = veth.Pair("refused0", "lan1", "00:16:3e:00:00:02")
    with pytest.raises(HostError, match="has no bridge 'nobridge'"):
        await asyncio.to_thread(veth.create, replace(pair, bridge="nobridge"), box.pid)
    with pytest.raises(HostError, match="cannot create the network interface 'refused0': "):
        await asyncio.to_thread(veth.create, replace(pair, mtu=1), box.pid)
    assert not veth.exists("refused0")


def test_reboot_and_halt_are_recorded_and_end_it(busybox_image: Image) -> None:
    with Box(busybox_image, {}) as box:
        for command, target in (("reboot", "reboot\n"), ("halt", "stop\n")):
            box.start()
            box.run(command, "-f")
            box.wait_for_end()
            assert box.pid == 0
            assert box.target.read_text() == target


def test_privileged_containers_make_no_block_nodes(busybox_image: Image) -> None:
    with Box(busybox_image, {"security.privileged": "true"}) as box:
        box.start()
        assert box.run("cat", "/proc/self/uid_map").split() == ["0", "0", "4294967295"]
        assert "not permitted" in box.run("mknod", "/tmp/disk", "b", "254", "0")
        assert box.run("mknod", "/tmp/null", "c", "1", "3") == ""
        assert box.run("sh", "-c", "echo x > /proc/sys/kernel/core_pattern || echo no").endswith("no\n")


@needs_x86
def test_privileged_containers_have_no_detached_mounts(busybox_image: Image) -> None:
    """Files in them have no path that rules of AppArmor could be about."""
    calls = {"fsopen": call(430), "fspick": call(433), "cloned": call(428, 0, 0, 1), "opened": call(428)}
    with Box(busybox_image, {"security.privileged": "true"}) as box:
        for name, code in calls.items():
            box.add_program(f"try_{name}", code)
        box.start()
        said = box.run("sh", "-c", "for name in fsopen fspick cloned opened; do try_$name; echo $?; done")
        assert [int(code) == errno.ENOSYS for code in said.split()] == [True, True, True, False]


@pytest.mark.skipif(
    shutil.which("lxcfs") is None or not Path("/dev/fuse").exists(), reason="lxcfs does not run here"
)
def test_lxcfs_replaces_files_of_proc(busybox_image: Image) -> None:
    with Lxcfs() as lxcfs, Box(busybox_image, {"security.nesting": "true"}, lxcfs.mount) as box:
        box.start()
        of_host = float(Path("/proc/uptime").read_text().split()[0])
        assert float(box.run("cat", "/proc/uptime").split()[0]) < min(20, of_host)
        mounts = box.run("cat", "/proc/mounts")
        assert "lxcfs /proc/meminfo fuse.lxcfs" in mounts
        assert "proc /dev/.lxc/proc proc" in mounts
