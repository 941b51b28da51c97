"""liblxc without any daemon, on a root file system that is ready: the limit of what a daemon can reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.images import Image

from bench.wire import WireError

FIRST_ID = 1_000_000
CONF = """\
lxc.arch = {machine}
lxc.uts.name = bare
lxc.rootfs.path = dir:{rootfs}
lxc.rootfs.options = idmap=container
lxc.idmap = u 0 {first} 65536
lxc.idmap = g 0 {first} 65536
lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp
lxc.cap.drop = mac_admin mac_override sys_time sys_module sys_rawio
lxc.mount.auto = proc:rw sys:rw cgroup:mixed
lxc.autodev = 1
lxc.pty.max = 1024
lxc.tty.max = 0
lxc.signal.stop = SIGKILL
lxc.cgroup.dir.container = {cgroup}
lxc.cgroup.dir.monitor = {cgroup}.monitor
lxc.net.0.type = veth
lxc.net.0.flags = up
lxc.net.0.name = eth0
"""


class Bare:
    """One container of the image by `lxc-start` and `lxc-stop`; `close` leaves nothing."""

    name = "liblxc"

    def __init__(self, image: Image, ground: Path) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ub-", dir=ground))
        self.home.chmod(0o711)
        rootfs = self.home / "rootfs"
        try:
            self._run("unsquashfs", "-q", "-n", "-d", str(rootfs), str(image.rootfs))
            conf = CONF.format(
                machine=os.uname().machine, rootfs=rootfs, first=FIRST_ID, cgroup=self.home.name
            )
            (self.home / "conf").write_text(conf)
        except BaseException:
            shutil.rmtree(self.home)
            raise

    def start(self) -> None:
        """Returns when the container's init runs."""
        log = self.home / "log"
        self._run(
            "lxc-start",
            "-d",
            "-n",
            "bare",
            "-P",
            str(self.home),
            "-f",
            str(self.home / "conf"),
            "-o",
            str(log),
        )

    def stop(self) -> None:
        """By SIGKILL; returns when it is gone."""
        self._run("lxc-stop", "-k", "-n", "bare", "-P", str(self.home))

    def close(self) -> None:
        subprocess.run(
            ["lxc-stop", "-k", "-n", "bare", "-P", str(self.home)], capture_output=True, timeout=60
        )
        subprocess.run(
            ["lxc-wait", "-t", "10", "-s", "STOPPED", "-n", "bare", "-P", str(self.home)], timeout=60
        )
        for cgroup in sorted(Path("/sys/fs/cgroup").glob(f"**/{self.home.name}*"), reverse=True):
            for below, _folders, _files in os.walk(cgroup, topdown=False):
                Path(below).rmdir()
        shutil.rmtree(self.home)

    def _run(self, *argv: str) -> None:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if done.returncode:
            log = self.home / "log"
            lines = log.read_text(errors="replace").splitlines() if log.exists() else [done.stderr.strip()]
            raise WireError(f"{argv[0]} ended with {done.returncode}: {' | '.join(lines[-2:])}")
