"""Programs of CRIU on this host: their versions, and the proof that one saves and restores a small process.

Uses only the standard library, as `utsuwad check` runs before anything is installed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import PATH, run, spawn

log = logging.getLogger(__name__)

OLDEST = (4, 2)
"""Older versions cannot save sockets on Linux 6.16 and newer."""
OLDEST_TEXT = ".".join(map(str, OLDEST))
REMEDY = "install a newer one for Utsuwa alone with `utsuwad criu install`"
LAUNCHER = "criu"
"""The program in a folder of ours (`install`)."""

_VERSION = re.compile(r"Version: ([0-9]+(?:\.[0-9]+)+)")
_PROOF_TIMEOUT = 60.0
_VERBS = frozenset(("dump", "restore"))
_APPEARANCE = 5.0
"""Seconds until the small process is ready."""
_SMALL = """\
import socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print("ready", flush=True)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Criu:
    """A CRIU that is new enough."""

    program: str
    version: str

    @property
    def key(self) -> str:
        """What a proof is valid for: another kernel or another file need one of their own."""
        status = os.stat(self.program)  # noqa: PTH116 - of a string
        return f"{self.version} {os.uname().release} {self.program} {status.st_mtime_ns} {status.st_size}"


def candidates(folder: Path) -> list[str]:
    """Return the programs to try, the host's own first. Blocking."""
    host, own = shutil.which("criu", path=PATH), folder / LAUNCHER
    return [*([host] if host else []), *([str(own)] if os.access(own, os.X_OK) else [])]


async def version_of(program: str) -> str:
    """Return the version of a program, empty if it does not run."""
    try:
        return parse_version((await run([program, "--version"], timeout=10)).text)
    except ProcessFailed as error:
        log.warning("%s does not run: %s", program, error)
        return ""


def is_new_enough(version: str) -> bool:
    return bool(version) and numbers(version) >= OLDEST


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def parse_version(text: str) -> str:
    """Return the version in the output of `criu --version`, empty if there is none."""
    found = _VERSION.search(text)
    return found[1] if found else ""


async def prove(criu: Criu) -> str:
    """Save and restore a small process with a socket; return why that failed, empty if it did not."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="utsuwa-criu-"))
    pids: list[int] = []
    try:
        return await _save_and_restore(criu, folder, pids)
    except ProcessFailed as error:
        return await asyncio.to_thread(_reason, folder, error.message)
    except TimeoutError:
        return "its test process did not start in time"
    except (OSError, ValueError) as error:
        return f"it could not be tried: {error}"
    finally:
        for pid in pids:
            pidfds.kill(pid)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _save_and_restore(criu: Criu, folder: Path, pids: list[int]) -> str:
    output = folder / "output"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        process = spawn([sys.executable, "-S", "-E", "-I", "-c", _SMALL], output_fd=descriptor)
    finally:
        os.close(descriptor)
    pids.append(process.pid)
    try:
        await asyncio.to_thread(_wait_for, output)
        where = ["-D", str(folder), "-v1"]
        dump = [criu.program, "dump", "-t", str(process.pid), *where, "-o", "dump.log"]
        await run(dump, timeout=_PROOF_TIMEOUT)
        await process.wait()
    finally:
        process.kill(signal.SIGKILL)
        process.close()
        pids.clear()
    pidfile = folder / "restored"
    restore = [criu.program, "restore", *where, "-o", "restore.log", "--restore-detached"]
    # The restored process keeps the stdout and stderr of its image, so the pipes of `run` come to an end.
    await run([*restore, "--pidfile", str(pidfile)], timeout=_PROOF_TIMEOUT)
    pids.append(int(await asyncio.to_thread(pidfile.read_text)))
    return ""


def _wait_for(output: Path) -> None:
    end = time.monotonic() + _APPEARANCE
    while not output.read_bytes():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


async def wait_until_gone(images: Path) -> None:
    """Wait for a CRIU that works on a directory of images, and kill it if that takes too long."""
    for pid in await asyncio.to_thread(_working_on, str(images)):
        log.info("waiting for CRIU, process %d", pid)
        try:
            async with asyncio.timeout(_PROOF_TIMEOUT):
                await pidfds.wait(pid)
        except TimeoutError:
            pidfds.kill(pid)
            await pidfds.wait(pid)


async def kill_all(images: Path) -> None:
    """Kill a CRIU that works on a directory of images, and processes that it has not restored completely."""
    while found := await asyncio.to_thread(_working_on, str(images)):
        for pid in found:
            pidfds.kill(pid)
        for pid in found:
            await pidfds.wait(pid)


def _working_on(images: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if _VERBS & set(argv) and "-D" in argv and argv[argv.index("-D") + 1 :][:1] == [images]:
                found.append(int(entry.name))
    return found


def _reason(folder: Path, otherwise: str) -> str:
    for name in ("restore.log", "dump.log"):
        if reason := failure_in(folder / name):
            return reason
    return otherwise


# Messages that CRIU writes without consequences.
_HARMLESS = ("RLIMIT_NOFILE", "iptables", "ip6tables", "Dumping FAILED", "Restoring FAILED")
_LINE = re.compile(r"(?:\(\S+\) )?(?: *[0-9]+: )?Error \(([^)]*)\): (.*)")
_LOG_LIMIT = 1 << 20


def failure_in(log_file: Path) -> str:
    """Return the first error of a log of CRIU, empty if there is none. Blocking."""
    try:
        with log_file.open("rb") as file:
            text = file.read(_LOG_LIMIT).decode(errors="replace")
    except OSError:
        return ""
    return first_error(text)


def first_error(text: str) -> str:
    """Return the first error in the text of a log that has consequences."""
    for line in text.splitlines():
        found = _LINE.match(line)
        if found and not any(word in found[2] for word in _HARMLESS):
            return found[2].strip()
    return ""
