"""A busybox container run by liblxc from a generated lxc.conf, without a daemon."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from tests.support.images import Image
from utsuwa.core.idmap import IdMap
from utsuwa.instances.confinement import lxcconf
from utsuwa.instances.confinement.host_facts import read_host_facts
from utsuwa.instances.confinement.lxcconf import SeccompPolicy
from utsuwa.security import idmap, seccomp

MACHINE = os.uname().machine


class Box:
    """A container from an image's unified file with shifted owners; a context manager that removes it."""

    def __init__(self, image: Image, config: Mapping[str, str], lxcfs: Path = Path("/nowhere")) -> None:
        self.folder = _open_folder()
        self.name = "box"
        self.cgroup = self.folder.name
        self.config = dict(config)
        self.idmap: IdMap = idmap.choose(config, idmap.read_host_ids()).idmap
        self.rootfs = self.folder / "rootfs"
        self.target = self.folder / "lxc.target"
        try:
            assert image.unified is not None
            with tarfile.open(image.unified) as tar:
                tar.extractall(self.folder)
            self._shift()
            self._configure(lxcfs)
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def _shift(self) -> None:
        for path in (self.rootfs, *self.rootfs.rglob("*")):
            was = path.lstat()
            os.lchown(path, self.idmap.host_uid(was.st_uid), self.idmap.host_gid(was.st_gid))

    def _configure(self, lxcfs: Path) -> None:
        policy = seccomp.policy(self.config, MACHINE)
        lxcconf.write_post_stop(self.folder / "post-stop")
        spec = lxcconf.ContainerSpec(
            name=self.name,
            architecture=MACHINE,
            rootfs=self.rootfs,
            idmap=self.idmap,
            config=self.config,
            cgroup=self.cgroup,
            console_log=self.folder / "console.log",
            post_stop=self.folder / "post-stop",
            target=self.target,
            host=read_host_facts(lxcfs=lxcfs),
            seccomp=SeccompPolicy(seccomp.write(self.folder, "seccomp", policy)) if policy else None,
        )
        lxcconf.write(self.folder / "lxc.conf", lxcconf.build(spec))

    def start(self) -> int:
        """Start it and return its init's pid."""
        self.target.unlink(missing_ok=True)
        log = self.folder / "lxc.log"
        argv = self._command("lxc-start", "-d", "-f", self.folder / "lxc.conf", "-o", log)
        done = subprocess.run(argv, capture_output=True, timeout=60)
        assert done.returncode == 0, log.read_text()
        return self.pid

    @property
    def pid(self) -> int:
        done = subprocess.run(self._command("lxc-info", "-pH"), capture_output=True, text=True, timeout=60)
        return int(done.stdout or 0)

    def _command(self, tool: str, *arguments: str | Path) -> list[str]:
        return [tool, "-n", self.name, "-P", str(self.folder), *map(str, arguments)]

    def run(self, *argv: str) -> str:
        """Run a command inside and return stdout and stderr."""
        done = subprocess.run(
            self._command("lxc-attach", "-f", self.folder / "lxc.conf", "--", *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.stdout

    def wait_for_end(self, seconds: float = 30) -> None:
        """Wait until the container and liblxc's monitor have ended."""
        deadline = time.monotonic() + seconds
        while any(self._monitors()):
            assert time.monotonic() < deadline, "the monitor did not end"
            time.sleep(0.02)

    def _monitors(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.folder).encode() in words:
                    yield int(entry.name)

    def add_program(self, name: str, code: bytes) -> None:
        """Write a program of a few machine instructions to /bin."""
        path = self.rootfs / "bin" / name
        path.write_bytes(program(code))
        path.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pid = self.pid
        if pid:
            os.kill(pid, signal.SIGKILL)
        self.wait_for_end()
        for cgroup in sorted(Path("/sys/fs/cgroup").glob(f"**/{self.cgroup}"), reverse=True):
            for below, _folders, _files in os.walk(cgroup, topdown=False):
                _remove_cgroup(Path(below))
        shutil.rmtree(self.folder)


def _remove_cgroup(folder: Path, seconds: float = 5) -> None:
    """Remove a cgroup; a process that is exiting has no command line any more, but still its cgroup."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def program(code: bytes) -> bytes:
    """Return a minimal ELF file for x86_64 with `code`."""
    base, head = 0x400000, 64 + 56
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = head + len(code)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


_EXIT = b"\xf7\xd8\x89\xc7\xb8\x3c\x00\x00\x00\x0f\x05"
"""neg eax; mov edi, eax; mov eax, 60; syscall: the errno becomes the exit code."""


def call(number: int, *arguments: int) -> bytes:
    """Return code for a 64-bit system call."""
    loads = (b"\xbf", b"\xbe", b"\xba")  # mov edi, esi, edx
    code = b"".join(load + struct.pack("<I", value) for load, value in zip(loads, arguments, strict=False))
    return code + b"\xb8" + struct.pack("<I", number) + b"\x0f\x05" + _EXIT


def call_32(number: int) -> bytes:
    """Return code for a 32-bit system call with arguments 0."""
    return b"\xb8" + struct.pack("<I", number) + b"\x31\xdb\x31\xc9\xcd\x80" + _EXIT


class Lxcfs:
    """A separate lxcfs; a context manager that starts it, and stops and unmounts it at the end."""

    def __init__(self) -> None:
        self._folder = _open_folder()
        self.mount = self._folder / "lxcfs"
        self.mount.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = ["lxcfs", "--pidfile", str(self._folder / "lxcfs.pid"), str(self.mount)]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not (self.mount / "proc/uptime").exists():
            assert time.monotonic() < deadline, "lxcfs does not start"
            assert self._process.poll() is None, "lxcfs ended"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, and remove the mount that it leaves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
        subprocess.run(["umount", "-l", self.mount], capture_output=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)


def _open_folder() -> Path:
    """Yield a new directory that a container's root can traverse, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="utsuwa-box-", dir="/var/tmp"))
    folder.chmod(0o711)
    return folder
