"""Programs that decide on devices, which an unprivileged instance loads and attaches below its own cgroup."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.system.test_interception import CALLS, FUSE, PREFIX, Guest, kill_workers, workers
from utsuwa.host import bpf
from utsuwa.host.cgroups import tree

pytestmark = pytest.mark.root

_BPF = """
import struct, subprocess
NUMBER = {"x86_64": 321}.get(os.uname().machine, 280)
def bpf(command, attributes, size=None):
    buffer = attributes if isinstance(attributes, int) else ctypes.create_string_buffer(attributes, 5000)
    size = len(attributes) if size is None else size
    result = libc.syscall(ctypes.c_long(NUMBER), ctypes.c_long(command), buffer, ctypes.c_long(size))
    return -ctypes.get_errno() if result < 0 else result
def insn(code, registers=0, offset=0, value=0):
    return struct.pack("=BBhi", code, registers, offset, value)
RETURN = insn(0x95)
ALLOW, DENY = insn(0xb7, value=1) + RETURN, insn(0xb7) + RETURN
# r2 = minor; r0 = 1; if r2 != 7 exit; r0 = 0; exit: denies /dev/full
NO_FULL = insn(0x61, 0x12, 8) + insn(0xb7, value=1) + insn(0x55, 0x02, 1, 7) + insn(0xb7) + RETURN
kept = []
def load(code=ALLOW, kind=15, count=None, at=None, license=b"GPL", log=b"", level=0, flags=0, extra=b"",
        **more):
    text, program = ctypes.create_string_buffer(license), ctypes.create_string_buffer(code, len(code))
    kept.extend((text, program))
    address = ctypes.addressof(program) if at is None else at
    license_at = more.get("license_at", ctypes.addressof(text))
    log_at = more.get("log_at", ctypes.addressof(log) if log else 0)
    attributes = struct.pack("=IIQQIIQII16sII", kind, len(code) // 8 if count is None else count, address,
        license_at, level, len(log), log_at, 0, flags, b"test", 0, more.get("expected", 0)) + extra
    return bpf(5, attributes, more.get("size"))
def attach(cgroup, program, flags=2, kind=6, replace=0, extra=b""):
    return bpf(8, struct.pack("=5I", cgroup & 0xffffffff, program & 0xffffffff, kind, flags, replace) + extra)
def detach(cgroup, program, flags=0):
    return bpf(9, struct.pack("=4I", cgroup, program & 0xffffffff, 6, flags))
def name(result):
    return "ok" if result >= 0 else errno.errorcode[-result]
mounts = [line.split() for line in open("/proc/self/mounts")]
ROOT = next(words[1] for words in mounts if words[2] == "cgroup2")
def group(path, create=True):
    if create:
        os.makedirs(ROOT + path, exist_ok=True)
    return os.open(ROOT + path, os.O_RDONLY)
def opened(path, group):
    '''What a process in a cgroup gets when it opens a device.'''
    code = f"echo 0 > {ROOT}{group}/cgroup.procs && exec 3<{path}"
    return subprocess.run(["sh", "-c", code], stderr=subprocess.DEVNULL).returncode == 0
"""


@pytest.fixture(scope="module")
def guest(module_daemon: Daemon, busybox: str) -> Iterator[Guest]:
    config = [f"{PREFIX}{key}=true" for key in ("bpf", "bpf.devices", "mknod", "mount")]
    yield Guest(module_daemon, busybox, "c1", *config)
    module_daemon.delete_instances()


def python(guest: Guest, code: str, user: int = 0, timeout: float = 60) -> object:
    return guest.python(_BPF + code, user, timeout)


def test_a_device_program_takes_away_a_device(guest: Guest) -> None:
    found = python(
        guest,
        """
a, program = group("/a/b"), load(NO_FULL)
assert program >= 0, name(program)
before = opened("/dev/full", "/a/b")
results = [attach(a, program), opened("/dev/full", "/a/b"), opened("/dev/null", "/a/b")]
results += [detach(a, program), opened("/dev/full", "/a/b")]
print(json.dumps([before, os.get_inheritable(program), *results]))
""",
    )
    assert found == [True, False, 0, False, True, 0, True]


def test_the_host_s_rules_stay_in_force(guest: Guest) -> None:
    """A program that allows everything allows nothing that the instance's own cgroup denies."""
    own = tree.folders_of(guest.pid)[tree.UNIFIED]
    fd = os.open(own, os.O_RDONLY)
    try:
        no_zero = bpf.INSTRUCTION.pack(0x61, 0x12, 8, 0) + bpf.INSTRUCTION.pack(0xB7, 0, 0, 1)
        no_zero += bpf.INSTRUCTION.pack(0x55, 0x02, 1, 5) + bpf.INSTRUCTION.pack(0xB7, 0, 0, 0)
        program = bpf.load(no_zero + bpf.INSTRUCTION.pack(0x95, 0, 0, 0), b"GPL", b"host")
        code = """
results = []
for flags in (0, 1, 2):
    path = f"/flags{flags}"
    child, fd, mine = group(path + "/below"), group(path), load()
    results.append([attach(fd, mine, flags), opened("/dev/zero", path), opened("/dev/null", path)])
    results[-1] += [attach(child, load(), flags), opened("/dev/zero", path + "/below")]
second = load()
results += [attach(fd, second, 6, replace=mine), detach(fd, mine), detach(fd, second)]
print(json.dumps([[name(value) if value is not True and value is not False else value for value in found]
    if isinstance(found, list) else name(found) for found in results]))
"""
        bpf.attach(fd, program, bpf.F_ALLOW_MULTI)
        try:
            found = python(guest, code)
        finally:
            bpf.detach(fd, program)
        assert isinstance(found, list)
        single, override, multi, *replaced = found
        # A program below one of the instance's own without a flag: the kernel does not let it be overridden.
        assert single == ["ok", False, True, "EPERM", False]
        assert override == ["ok", False, True, "ok", False]
        assert multi == ["ok", False, True, "ok", False]
        assert replaced == ["ok", "ENOENT", "ok"]
        # Here one below would take the place of the host's.
        bpf.attach(fd, program, bpf.F_ALLOW_OVERRIDE)
        try:
            found = python(
                guest, 'print(json.dumps([attach(group("/o"), load()), opened("/dev/zero", "/o")]))'
            )
        finally:
            bpf.detach(fd, program)
        assert found == [-1, False]
        os.close(program)
    finally:
        os.close(fd)


def test_other_programs_and_calls_are_refused(guest: Guest) -> None:
    found = python(
        guest,
        """
call = insn(0x85, value=5) + ALLOW
print(json.dumps({key: name(value) for key, value in {
    "plain": load(),
    "expected": load(expected=6),
    "longer": load(extra=bytes(200)),
    "4096": load(insn(0xb7, value=1) * 4095 + RETURN),
    "licence": load(license=b""),
    "socket filter": load(kind=1),
    "kprobe": load(kind=2),
    "cgroup skb": load(kind=8),
    "tracing": load(kind=26),
    "flags": load(flags=2),
    "wrong kind": load(expected=2),
    "more attributes": load(extra=struct.pack("=I", 3)),
    "no instructions": load(count=0),
    "4097": load(insn(0xb7, value=1) * 4096 + RETURN),
    "huge": load(count=0xffffffff),
    "no memory": load(at=1),
    "kernel's memory": load(at=0xffffffff81000000),
    "beyond the end": load(at=2**64 - 8, count=4000),
    "no licence": load(license_at=1),
    "long licence": load(license=b"G" * 200),
    "no attributes": bpf(5, 1, 72),
    "size 0": bpf(5, b"", 0),
    "short": load(size=20),
    "too large": load(size=4097),
    "negative size": load(size=-1),
    "calls": load(call),
    "own function": load(insn(0x85, 0x10, value=1) + RETURN + ALLOW),
    "register call": load(insn(0x8d) + ALLOW),
    "map": load(insn(0x18, 0x11, value=3) + insn(0) + ALLOW),
    "constant": load(insn(0x18, 0x01, value=3) + insn(0) + ALLOW),
    "map index": load(insn(0x18, 0x51) + insn(0) + ALLOW),
    "may goto": load(insn(0xe5) + ALLOW),
    "endless": load(insn(0x05, offset=-1) + RETURN),
    "no result": load(RETURN),
    "pointer": load(insn(0xbf, 0x10) + RETURN),
    "writes context": load(insn(0x62, 0x01, 8) + ALLOW),
    "map creation": bpf(0, struct.pack("=4I", 2, 4, 4, 1)),
    "next program": bpf(11, struct.pack("=3I", 0, 0, 0)),
    "query": bpf(16, struct.pack("=4IQ2I", group("/q"), 6, 0, 0, 0, 0, 0)),
    "unknown": bpf(999, bytes(16)),
}.items()}))
""",
    )
    assert isinstance(found, dict)
    unknown = found.pop("unknown")
    sizes = {key: found.pop(key) for key in ("size 0", "short", "too large", "negative size")}
    assert "ok" not in sizes.values()
    assert unknown in ("EINVAL", "EPERM")
    assert found == {
        **dict.fromkeys(("plain", "expected", "longer", "4096", "licence", "constant"), "ok"),
        **dict.fromkeys(("socket filter", "kprobe", "cgroup skb", "tracing", "flags", "wrong kind"), "EPERM"),
        **dict.fromkeys(("no instructions", "4097", "huge"), "E2BIG"),
        **dict.fromkeys(("no memory", "kernel's memory", "beyond the end", "no licence"), "EFAULT"),
        **dict.fromkeys(("calls", "own function", "register call", "map", "map index", "may goto"), "EPERM"),
        **dict.fromkeys(("map creation", "next program", "query", "more attributes"), "EPERM"),
        **dict.fromkeys(("no result", "pointer", "writes context"), "EACCES"),
        "endless": "EINVAL",
        "long licence": "ENAMETOOLONG",
        "no attributes": "EFAULT",
    }


def test_the_verifier_s_log_is_written_to_the_instance(guest: Guest) -> None:
    found = python(
        guest,
        """
log, small = ctypes.create_string_buffer(b"x" * 9999, 10000), ctypes.create_string_buffer(200)
results = [name(load(RETURN, log=log, level=1)), "R0 !read_ok" in log.value.decode()]
results += [name(load(NO_FULL, log=log, level=1)), log.value.decode().startswith("processed")]
results += [name(load(NO_FULL, log=small, level=2)), 0 < len(small.value) < 200]
# The whole log would be longer than what is kept of one.
long, huge = insn(0xb7, value=1) * 4095, ctypes.create_string_buffer(1 << 20)
results += [name(load(long + RETURN, log=huge, level=2)), 60000 < len(huge.value) < 1 << 16]
results += [name(load(long + insn(0xbf, 0x10), log=huge, level=2))]
print(json.dumps(results))
""",
    )
    assert found == ["EACCES", True, "ok", True, "ENOSPC", True, "ok", True, "EINVAL"]


def test_a_program_whose_log_cannot_be_written_is_gone(guest: Guest) -> None:
    code = """
small = ctypes.create_string_buffer(200)
print(json.dumps([name(load(log=small, log_at=1, level=1)) for _ in range(5)]))
"""
    assert python(guest, code) == ["EFAULT"] * 5
    assert [file for pid in workers(guest) for file in open_files(pid) if "bpf-prog" in file] == []


def open_files(pid: int) -> list[str]:
    return [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]


def test_programs_are_attached_below_the_instance_s_cgroup_only(guest: Guest) -> None:
    """Also if the instance can open the directory of another one, as with a disk device of the host's."""
    d = guest.daemon
    mount = tree.unified_mount()
    d.lxc("config", "device", "add", "c1", "host", "disk", f"source={mount}", "path=/host", "readonly=true")
    try:
        found = python(
            guest,
            """
mine, other, fd = group("/t"), load(DENY), load()
listener, memory = os.open("/dev/null", os.O_RDONLY), os.memfd_create("anon_inode:bpf-prog")
file = os.open(ROOT + "/t/cgroup.procs", os.O_RDONLY)
path = os.open(ROOT + "/t", os.O_PATH)
host = os.open("/host", os.O_RDONLY)
own = next(line.split("::")[1].strip() for line in open("/proc/self/cgroup") if line.startswith("0::"))
there = [entry.path for entry in os.scandir("/host") if entry.is_dir()]
print(json.dumps({key: name(value) for key, value in {
    "path": attach(path, fd),
    "again": attach(mine, fd),
    "own root": attach(group("", False), other),
    "host": attach(host, other),
    **{f"there {index}": attach(os.open(path, os.O_RDONLY), other) for index, path in enumerate(there)},
    "file": attach(file, fd),
    "another folder": attach(os.open("/tmp", os.O_RDONLY), fd),
    "v1": attach(os.open("/sys", os.O_RDONLY), fd),
    "no cgroup": attach(99, fd),
    "negative cgroup": attach(-1, fd),
    "no program": attach(mine, 99),
    "a file": attach(mine, listener),
    "memory": attach(mine, memory),
    "other kind": attach(mine, fd, kind=0),
    "unknown kind": attach(mine, fd, kind=999),
    "both flags": attach(mine, fd, 3),
    "preorder": attach(mine, fd, 64 | 2),
    "before": attach(mine, fd, 8 | 2),
    "all flags": attach(mine, fd, 0xffffffff),
    "replaces nothing": attach(mine, fd, 6, replace=99),
    "replaces by a file": attach(mine, fd, 6, replace=listener),
    "without its flag": attach(mine, fd, 2, replace=other),
    "more": attach(mine, fd, extra=struct.pack("=I", 1)),
    "no memory": bpf(8, 1, 20),
    "upper bits": bpf(1 << 32 | 8, struct.pack("=4I", host, other, 6, 2)),
    "flags of the command": bpf(1 << 16 | 8, struct.pack("=4I", host, other, 6, 2)),
    "link": bpf(28, struct.pack("=4I", other, host, 6, 0)),
    "own link": bpf(28, struct.pack("=4I", fd, mine, 6, 0)),
    "update": bpf(29, struct.pack("=4I", fd, mine, 6, 0)),
    "detach flags": detach(mine, fd, 2),
    "detach no program": detach(mine, -1),
    "detach other": detach(mine, other),
    "detach host": detach(host, fd),
    "detach": detach(mine, fd),
    "detach twice": detach(mine, fd),
}.items()}))
""",
        )
    finally:
        d.lxc("config", "device", "remove", "c1", "host")
    assert isinstance(found, dict)
    assert "there 0" in found
    assert found.pop("both flags") == "EINVAL"
    assert found.pop("again") in ("EINVAL", "EEXIST")
    expected = dict.fromkeys(found, "EPERM")
    expected |= dict.fromkeys(("path", "detach"), "ok") | dict.fromkeys(
        ("detach other", "detach twice"), "ENOENT"
    )
    expected |= dict.fromkeys(("no cgroup", "negative cgroup", "no program", "detach no program"), "EBADF")
    assert found == expected | {"replaces nothing": "EBADF", "no memory": "EFAULT"}


def test_who_is_not_root_of_the_instance_gets_nothing(guest: Guest) -> None:
    """The kernel would let everybody attach a program of whom it has a descriptor."""
    found = python(
        guest,
        """
mine, fd = group("/u"), load()
pid = os.fork()
def refused():
    return [name(load()), name(attach(mine, fd)), name(detach(mine, fd))]
if pid == 0:
    os.setresuid(1000, 1000, 1000)
    as_user = refused()
    libc.unshare(0x10000000)
    open("/tmp/said", "w").write(json.dumps([as_user, refused()]))
    os._exit(0)
os.waitpid(pid, 0)
results = []
def from_thread():
    results.append([name(load()), name(attach(mine, fd))])
thread = threading.Thread(target=from_thread)
thread.start()
thread.join()
print(json.dumps([json.load(open("/tmp/said")), results]))
""",
    )
    assert found == [[["EPERM"] * 3] * 2, [["ok", "ok"]]]


_CALL_32 = r"""
import mmap
page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, 7)  # below 4 GiB, executable
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
def bpf32(command, attributes):
    page[1024:1024 + len(attributes)] = attributes
    code = b"\x53\xb8" + struct.pack("=I", 357) + b"\xbb" + struct.pack("=I", command)
    code += b"\xb9" + struct.pack("=I", at + 1024) + b"\xba" + struct.pack("=I", len(attributes))
    page[:len(code) + 4] = code + b"\xcd\x80\x5b\xc3"  # int 0x80; pop; ret
    pid = os.fork()
    if pid == 0:
        os._exit(min(255, -ctypes.CFUNCTYPE(ctypes.c_int)(at)()))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="calls of 32-bit programs on x86")
def test_calls_of_32_bit_programs_are_refused(guest: Guest) -> None:
    found = python(
        guest,
        f"{_CALL_32}\n"
        """
mine, fd = group("/c"), load()
print(json.dumps([
    bpf32(8, struct.pack("=4I", mine, fd, 6, 2)),
    bpf32(28, struct.pack("=4I", fd, mine, 6, 0)),
    name(detach(mine, fd)),
]))
""",
    )
    assert found in ([errno.EPERM, errno.EPERM, "ENOENT"], [-11, -11, "ENOENT"])  # or not emulated here


def test_programs_of_fuse_attach_nothing(guest: Guest) -> None:
    """Their calls are not intercepted."""
    d = guest.daemon
    script = f"#!/usr/bin/python3 -S\n{CALLS}{_BPF}results = [name(attach(-1, -1)), name(load())]\n"
    if os.uname().machine == "x86_64":
        script += f"{_CALL_32}\nresults.append(bpf32(8, struct.pack('=4I', 99, 99, 6, 2)))\n"
    script += 'json.dump(results, open("/tmp/results", "w"))\n'
    d.lxc("config", "set", "c1", f"{PREFIX}mount.fuse=ext4=attaches")
    try:
        found = python(
            guest,
            f"script = {script!r}\n"
            """
with open("/bin/attaches", "w") as file:
    file.write(script)
os.chmod("/bin/attaches", 0o755)
result = number(libc.mount(b"none", b"/tmp", b"ext4", ctypes.c_ulong(0), None))
print(json.dumps([result, *json.load(open("/tmp/results"))]))
""",
        )
    finally:
        d.lxc("config", "unset", "c1", f"{PREFIX}mount.fuse")
    assert isinstance(found, list)
    assert found[:3] == [0, "EPERM", "EPERM"]
    assert found[3:] in ([], [errno.EPERM], [-11])  # or not emulated here


def test_a_file_system_that_does_not_respond_hinders_no_other_call(guest: Guest) -> None:
    """Who closes a file of it waits for its server."""
    found = python(
        guest,
        f"{FUSE}\n"
        """
open("/tmp/deaf", "w").close()
server = fuse(b"/tmp/deaf", stat.S_IFREG, deaf={25})  # FUSE_FLUSH
try:
    file, mine, fd = os.open("/tmp/deaf", os.O_RDONLY), group("/w"), load()
    refused = [attach(file, fd), attach(mine, file), attach(mine, fd, 6, replace=file)]
    results = [attach(mine, fd), detach(mine, fd)]
finally:
    os.kill(server, 9)
    os.waitpid(server, 0)
print(json.dumps([[name(result) for result in refused], results]))
""",
    )
    assert found == [["EACCES", "EPERM", "EPERM"], [0, 0]]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_number_of_programs_is_limited(guest: Guest) -> None:
    """Those that are gone do not count; a new worker finds the others by their name."""
    found = python(
        guest,
        """
fds, failed = [], 0
while not failed and len(fds) < 2000:
    fd = load()
    failed = fd if fd < 0 else 0
    fds += [fd] if fd >= 0 else []
enough = len(fds) <= 1000, name(failed)
for fd in fds:
    os.close(fd)
print(json.dumps([*enough, name(load())]))
""",
        timeout=300,
    )
    assert found == [True, "ENOMEM", "ok"]


def test_a_descriptor_too_many_and_a_killed_worker(guest: Guest) -> None:
    found = python(
        guest,
        """
import resource
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (4, limits[1]))
kept.append([os.open("/dev/null", os.O_RDONLY)])
results = [name(load())]
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(json.dumps([*results, name(load())]))
""",
    )
    assert found == ["EMFILE", "ok"]
    kill_workers(guest)
    again = 'fd = load(); print(json.dumps([name(attach(group("/k"), fd)), name(detach(group("/k"), fd))]))'
    assert python(guest, again) == ["ok", "ok"]


def test_programs_are_part_of_the_memory_of_the_instance(guest: Guest) -> None:
    found = python(
        guest,
        """
memory = "/sys/fs/cgroup/memory/memory.usage_in_bytes"
if not os.path.exists(memory):
    memory = ROOT + "/memory.current"
before = int(open(memory).read())
fds = [load(insn(0xb7, value=1) * 4095 + RETURN) for _ in range(60)]
print(json.dumps([min(fds) > 2, int(open(memory).read()) - before]))
""",
    )
    assert isinstance(found, list)
    assert found[0]
    assert found[1] > 60 * 4096 * 8


def test_keys_of_which_one_lacks_the_other_have_no_effect(guest: Guest) -> None:
    d = guest.daemon
    d.lxc("stop", "-f", "c1")
    d.lxc("config", "set", "c1", f"{PREFIX}bpf=false")
    d.lxc("start", "c1")
    try:
        assert python(guest, "print(json.dumps(name(load())))") == "EPERM"
        d.lxc("stop", "-f", "c1")
        d.lxc("config", "set", "c1", f"{PREFIX}bpf=true", f"{PREFIX}bpf.devices=false")
        d.lxc("start", "c1")
        assert python(guest, "print(json.dumps(name(load())))") == "EPERM"
    finally:
        d.lxc("stop", "-f", "c1")
        d.lxc("config", "set", "c1", f"{PREFIX}bpf=true", f"{PREFIX}bpf.devices=true")
        d.lxc("start", "c1")
