"""Detection of what a daemon has left behind on the host.

Objects are attributed to the daemon by the name of its state directory, so that concurrent tests do not
affect each other. Network interfaces have no such name: new ones are only reported if no other container
manager is running in the same network namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PLACES = ("/run", "/tmp", "/var/tmp", "/dev/shm", "/var/lib/lxc", "/var/log/lxc", "/var/cache/lxc", "/etc")
LIBLXC_LOCKS = "/run/lxc/lock"
HOME_PREFIX = "ut-"
"""Of the folders of tests' daemons, into which no other daemon puts anything."""
_OF_TESTS = (HOME_PREFIX, "pytest-of-", "utsuwa-tests-")
"""Folders that are not searched: those, and those of the tests themselves, which get thousands of files."""
MANAGERS = ("utsuwa.daemon.main", "utsuwad", "lxd", "incusd")


@dataclass(frozen=True)
class HostState:
    """The state of the host before the daemon's start that cannot be attributed by name."""

    interfaces: frozenset[str]

    @classmethod
    def now(cls) -> HostState:
        return cls(frozenset(_interfaces()))


def find_leaks(folder: Path, owner: str, before: HostState, patience: float = 30) -> list[str]:
    """Return what the daemon in `folder` has left on the host, one line each.

    `owner` is the name of the daemon's cgroups and tables. Waits up to `patience` seconds for objects that
    disappear by themselves, such as ending processes.
    """
    deadline = time.monotonic() + patience
    while True:
        found = list(_all_leaks(folder, owner, before))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _all_leaks(folder: Path, owner: str, before: HostState) -> Iterator[str]:
    yield from (f"mount: {m}" for m in mounts_below(folder))
    yield from (f"loop device: {d} with {f}" for d, f in loop_devices(folder))
    yield from (f"process: {pid} {what}" for pid, what in processes_of(folder))
    yield from (f"file outside: {f}" for f in _files_named(folder))
    yield from (f"cgroup: {path}" for path in cgroups_of(owner))
    yield from (f"firewall table: {table}" for table in _nft_tables() if owner in table)
    new = sorted(set(_interfaces()) - before.interfaces)
    if new and not _other_managers(str(folder)):
        yield from (f"network interface: {name}" for name in new)


def mounts_below(folder: Path, pid: int | None = None) -> list[str]:
    """Return the mount points of process `pid` at or below the folder, in mount order."""
    points = []
    for line in Path("/proc", str(pid or "self"), "mountinfo").read_text().splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if point == str(folder) or point.startswith(f"{folder}/"):
            points.append(point)
    return points


def loop_devices(folder: Path) -> list[tuple[str, str]]:
    """Return (device, backing file) of the loop devices with files below the folder."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = backing.read_text().strip()
        except OSError:  # detached meanwhile
            continue
        if file.startswith(f"{folder}/"):
            found.append((backing.parts[3], file))
    return found


def processes_of(folder: Path) -> list[tuple[int, str]]:
    """Return (pid, command) of processes that refer to the folder in argv, environment, cwd or root."""
    token = os.fsencode(str(folder))
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        here = Path("/proc", str(pid))
        command = _read(here / "cmdline")
        links = b"".join(os.fsencode(_link(here / name)) for name in ("cwd", "root", "exe"))
        if token in command or token in links or token in _read(here / "environ"):
            found.append((pid, command.replace(b"\0", b" ").decode(errors="replace")[:200]))
    return found


def open_files(pid: int) -> set[str]:
    """Return what a process has open, without what it closes meanwhile."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended, or is a kernel thread
        return b""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _other_managers(token: str) -> bool:
    """Return whether another daemon that creates interfaces and tables runs in this network namespace."""
    own = _link(Path("/proc/self/ns/net"))
    for pid in _pids():
        here = Path("/proc", str(pid))
        words = [Path(w).name for w in _read(here / "cmdline").decode(errors="replace").split("\0")]
        if (
            any(word in MANAGERS for word in words[:3])
            and _link(here / "ns/net") == own
            and token not in str(_read(here / "environ"))
        ):
            return True
    return False


def _files_named(folder: Path) -> Iterator[str]:
    """Return files and directories elsewhere whose names contain that of the folder, not their contents."""
    for place in PLACES:
        for top, folders, files in os.walk(place):
            named = [f"{top}/{name}" for name in (*folders, *files) if folder.name in name]
            yield from (path for path in named if path != str(folder) and not _is_empty_lock_folder(path))
            deeper = [f for f in folders if folder.name not in f and not f.startswith(_OF_TESTS)]
            folders[:] = deeper if top.count("/") < 8 else []


def _is_empty_lock_folder(path: str) -> bool:
    """Return whether it is one of liblxc's directories for lock files, which it never removes."""
    return path.startswith(f"{LIBLXC_LOCKS}/") and not any(files for _, _, files in os.walk(path))


def remove_lock_folders(folder: Path) -> None:
    """Remove the empty directories that liblxc leaves for its lock files."""
    locks = Path(LIBLXC_LOCKS) / folder.relative_to("/")
    for top, _, _ in os.walk(locks, topdown=False):
        Path(top).rmdir()


def _interfaces() -> list[str]:
    return [entry.name for entry in Path("/sys/class/net").iterdir()]


def _nft_tables() -> list[str]:
    listed = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=True, text=True)
    objects = json.loads(listed.stdout)["nftables"]
    return [f"{o['table']['family']} {o['table']['name']}" for o in objects if "table" in o]


def cgroups_of(owner: str) -> Iterator[str]:
    """Return the cgroups of the daemon in every hierarchy."""
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        yield from (f"{top}/{name}" for name in folders if name.startswith(owner))
