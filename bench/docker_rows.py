"""Rows about Docker in a container, as multiples of the same Docker on the host. Only Utsuwa is measured."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tests.stock.checks.nested import IMPORT_BUSYBOX
from tests.support import packages
from tests.support.images import ROOT
from tests.support.netbox import NetBox, until

from bench import wire
from bench.daemons import BRIDGE
from bench.places import Place
from bench.table import DEBIAN
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench

_NAME = "k0"
_PACKAGES = ("docker.io", "iptables", "busybox-static")
_RUNS = 5
_PROFILE = ROOT / "scripts/profiles/docker.yaml"
_BEGIN = "docker run --detach --name worker busybox sleep 1000000"
_RUN = "docker run --rm busybox true"
_FILES = """
mkdir /work && cd /work && i=0
while [ $i -lt 1000 ]; do echo $i >$i; i=$((i + 1)); done
cat * | wc -c && mkdir /copy && tar -c . | tar -x -C /copy && cd / && rm -r /work /copy
"""
_ROWS = {"docker-run": _RUN, "docker-files": f"docker exec worker sh -c {shlex.quote(_FILES)}"}
_END = "docker rm --force worker"

Shell = Callable[[str], None]
"""Runs a script where `docker` is the client of a Docker, and raises for a failure."""


class DockerRows:
    """The part `docker`, on the best pool."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self) -> None:
        bench = self._bench
        places = [place for place in bench.best_places() if place.daemon.kind.ours]
        files = packages.missing_from(bench.images[DEBIAN], _PACKAGES)
        for place in places:
            with _host_docker(files, place.daemon.home.parent) as host, _inside(place, files) as inside:
                for shell in (host, inside):
                    shell(_BEGIN)
                for _ in range(bench.sizes.rounds):
                    for row, script in _ROWS.items():
                        if bench.wants(row):
                            ratio = partial(_ratio, script, inside, host)
                            bench.samples.measure(row, place.subject.label, ratio)
                for shell in (host, inside):
                    shell(_END)


def _ratio(script: str, inside: Shell, host: Shell) -> float:
    """Alternate, so that what else the machine does affects both."""
    seconds = [(timed(lambda: inside(script)), timed(lambda: host(script))) for _ in range(_RUNS)]
    return sorted(own / other for own, other in seconds)[_RUNS // 2]


@contextmanager
def _inside(place: Place, files: list[Path]) -> Iterator[Shell]:
    """Docker of Debian 12 in a container with the settings of the profile `docker`."""
    connection, name = place.daemon.wire, place.name(_NAME)

    def shell(script: str) -> None:
        wire.run_inside(connection, name, "sh", "-c", script)

    profile = yaml.safe_load(_PROFILE.read_text())
    wire.create(connection, name, DEBIAN, place.pool)
    try:
        nic = {"type": "nic", "name": "eth0", "network": BRIDGE}
        changes = {"config": profile["config"], "devices": {**profile["devices"], "eth0": nic}}
        connection.do("PATCH", f"/1.0/instances/{name}", changes)
        wire.set_state(connection, name, "start")
        wire.await_systemd(connection, name)
        for file in files:
            connection.push(name, f"/root/{file.name}", file.read_bytes(), {})
        shell("dpkg --force-unsafe-io --install /root/*.deb && rm /root/*.deb")
        shell(IMPORT_BUSYBOX.format("docker"))
        yield shell
    finally:
        wire.remove(connection, name)


@contextmanager
def _host_docker(files: list[Path], ground: Path) -> Iterator[Shell]:
    """The same Docker on the host, in namespaces for network and mounts, on the same file system."""
    home = Path(tempfile.mkdtemp(prefix="ub-", dir=ground))
    for file in files:
        subprocess.run(["dpkg-deb", "--extract", str(file), str(home)], check=True)
    for name in ("iptables", "ip6tables"):  # as the package does when it is installed
        (home / "usr/sbin" / name).symlink_to("xtables-nft-multi")
    libraries = home / "usr/lib" / f"{os.uname().machine}-linux-gnu"
    folders = [str(home / name) for name in ("usr/sbin", "usr/bin", "sbin", "bin")]
    environment = os.environ | {
        "PATH": ":".join([*folders, "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
        "LD_LIBRARY_PATH": str(libraries),
        "XTABLES_LIBDIR": str(libraries / "xtables"),
        "DOCKER_HOST": f"unix://{home}/socket",
        "HOME": str(home),
    }
    box = NetBox()

    def run(script: str) -> subprocess.CompletedProcess[bytes]:
        command = [*box.prefix, "sh", "-c", script]
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)

    def shell(script: str) -> None:
        if (ended := run(script)).returncode != 0:
            raise RuntimeError(f"on the host: {script[:80]}: {ended.stderr.decode()[-500:]}")

    with (home / "log").open("wb") as log:
        words = {
            "data-root": home / "data",
            "exec-root": home / "exec",
            "host": environment["DOCKER_HOST"],
            "pidfile": home / "pid",
            "cgroup-parent": f"/{home.name}",
        }
        options = [f"--{option}={value}" for option, value in words.items()]
        daemon = subprocess.Popen(
            [*box.prefix, "dockerd", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: daemon.poll() is not None or run("docker info").returncode == 0, 60)
        if daemon.poll() is not None:
            raise RuntimeError(f"dockerd on the host: {(home / 'log').read_text()[-500:]}")
        shell(IMPORT_BUSYBOX.replace("/root/", f"{home}/").format("docker"))
        yield shell
    finally:
        daemon.terminate()
        daemon.wait()
        box.close()
        _remove_cgroups(home.name)
        shutil.rmtree(home)


def _remove_cgroups(name: str) -> None:
    for folder in (Path("/sys/fs/cgroup") / name, *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        with suppress(FileNotFoundError):
            folder.rmdir()
