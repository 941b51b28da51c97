"""A daemon for a test, with methods to start, use, restart and kill it, and to check for leaks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from tests.support import forks, leaks
from tests.support.api import Endpoint, request
from tests.support.netbox import NetBox
from tests.support.prepared import prepare
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.app import owner_name

_AT_IMPORT = "UTSUWA_UNPRIVILEGED_ONLY"
"""A variable that the daemon's modules read when they are imported; Python and libraries read others."""
START_SECONDS = 60
STOP_SECONDS = 30
HURRY_SECONDS = 2
"""After which a stopping daemon is told not to wait for operations."""
# What a healthy daemon never writes, not even while it refuses bad input.
SIGNS_OF_FAULTS = (
    "Traceback (most recent call",
    "was never awaited",
    "was never retrieved",
    "Unclosed ",
)


class Daemon(Endpoint):
    """`utsuwad` with a state directory below a short temporary path (unix sockets allow 107 bytes).

    `home` contains `dir` (UTSUWA_DIR), `conf` (LXD_CONF of the `lxc` client) and `log`. A `warm` one is
    forked from a process that has imported the daemon's modules, on a prepared state directory; otherwise, a
    program is started as users do.
    """

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        box: NetBox | None = None,
        *,
        warm: bool = True,
    ) -> None:
        self.box = box
        self.warm = warm
        self.before = leaks.HostState.now()
        below = os.environ.get("UTSUWA_TEST_DIR", "/var/tmp")
        self.home = Path(tempfile.mkdtemp(prefix=leaks.HOME_PREFIX, dir=below))
        self.home.chmod(0o711)  # the ids of containers pass through to their root file systems
        self.dir = self.home / "d"
        self.conf = self.home / "c"
        self.log = self.home / "daemon.log"
        super().__init__(self.dir / "unix.socket")
        self.env = dict(env or {})
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | forks.Forked | None = None
        self.faults_expected = False

    # ---- its life

    def start(self, *, wait: bool = True) -> None:
        """Start it and wait until it is ready. Raises AssertionError with its log on failure."""
        if self.warm and not self.dir.exists() and "--database" not in self.arguments:
            prepare(StatePaths(self.dir))
        late = all(name.startswith("UTSUWA_") and name != _AT_IMPORT for name in self.env)
        self.process = self._forked() if self.warm and late else self._popen()
        if wait:
            self.wait_ready()

    def _forked(self) -> forks.Forked:
        env = self.environment(UTSUWA_DIR=str(self.dir), **self.env)
        return forks.start(["--debug", *self.arguments], env, self.log, self.box.pid if self.box else None)

    def _popen(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    *(self.box.prefix if self.box else ()),
                    sys.executable,
                    "-m",
                    "utsuwa.daemon.main",
                    "--debug",
                    *self.arguments,
                ],
                env=self.environment(UTSUWA_DIR=str(self.dir), **self.env),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self._serves():
            assert self.process is not None, "the daemon was not started"
            code = self.process.poll()
            assert code is None, f"utsuwad ended with {code}:\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"utsuwad is not ready after {seconds} s:\n{self.log_tail()}"
            time.sleep(0.02)

    def _serves(self) -> bool:
        try:
            return request(self.socket, "GET", "/internal/ready?api-only=1", timeout=5).status == 200
        except OSError:
            return False

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop it, while its containers keep running, and return its exit code."""
        assert self.process is not None, "the daemon was not started"
        self.process.send_signal(signal_number)
        return self._ended()

    def kill(self) -> None:
        """Kill it as in a crash."""
        assert self.process is not None, "the daemon was not started"
        self.process.kill()
        self._ended()

    def _ended(self) -> int:
        assert self.process is not None, "the daemon was not started"
        try:
            code = self.process.wait(HURRY_SECONDS)
        except subprocess.TimeoutExpired:
            code = self._hurry(self.process)
        self.process = None
        return code

    def _hurry(self, process: subprocess.Popen[bytes] | forks.Forked) -> int:
        """Have it not wait for operations that a test has left running."""
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"utsuwad did not end in {STOP_SECONDS} s:\n{self.log_tail()}") from None

    def restart(self) -> None:
        code = self.stop()
        assert code == 0, f"utsuwad ended with {code}:\n{self.log_tail()}"
        self.start()

    @property
    def owner(self) -> str:
        """The name of its cgroups and tables."""
        return owner_name(StatePaths(self.dir))

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon does not run"
        return self.process.pid

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of its log, without requests."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([line for line in text.splitlines() if "msg=request " not in line][-lines:])

    # ---- talking to it

    def lxc(
        self, *arguments: str, input: str | bytes | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run Debian's unmodified `lxc` client on this daemon, with text input and output."""
        text = input.decode() if isinstance(input, bytes) else input
        ended = subprocess.run(
            ["lxc", *arguments],
            env=self.lxc_environment(),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
        )
        if check:
            assert ended.returncode == 0, (
                f"lxc {' '.join(arguments)} ended with {ended.returncode}\n"
                f"{ended.stdout}{ended.stderr}\n--- daemon log\n{self.log_tail()}"
            )
        return ended

    def lxc_environment(self) -> dict[str, str]:
        """For tests that start the client themselves (with a terminal, in the background)."""
        return self.environment(LXD_DIR=str(self.dir), LXD_CONF=str(self.conf), HOME=str(self.home))

    def environment(self, **more: str) -> dict[str, str]:
        """This process's own, without what would lead a client elsewhere."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LXD_", "UTSUWA_", "INCUS_"))}
        return kept | {"LANG": "C.UTF-8"} | more

    # ---- what most tests begin and end with

    def make_defaults(self, driver: str = "overlay") -> None:
        """Create the pool `default`, and add a root disk on it and a p2p nic to the default profile."""
        self.do("POST", "/1.0/storage-pools", {"name": "default", "driver": driver, "config": {}})
        devices = {
            "root": {"type": "disk", "path": "/", "pool": "default"},
            "eth0": {"type": "nic", "nictype": "p2p", "name": "eth0"},
        }
        self.do("PATCH", "/1.0/profiles/default", {"devices": devices})

    def import_image(self, *files: Path, alias: str | None = None) -> str:
        """Upload an image of one or two files with the client and return its fingerprint."""
        before = {i["fingerprint"] for i in self.get("/1.0/images?recursion=1")}
        self.lxc("image", "import", *map(str, files), *(["--alias", alias] if alias else []))
        (new,) = {i["fingerprint"] for i in self.get("/1.0/images?recursion=1")} - before
        return str(new)

    def clean(self) -> None:
        """Delete all projects, instances, images, own profiles, volumes and pools; each must succeed."""
        self.delete_instances()
        self.delete_projects()
        for image in self.get("/1.0/images?recursion=1"):
            self.do("DELETE", f"/1.0/images/{image['fingerprint']}", timeout=300)
        self.do("PATCH", "/1.0/profiles/default", {"devices": {}})
        default = self.get("/1.0/profiles/default")
        self.do("PUT", "/1.0/profiles/default", {**default, "config": {}, "devices": {}})
        for profile in self.get("/1.0/profiles?recursion=1"):
            if profile["name"] != "default":
                self.do("DELETE", f"/1.0/profiles/{quote(profile['name'], safe='')}")
        self.delete_volumes()
        for network in self.get("/1.0/networks?recursion=1"):
            if network["managed"]:
                self.do("DELETE", f"/1.0/networks/{quote(network['name'], safe='')}")
        for pool in self.get("/1.0/storage-pools?recursion=1"):
            self.do("DELETE", f"/1.0/storage-pools/{quote(pool['name'], safe='')}")

    def delete_instances(self) -> None:
        for instance in self.get("/1.0/instances?recursion=1&all-projects=true"):
            url = f"/1.0/instances/{instance['name']}"
            project = f"?project={quote(instance['project'], safe='')}"
            if instance["status"] != "Stopped":
                self._stop_instance(f"{url}/state{project}")
            if self.api("GET", f"{url}{project}").status != 404:  # an ephemeral one has gone by itself
                self.do("DELETE", f"{url}{project}")

    def _stop_instance(self, url: str) -> None:
        reply = self.api("PUT", url, {"action": "stop", "force": True, "timeout": 30})
        error = self.wait(reply)["err"] if reply.status == 202 else reply.error
        # One that a test has asked to stop may end by itself meanwhile.
        assert not error or "already stopped" in error, f"PUT {url}: {error}"

    def delete_volumes(self) -> None:
        """Delete the custom volumes of the project `default`, which nothing uses any more."""
        for pool in self.get("/1.0/storage-pools?recursion=1"):
            for url in pool["used_by"]:
                if "/volumes/custom/" in url and "/snapshots/" not in url:
                    self.do("DELETE", url)

    def delete_projects(self) -> None:
        """Delete all projects but `default`, with what is in them except instances."""
        for project in self.get("/1.0/projects?recursion=1"):
            if project["name"] == "default":
                continue
            for url in project["used_by"]:
                if not url.startswith("/1.0/profiles/default?"):
                    self.do("DELETE", url)
            self.do("DELETE", f"/1.0/projects/{quote(project['name'], safe='')}")

    # ---- the end

    def close(self) -> list[str]:
        """Clean up through the API, stop, remove the folder; returns every leak and fault as a line."""
        problems: list[str] = []
        if self.process is not None:
            for step in (self.clean, self._stop_well):
                try:
                    step()
                except Exception as error:
                    problems.append(f"{step.__name__}: {error}")
        problems += leaks.find_leaks(self.home, self.owner, self.before)
        with contextlib.suppress(OSError):
            leaks.remove_lock_folders(self.home)
        if not self.faults_expected:
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            problems += [
                f"log: {text[text.index(sign) :][:4000]}" for sign in SIGNS_OF_FAULTS if sign in text
            ]
        if problems:
            problems.append(f"daemon log:\n{self.log_tail()}")
            self._force()
        shutil.rmtree(self.home, ignore_errors=bool(problems))
        return problems

    def _stop_well(self) -> None:
        code = self.stop()
        assert code == 0, f"utsuwad ended with {code}"

    def _force(self) -> None:
        """Take away what a broken daemon left, so that the next test is not harmed."""
        if self.process is not None:
            self.process.kill()
        for _ in range(3):
            for pid, _command in leaks.processes_of(self.home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        if self.process is not None:
            self.process.wait(STOP_SECONDS)
            self.process = None
        for point in reversed(leaks.mounts_below(self.home)):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        for device, _file in leaks.loop_devices(self.home):
            subprocess.run(["losetup", "-d", f"/dev/{device}"], check=False, capture_output=True)
