"""Mounts of file systems on block devices, which are intercepted."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.netbox import until
from tests.system.test_interception import PREFIX, Guest

pytestmark = pytest.mark.root

_MOUNT = """
def mount(source, target, kind=b"ext4", flags=0, data=None):
    return errno.errorcode.get(number(libc.mount(source, target, kind, ctypes.c_ulong(flags), data)), 0)
def umount(target):
    return errno.errorcode.get(number(libc.umount2(target, 0)), 0)
def fsopen(kind):
    return errno.errorcode.get(number(libc.syscall(430, kind, 1)), 0)
os.makedirs("/mnt", exist_ok=True)
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A loop device with an ext4 file system that has a device node and a file of user 1000."""
    folder = tmp_path_factory.mktemp("disk")
    tree = folder / "tree"
    tree.mkdir()
    (tree / "file").write_text("on disk\n")
    os.chown(tree / "file", 1000, 1000)
    os.mknod(tree / "disk", 0o60666, Path("/").stat().st_dev)
    file = folder / "image"
    file.touch()
    os.truncate(file, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, file], check=True)
    made = subprocess.run(["losetup", "-f", "--show", file], check=True, capture_output=True, text=True)
    path = made.stdout.strip()
    yield Path(path)
    subprocess.run(["losetup", "-d", path], check=True)


@pytest.fixture(scope="module")
def guest(module_daemon: Daemon, busybox: str, disk: Path) -> Iterator[Guest]:
    config = [f"{PREFIX}mount=true", f"{PREFIX}mount.allowed=ext4,squashfs", f"{PREFIX}mount.shift=true"]
    guest = Guest(module_daemon, busybox, "c1", *config)
    module_daemon.lxc(
        "config", "device", "add", "c1", "disk", "unix-block", f"source={disk}", "path=/dev/disk"
    )
    yield guest
    module_daemon.delete_instances()


def python(guest: Guest, code: str, user: int = 0) -> object:
    return guest.python(_MOUNT + code, user)


def test_a_file_system_of_a_device_is_mounted_with_the_id_map(guest: Guest) -> None:
    found = python(
        guest,
        """
result = mount(b"/dev/disk", b"/mnt", flags=0xC0ED0000 | 0x400, data=b"commit=77")
open("/mnt/new", "w").close()
line = next((line.split() for line in open("/proc/mounts") if " /mnt " in line), [""] * 6)
text = open("/mnt/file").read()
owners = [os.stat(f"/mnt/{name}").st_uid for name in ("file", "new", "lost+found")]
print(json.dumps([result, text, owners, line[0], line[2], line[3].split(","), umount(b"/mnt")]))
""",
    )
    assert isinstance(found, list)
    options = found.pop(5)
    assert found == [0, "on disk\n", [1000, 0, 0], "/dev/disk", "ext4", 0]
    assert {"rw", "nodev", "noatime", "commit=77", "errors=remount-ro"} <= {*options}


def test_the_mount_command_takes_the_same_way(guest: Guest) -> None:
    guest.run("mkdir", "-p", "/mnt")
    guest.run("/usr/bin/mount", "-t", "ext4", "-o", "ro", "/dev/disk", "/mnt")
    assert " /mnt ext4 ro,nodev," in guest.run("cat", "/proc/mounts")
    guest.run("/usr/bin/umount", "/mnt")


def test_new_calls_for_these_file_systems_do_not_exist(guest: Guest) -> None:
    found = python(guest, 'print(json.dumps([fsopen(name) for name in (b"ext4", b"squashfs", b"tmpfs")]))')
    assert found == ["ENOSYS", "ENOSYS", 0]


def test_nodes_on_the_file_system_stay_closed(guest: Guest) -> None:
    """The mount has `nodev`, which root inside can take away; then the device cgroup decides."""
    found = python(
        guest,
        """
def access():
    try:
        os.close(os.open("/mnt/disk", os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno]
MS_REMOUNT_BIND = 0x1020
results = [mount(b"/dev/disk", b"/mnt"), access(), mount(None, b"/mnt", None, MS_REMOUNT_BIND), access()]
print(json.dumps([*results, umount(b"/mnt")]))
""",
    )
    assert found == [0, "EACCES", 0, "EPERM", 0]


def test_what_is_not_allowed_is_refused(guest: Guest) -> None:
    guest.run("mkdir", "-p", "/tmp/folder")
    found = python(
        guest,
        """
def options(text):
    return mount(b"/dev/disk", b"/mnt", data=text)
print(json.dumps({
    "type": mount(b"/dev/disk", b"/mnt", b"xfs"),
    "other type": mount(b"/dev/disk", b"/mnt", b"debugfs"),
    "no type": mount(b"/dev/disk", b"/mnt", None),
    "flag": mount(b"/dev/disk", b"/mnt", flags=64),
    "remount": mount(b"/dev/disk", b"/", flags=32),
    "missing": mount(b"/dev/none", b"/mnt"),
    "folder": mount(b"/tmp/folder", b"/mnt"),
    "character device": mount(b"/dev/null", b"/mnt"),
    "no target": mount(b"/dev/disk", b"/none"),
    "panic": options(b"errors=panic"),
    "journal": options(b"journal_path=/dev/vda"),
    "device": options(b"journal_dev=65024"),
    "unknown": options(b"one=two"),
    "value": options(b"commit=x"),
    "many": options(b",".join([b"acl"] * 40)),
    "long": options(b"acl," * 2000),
    "no memory": mount(b"/dev/disk", 1),
    "left": [line for line in open("/proc/mounts") if " /mnt " in line],
}))
""",
    )
    assert found == {
        "type": "EPERM",
        "other type": "EPERM",
        "no type": "EINVAL",
        "flag": "EPERM",
        "remount": "EPERM",
        "missing": "ENOENT",
        "folder": "ENOTBLK",
        "character device": "ENOTBLK",
        "no target": "ENOENT",
        "panic": "EPERM",
        "journal": "EINVAL",
        "device": "EPERM",
        "unknown": "EINVAL",
        "value": "EINVAL",
        "many": "EPERM",
        "long": "ENAMETOOLONG",
        "no memory": "EFAULT",
        "left": [],
    }


def test_a_device_that_the_cgroup_denies_cannot_be_mounted(guest: Guest, disk: Path) -> None:
    """A node of a disk of the host may get into an instance, as by a disk device of its directory."""
    shared = guest.daemon.home / "nodes"
    shared.mkdir()
    os.mknod(shared / "disk", 0o60666, Path("/").stat().st_dev)
    (shared / "disk").chmod(0o666)
    d = guest.daemon
    d.lxc("config", "device", "add", "c1", "nodes", "disk", f"source={shared}", "path=/nodes")
    try:
        code = 'print(json.dumps([mount(b"/nodes/disk", b"/mnt", flags=flags) for flags in (0, 1)]))'
        assert python(guest, code) == ["EPERM", "EPERM"]
    finally:
        d.lxc("config", "device", "remove", "c1", "nodes")


def test_only_root_of_the_instance_mounts(guest: Guest) -> None:
    """A user can be root of a user namespace of its own."""
    guest.run("chmod", "666", "/dev/disk")
    try:
        code = """
before = mount(b"/dev/disk", b"/mnt")
assert libc.unshare(0x10020000) == 0
print(json.dumps([before, mount(b"/dev/disk", b"/mnt"), fsopen(b"ext4")]))
"""
        assert python(guest, code, user=1000) == ["EPERM", "EPERM", 0]
    finally:
        guest.run("chmod", "660", "/dev/disk")


def test_paths_are_those_of_the_caller_s_root_and_mount_namespace(guest: Guest) -> None:
    found = python(
        guest,
        """
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None) == 0
os.makedirs("/tmp/jail/inner", exist_ok=True)
assert libc.mount(b"/", b"/tmp/jail/inner", None, ctypes.c_ulong(0x1000), None) == 0
assert libc.mount(b"/dev", b"/tmp/jail/inner/dev", None, ctypes.c_ulong(0x5000), None) == 0
os.chroot("/tmp/jail/inner")
os.symlink("../../../../../mnt", "/tmp/link") if not os.path.islink("/tmp/link") else None
os.chdir("/dev")
result = mount(b"disk", b"/tmp/link")
print(json.dumps([result, os.path.exists("/mnt/file")]))
""",
    )
    assert found == [0, True]
    assert " /mnt " not in guest.run("cat", "/proc/mounts")


def test_what_may_be_mounted_changes_while_the_instance_runs(guest: Guest) -> None:
    d = guest.daemon
    attempt = 'print(json.dumps([mount(b"/dev/disk", b"/mnt"), umount(b"/mnt")]))'
    d.lxc("config", "set", "c1", f"{PREFIX}mount.allowed=squashfs")
    assert python(guest, attempt) == ["EPERM", "EINVAL"]
    d.lxc("config", "set", "c1", f"{PREFIX}mount.allowed=ext4,squashfs", f"{PREFIX}mount.shift=false")
    owner = """
mount(b"/dev/disk", b"/mnt")
print(json.dumps([os.stat("/mnt/file").st_uid, umount(b"/mnt")]))
"""
    assert python(guest, owner) == [65534, 0]
    d.lxc("config", "set", "c1", f"{PREFIX}mount.shift=true")
    assert python(guest, owner) == [1000, 0]


def is_in_use(disk: Path) -> bool:
    """Whether any mount namespace has it mounted."""
    try:
        os.close(os.open(disk, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def test_a_mount_is_gone_with_its_instance(guest: Guest, disk: Path) -> None:
    """Also one that the daemon does not know of."""
    assert python(guest, 'print(json.dumps(mount(b"/dev/disk", b"/mnt")))') == 0
    assert is_in_use(disk)
    guest.daemon.lxc("restart", "-f", "c1")
    until(lambda: not is_in_use(disk))
    assert python(guest, 'print(json.dumps([mount(b"/dev/disk", b"/mnt"), umount(b"/mnt")]))') == [0, 0]


# ---- FUSE


def test_a_program_of_fuse_mounts_in_place_of_the_kernel(guest: Guest) -> None:
    d = guest.daemon
    d.lxc("config", "set", "c1", f"{PREFIX}mount.fuse=ext4=fuse2fs,xfs=missing")
    try:
        found = python(
            guest,
            """
results = [mount(b"/dev/disk", b"/mnt", flags=1, data=b"allow_other"), mount(b"/dev/disk", b"/tmp", b"xfs")]
kind = next(line.split()[2] for line in open("/proc/mounts") if " /mnt " in line)
print(json.dumps([results, kind, open("/mnt/file").read(), mount(b"/dev/none", b"/tmp")]))
""",
        )
        assert found == [[0, "ENODEV"], "fuse.ext4", "on disk\n", "EINVAL"]
        status = guest.run("sh", "-c", "cat /proc/$(pidof fuse2fs)/status")
        assert "\nSeccomp:\t2\n" in status
        cgroup = guest.run("sh", "-c", "cat /proc/$(pidof fuse2fs)/cgroup")
        assert cgroup == guest.run("cat", "/proc/self/cgroup")
        guest.run("/usr/bin/umount", "/mnt")
    finally:
        d.lxc("config", "unset", "c1", f"{PREFIX}mount.fuse")
