"""The daemons under test, each in namespaces and a state folder of its own; nothing of them stays."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.images import Image
from tests.support.netbox import NetBox
from tests.support.tls import make_identity

from bench import wire
from bench.wire import Wire

ROOT = Path(__file__).resolve().parents[1]
CLIENT_FOLDERS = ("LXD_CONF", "UTSUWA_CONF", "INCUS_CONF")
REMOTE, ADDRESS = "far", "127.0.0.1:8443"
BRIDGE = "ub0"
START_SECONDS = 60
STOP_SECONDS = 60
CLIENT_SECONDS = 90
# As the quick start writes it; pip's own launcher takes longer than most commands.
LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys

sys.path += {path!r}

from utsuwa.cli.main import program

program()
"""


class Missing(Exception):
    """A daemon cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Kind:
    """How a daemon is started, told to end, and talked to."""

    name: str
    command: tuple[str, ...]
    folder_variable: str
    client: tuple[str, ...]
    pools: tuple[str, ...]
    """Drivers of its pools, the best one first."""
    version: tuple[str, ...]
    ours: bool = False


UTSUWA = Kind(
    name="utsuwa",
    command=(sys.executable, "-m", "utsuwa.daemon.main", "--group", "root"),
    folder_variable="UTSUWA_DIR",
    client=("lxc",),
    pools=("overlay", "dir"),
    version=(sys.executable, "-m", "utsuwa.daemon.main", "--version"),
    ours=True,
)
LXD = Kind(
    name="lxd",
    command=("lxd", "--group", "root"),
    folder_variable="LXD_DIR",
    client=("lxc",),
    pools=("btrfs", "dir"),
    version=("lxd", "--version"),
)
INCUS = Kind(
    name="incus",
    command=("/usr/libexec/incus/incusd", "--group", "root"),
    folder_variable="INCUS_DIR",
    client=("incus",),
    pools=("btrfs", "dir"),
    version=("/usr/libexec/incus/incusd", "--version"),
)
KINDS = (UTSUWA, LXD, INCUS)


def version_of(kind: Kind) -> str:
    """What the program calls itself. Raises Missing where it is not installed."""
    if shutil.which(kind.version[0]) is None:
        raise Missing(f"{kind.name} is not installed ({Path(kind.version[0]).name} is not there)")
    done = subprocess.run(kind.version, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    if done.returncode:
        raise Missing(f"{kind.name} does not tell its version: {done.stderr.strip()[-200:]}")
    return done.stdout.strip()


class Daemon:
    """A running one; made by `start`, ended by `close`."""

    def __init__(self, kind: Kind, ground: Path, box: NetBox | None = None) -> None:
        """With the `box` of another one, it runs in that's namespaces."""
        self.kind = kind
        self.pools: tuple[str, ...] = ()
        self.problems: dict[str, str] = {}
        """Pools that could not be made, with the reason."""
        # Containers' ids pass through to their root file systems; unix sockets allow 107 bytes.
        self.home = Path(tempfile.mkdtemp(prefix="ub-", dir=ground))
        self.home.chmod(0o711)
        self.dir = self.home / "d"
        self.dir.mkdir(mode=0o711)
        self.socket = self.dir / "unix.socket"
        self.wire = Wire(self.socket)
        self.box = NetBox() if box is None else box
        self._owns_box = box is None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.kind.name

    # ---- its life

    def start(self) -> None:
        """Start it, make its pools and the default profile. Raises Missing with the reason."""
        self._give_ids()
        self._serve()
        self.pools = tuple(driver for driver in self.kind.pools if self._make_pool(driver))
        if not self.pools:
            raise Missing(f"{self.name} could make no pool: {'; '.join(self.problems.values())}")
        devices = {
            "root": {"type": "disk", "path": "/", "pool": self.pools[0]},
            "eth0": {"type": "nic", "nictype": "p2p", "name": "eth0"},
        }
        self.wire.do("PATCH", "/1.0/profiles/default", {"devices": devices})

    def restart(self) -> None:
        """End it and start it again; what it has stays."""
        self._stop()
        self.wire.close()
        self._serve()

    def _serve(self) -> None:
        with (self.home / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.box.prefix, *self.kind.command],
                env=self._environment({self.kind.folder_variable: str(self.dir)}),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_ready()

    def _give_ids(self) -> None:
        """One range of host ids for root, whatever the machine has: with two, Incus starts no container."""
        ids = self.home / "subid"
        ids.write_text("root:1000000:1000000000\n")
        for file in ("/etc/subuid", "/etc/subgid"):
            self.box.run("mount", "--bind", str(ids), file)

    def _wait_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError, wire.WireError, ValueError):
                self.wire.get("/1.0/instances")
                return
            if self.process.poll() is not None:
                raise Missing(f"{self.name} ended with {self.process.returncode}: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise Missing(f"{self.name} is not ready after {START_SECONDS} s: {self._log_tail()}")
            time.sleep(0.05)

    def _log_tail(self) -> str:
        lines = (self.home / "daemon.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])

    def make_bridge(self) -> None:
        """A managed one, with DHCP for IPv4."""
        config = {"ipv4.address": "10.99.0.1/24", "ipv6.address": "none"}
        self.wire.do("POST", "/1.0/networks", {"name": BRIDGE, "type": "bridge", "config": config})

    def listen(self) -> None:
        """Serve HTTPS, to a client that it trusts and that knows it as `REMOTE`."""
        conf = self.home / "client"
        conf.mkdir(exist_ok=True)
        identity = make_identity(conf)
        identity.certificate_file.rename(conf / "client.crt")
        identity.key_file.rename(conf / "client.key")
        certificate = base64.b64encode(identity.der).decode()
        self.wire.do(
            "POST", "/1.0/certificates", {"name": "bench", "type": "client", "certificate": certificate}
        )
        self.wire.do("PATCH", "/1.0", {"config": {"core.https_address": ADDRESS}})
        client = (*self.box.prefix, *self.kind.client)
        self.run_client(client, "remote", "add", REMOTE, f"https://{ADDRESS}", "--accept-certificate")

    def _make_pool(self, driver: str) -> bool:
        config = {"size": "8GiB"} if driver == "btrfs" else {}
        try:
            self.wire.do("POST", "/1.0/storage-pools", {"name": driver, "driver": driver, "config": config})
        except wire.WireError as error:
            self.problems[driver] = str(error)
            return False
        return True

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def close(self) -> list[str]:
        """Delete all it has, end it, remove its folder; returns what went wrong in that."""
        problems = []
        for step in (self._clean, self._stop, self._sweep):
            try:
                step()
            except Exception as error:
                problems.append(f"{self.name}: {step.__name__.strip('_')}: {error}")
        self.wire.close()
        if self._owns_box:
            self.box.close()
        shutil.rmtree(self.home, ignore_errors=True)
        if self.home.exists():
            problems.append(f"{self.name}: {self.home} could not be removed")
        return problems

    def _clean(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        for instance in self.wire.get("/1.0/instances?recursion=1"):
            wire.remove(self.wire, instance["name"])
        for image in self.wire.get("/1.0/images?recursion=1"):
            self.wire.do("DELETE", f"/1.0/images/{image['fingerprint']}")
        self.wire.do("PUT", "/1.0/profiles/default", {"config": {}, "devices": {}, "description": ""})
        for network in self.wire.get("/1.0/networks?recursion=1"):
            if network["managed"]:
                self.wire.do("DELETE", f"/1.0/networks/{network['name']}")
        for pool in self.pools:
            self.wire.do("DELETE", f"/1.0/storage-pools/{pool}")

    def _stop(self) -> None:
        """SIGTERM leaves containers alone, of which none is left by now."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            raise

    def _sweep(self) -> None:
        """End what names this state folder, should the clean-up have failed."""
        for pid in processes_naming(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ---- talking to it

    def client(self, *arguments: str) -> str:
        """What its usual client (`lxc`, `incus`) prints; raises WireError with what it said."""
        return self.run_client(self.kind.client, *arguments)

    def own_client(self, *arguments: str) -> str:
        """Our own client, which is installed as the quick start does."""
        launcher = self.home / "utsuwa"
        if not launcher.exists():
            path = [str(ROOT / "src"), sysconfig.get_path("purelib")]
            launcher.write_text(LAUNCHER.format(path=path))
            launcher.chmod(0o755)
        return self.run_client((str(launcher),), *arguments)

    def chosen_client(self, *, own: bool) -> Callable[..., str]:
        """Its usual client, or with `own` at our daemon ours."""
        return self.own_client if own and self.kind.ours else self.client

    def remote_exec(self, name: str, *command: str) -> None:
        """A command by its usual client over HTTPS, after `listen`."""
        self.run_client((*self.box.prefix, *self.kind.client), "exec", f"{REMOTE}:{name}", "--", *command)

    def run_client(self, client: Sequence[str], *arguments: str) -> str:
        """Any client program, pointed to this daemon; raises WireError with what it said."""
        folders = dict.fromkeys(("LXD_DIR", self.kind.folder_variable), str(self.dir))
        done = subprocess.run(
            [*client, *arguments],
            env=self._environment(folders | dict.fromkeys(CLIENT_FOLDERS, str(self.home / "client"))),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=CLIENT_SECONDS,
        )
        if done.returncode:
            said = " ".join(done.stdout.split())[-300:]
            raise wire.WireError(
                f"{Path(client[-1]).name} {arguments[0]} ended with {done.returncode}: {said}"
            )
        return done.stdout

    def import_image(self, image: Image, alias: str) -> None:
        self.client("image", "import", str(image.metadata), str(image.rootfs), "--alias", alias)

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LXD_", "UTSUWA_", "INCUS_"))}
        return kept | {"LANG": "C.UTF-8", "HOME": str(self.home)} | more


def processes_naming(folder: Path) -> list[int]:
    """Processes with the folder in their command line."""
    needle = os.fsencode(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if needle in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
