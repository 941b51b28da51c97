"""Starting containers by `lxc-start`, and reading from liblxc's log why one did not start."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import HostError, ProcessFailed, StartFailed
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import PATH, run

START_TIMEOUT = 120.0
"""Seconds that liblxc gets until the container runs; its hooks and mounts are within."""

END_TIMEOUT = 10.0
"""Seconds that a monitor gets to end by itself."""
_LABEL = Path("/proc/self/attr/apparmor/current")
_LOG_TAIL = 128 * 1024
_MAX_REASONS = 4

# `lxc-start web 20240101120000.000 ERROR    start - ../src/lxc/start.c:start:2197 - the reason`
_LINE = re.compile(r"\S+ (?:.* )?[0-9]{14}\.[0-9]{3} (?P<level>[A-Z]+) +\S+ - \S+:\S+:[0-9]+ - (?P<text>.*)")
# What liblxc says on every failure, whatever its reason.
_NOISE = (
    "An error occurred in another process",
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
    """Of a container that runs."""

    init: int
    monitor: int


async def start(
    name: str, lxcpath: Path, conf: Path, log: Path, *, level: str = "ERROR", own_hooks: bool = False
) -> Pids | None:
    """Start a container and return once it runs; a monitor process of liblxc stays with it.

    Gives its processes; None where they are not plain to see, or have ended at once. `log` is written anew.
    `own_hooks` says that the configuration has programs of others in it, which get a PATH. Without one
    liblxc writes the id maps itself, in place of four programs that it would start for that; a shell then
    takes its own default.
    Raises StartFailed with the reason from the log, HostError where lxc is missing.
    """
    pidfile = conf.with_name("lxc.pid")
    program = await asyncio.to_thread(_prepare, log, pidfile)
    argv = [*program, "-d", "-n", name, "-P", str(lxcpath), "-f", str(conf), "-o", str(log), "-l", level]
    try:
        await run([*argv, "-p", str(pidfile)], timeout=START_TIMEOUT, env={} if own_hooks else {"PATH": None})
    except ProcessFailed as error:
        reason = await asyncio.to_thread(logged, log) or error.stderr.strip() or error.message
        raise StartFailed(f"Failed to start the container: {reason}") from error
    return await asyncio.to_thread(_started, pidfile, name, lxcpath)


def _prepare(log: Path, pidfile: Path) -> list[str]:
    """Forget the last start's files; gives the program, with what comes before it. HostError without it."""
    program = shutil.which("lxc-start", path=PATH)
    if program is None:
        raise HostError("lxc-start is missing: install Debian's package 'lxc'")
    for file in (log, pidfile):
        file.unlink(missing_ok=True)
    return [*_outside_profiles(), program]


def _started(pidfile: Path, name: str, lxcpath: Path) -> Pids | None:
    """The monitor has written its own pid; init is its child that is the first in a pid namespace."""
    try:
        monitor = int(pidfile.read_text())
        process = Path(f"/proc/{monitor}")
        if _container_of(process / "cmdline", str(lxcpath)) != name:
            return None
        for child in (process / f"task/{monitor}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            if re.search(r"^NSpid:.*\s1$", status, re.MULTILINE):
                return Pids(int(child), monitor)
    except (OSError, ValueError):  # it has just ended, or the kernel does not tell
        return None
    return None


def _outside_profiles() -> list[str]:
    """What comes before `lxc-start` so that it runs without an AppArmor profile; empty where it does anyway.

    Debian and Ubuntu have one for it, which lets it put containers under profiles of its own names alone.
    """
    try:
        label = _LABEL.read_bytes()
    except OSError:
        return []  # no AppArmor, or not switched on
    program = shutil.which("aa-exec", path=PATH)
    return [program, "-p", "unconfined", "--"] if program and label.rstrip(b"\n\0") == b"unconfined" else []


async def wait_until_gone(name: str, lxcpath: Path) -> None:
    """Until liblxc has no process for a container any more; what does not end by itself is killed."""
    pids = (await asyncio.to_thread(active, lxcpath)).get(name, [])
    try:
        async with asyncio.timeout(END_TIMEOUT):
            for pid in pids:
                await pidfds.wait(pid)
    except TimeoutError:
        for pid in pids:
            pidfds.kill(pid)
            await pidfds.wait(pid)


def active(lxcpath: Path) -> dict[str, list[int]]:
    """Names of containers below `lxcpath` with the pids of liblxc's processes for them.

    A container that is just starting or ending has such processes, and no init yet or any more.
    """
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (name := _container_of(entry / "cmdline", str(lxcpath))):
            found.setdefault(name, []).append(int(entry.name))
    return found


def _container_of(cmdline: Path, lxcpath: str) -> str | None:
    """The container that a process of liblxc is for: the monitor has a title, `lxc-start` arguments."""
    try:
        argv = cmdline.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return None
    title, found, name = argv[0].rpartition(f" {lxcpath} ")
    if found and title.startswith("[lxc monitor]"):
        return name
    if Path(argv[0]).name == "lxc-start" and "-P" in argv and argv[argv.index("-P") + 1 :][:1] == [lxcpath]:
        return argv[argv.index("-n") + 1]
    return None


def logged(log: Path) -> str:
    """The reasons at the end of a log, empty where it has none. Blocking."""
    return reasons(_tail(log))


def reasons(log: str) -> str:
    """The errors of a liblxc log as one sentence: the last ones, each once, without where they arose."""
    found: dict[str, None] = {}
    for line in log.splitlines():
        match = _LINE.match(line)
        if match and match["level"] in ("ERROR", "FATAL", "CRIT") and not match["text"].startswith(_NOISE):
            text = match["text"].strip()
            found.pop(text, None)
            found[text] = None
    return "; ".join(list(found)[-_MAX_REASONS:])


def monitor_pid(init_pid: int) -> int | None:
    """The pid of liblxc's monitor, the parent of the container's init; None where init is gone."""
    try:
        stat = Path(f"/proc/{init_pid}/stat").read_bytes()
    except OSError:
        return None
    parent = int(stat.rpartition(b")")[2].split()[1])
    return parent if parent > 1 else None


def _tail(path: Path) -> str:
    """The end of a log, which its size does not bound."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL))
            return file.read(_LOG_TAIL).decode(errors="replace")
    except OSError:
        return ""
