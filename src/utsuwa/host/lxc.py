"""Starting of containers by `lxc-start`, and extracting the reason from liblxc's log if that fails."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError, ProcessFailed, StartFailed
from utsuwa.core.threads import in_thread
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import PATH, run

START_TIMEOUT = 120.0
"""Timeout in seconds until the container runs, including its hooks and mounts."""

END_TIMEOUT = 10.0
"""Seconds to wait for a monitor to exit by itself."""
_LABEL = Path("/proc/self/attr/apparmor/current")
_STARTERS = ("lxc-start", "lxc-checkpoint")
"""The programs whose processes become monitors, or wait for that."""
_LOG_TAIL = 128 * 1024
_MAX_REASONS = 4

# `lxc-start web 20240101120000.000 ERROR    start - ../src/lxc/start.c:start:2197 - the reason`
_LINE = re.compile(r"\S+ (?:.* )?[0-9]{14}\.[0-9]{3} (?P<level>[A-Z]+) +\S+ - \S+:\S+:[0-9]+ - (?P<text>.*)")
# Messages that liblxc logs on every failure, regardless of the reason.
_NOISE = (
    "An error occurred in another process",
    "Failed to initialize container",
    "Failed to setup container",
    "Failed to spawn container",
    "The container failed to start",
    "To get more details",
    "Additional information can be obtained",
    "Received container state",
    "Container is not defined",
    "Error: ",
)


@dataclass(frozen=True)
class Pids:
    """Processes of a running container."""

    init: int
    monitor: int


async def start(
    name: str, lxcpath: Path, conf: Path, log: Path, *, level: str = "ERROR", own_hooks: bool = False
) -> Pids | None:
    """Start a container and return once it runs; liblxc's monitor process stays with it.

    Returns its processes, or None if they cannot be determined or have ended already. `log` is overwritten.
    `own_hooks` means that the configuration contains hooks of the user, which need a PATH. Without PATH,
    liblxc writes the id maps itself instead of starting four programs; shells use their default PATH then.
    Raises StartFailed, whose message is the reason from the log, HostError if lxc is missing.
    """
    pidfile = conf.with_name("lxc.pid")
    program = await in_thread(_prepare, log, pidfile)
    argv = [*program, "-d", "-n", name, "-P", str(lxcpath), "-f", str(conf), "-o", str(log), "-l", level]
    try:
        await run([*argv, "-p", str(pidfile)], timeout=START_TIMEOUT, env={} if own_hooks else {"PATH": None})
    except ProcessFailed as error:
        reason = await in_thread(logged, log) or error.stderr.strip() or error.message
        raise StartFailed(reason) from error
    return await in_thread(_started, pidfile, name, lxcpath)


def restore_command(name: str, lxcpath: Path, conf: Path, log: Path, images: Path) -> list[str]:
    """Return the command that restores a container with the `criu` that is first in its PATH.

    It returns once the container runs; liblxc's monitor stays with it.
    """
    argv = ["lxc-checkpoint", "-r", "-n", name, "-P", str(lxcpath), "--rcfile", str(conf)]
    return [*argv, "-D", str(images), "-o", str(log), "-l", "ERROR"]


def _prepare(log: Path, pidfile: Path) -> list[str]:
    """Remove the files of the last start; return the program to run. Raises HostError if it is missing."""
    program = shutil.which("lxc-start", path=PATH)
    if program is None:
        raise HostError("lxc-start is missing: install Debian's package 'lxc'")
    for file in (log, pidfile):
        file.unlink(missing_ok=True)
    return [*_outside_profiles(), program]


def _started(pidfile: Path, name: str, lxcpath: Path) -> Pids | None:
    """The monitor has written its own pid; init is its child with pid 1 in its own PID namespace."""
    try:
        monitor = int(pidfile.read_text())
        process = Path(f"/proc/{monitor}")
        if _container_of(process / "cmdline", str(lxcpath)) != name:
            return None
        for child in (process / f"task/{monitor}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            if re.search(r"^NSpid:.*\s1$", status, re.MULTILINE):
                return Pids(int(child), monitor)
    except (OSError, ValueError):  # it has just ended, or the kernel does not show it
        return None
    return None


def _outside_profiles() -> list[str]:
    """Return the prefix of `lxc-start` for running without an AppArmor profile; empty if not needed.

    Debian and Ubuntu ship a profile for it that only allows changing to their own container profiles.
    """
    try:
        label = _LABEL.read_bytes()
    except OSError:
        return []  # no AppArmor, or not enabled
    program = shutil.which("aa-exec", path=PATH)
    return [program, "-p", "unconfined", "--"] if program and label.rstrip(b"\n\0") == b"unconfined" else []


async def wait_until_gone(name: str, lxcpath: Path) -> None:
    """Wait until liblxc has no more processes for a container, and kill those that do not exit."""
    pids = (await in_thread(active, lxcpath)).get(name, [])
    try:
        async with asyncio.timeout(END_TIMEOUT):
            for pid in pids:
                await pidfds.wait(pid)
    except TimeoutError:
        for pid in pids:
            pidfds.kill(pid)
            await pidfds.wait(pid)


def active(lxcpath: Path) -> dict[str, list[int]]:
    """Return the names of containers below `lxcpath` with the pids of liblxc's processes for them.

    A container that is starting or stopping has such processes, but possibly no init.
    """
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (name := _container_of(entry / "cmdline", str(lxcpath))):
            found.setdefault(name, []).append(int(entry.name))
    return found


def _container_of(cmdline: Path, lxcpath: str) -> str | None:
    """Return the container of a liblxc process, from the monitor's title or the arguments of `lxc-start`."""
    try:
        argv = cmdline.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return None
    title, found, name = argv[0].rpartition(f" {lxcpath} ")
    if found and title.startswith("[lxc monitor]"):
        return name
    if Path(argv[0]).name in _STARTERS and "-P" in argv and argv[argv.index("-P") + 1 :][:1] == [lxcpath]:
        return argv[argv.index("-n") + 1]
    return None


def logged(log: Path) -> str:
    """Return the reasons at the end of a log, empty if there are none. Blocking."""
    return reasons(_tail(log))


def reasons(log: str) -> str:
    """Return the last errors of a liblxc log as one sentence, without duplicates and source locations."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        match = _LINE.match(line)
        if match and match["level"] in ("ERROR", "FATAL", "CRIT") and not match["text"].startswith(_NOISE):
            text = match["text"].strip()
            found.pop(text, None)
            found[text] = None
    return "; ".join(list(found)[-_MAX_REASONS:])


def monitor_pid(init_pid: int) -> int | None:
    """Return the pid of liblxc's monitor, the parent of the container's init; None if init is gone."""
    try:
        stat = Path(f"/proc/{init_pid}/stat").read_bytes()
    except OSError:
        return None
    parent = int(stat.rpartition(b")")[2].split()[1])
    return parent if parent > 1 else None


def _tail(path: Path) -> str:
    """Return the end of a log of any size."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read(_LOG_TAIL).decode(errors="replace")
    except OSError:
        return ""
