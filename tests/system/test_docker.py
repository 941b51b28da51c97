"""Docker and Podman in an instance with the profile `docker`: what docs/guides/docker.md says, and more."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stock.checks.limits import FILL_MEMORY
from tests.stock.checks.nested import IMPORT_BUSYBOX, RUN_DOCKER, SERVE
from tests.support import images, packages
from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.guides import Guide
from tests.support.images import BUSYBOX, Image
from tests.support.netbox import until
from tests.support.networks import box_of, create

pytestmark = [pytest.mark.root, pytest.mark.debian, pytest.mark.timeout(1800)]

WEB = "docker run --detach --name web --restart always --publish 8080:80 busybox"
RECOMMENDED = {"podman": ("crun", "netavark", "aardvark-dns", "fuse-overlayfs", "slirp4netns", "uidmap")}
"""What apt-get installs besides, of what matters here."""


class Box:
    """An instance `box` with programs in which `busybox` is an image."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def attempt(self, script: str) -> subprocess.CompletedProcess[str]:
        return self.daemon.lxc("exec", "box", "--", "sh", "-c", script, check=False, timeout=300)

    def run(self, script: str) -> str:
        ended = self.attempt(script)
        assert ended.returncode == 0, f"{script}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def wait_for_boot(self) -> None:
        until(lambda: "running" in self.attempt("systemctl is-system-running").stdout.split(), 300)

    def import_busybox(self, program: str) -> None:
        self.daemon.lxc("file", "push", str(BUSYBOX), "box/usr/local/bin/busybox")
        self.run(IMPORT_BUSYBOX.format(program))

    def serves(self, port: int, text: str) -> bool:
        """Return whether a published port serves the text, as seen from the host."""
        addresses = self.attempt("hostname -I").stdout.split()
        url = f"http://{addresses[0] if addresses else 'none'}:{port}/"
        return box_of(self.daemon).run("curl", "--silent", url, check=False) == f"{text}\n"


@contextmanager
def prepared_daemon(image: Image) -> Iterator[Daemon]:
    """Run a daemon with a bridge in the default profile, and the image `debian/12`."""
    with boxed_daemon() as daemon:
        create(daemon, "br", ipv4_address="10.77.0.1/24", ipv6_address="none")
        nic = {"type": "nic", "network": "br", "name": "eth0"}
        daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"eth0": nic}})
        daemon.import_image(image.metadata, image.rootfs, alias="debian/12")
        yield daemon


class GuidedBox(Box):
    """The instance of the guide, after all that is done there."""

    def __init__(self, daemon: Daemon, image: Image, folder: Path) -> None:
        super().__init__(daemon)
        self._image = image
        self.guide = Guide("docker.md", daemon, folder, self._install)
        self.guide.run()

    def _install(self, name: str, names: list[str]) -> None:
        self.wait_for_boot()
        packages.install(self.daemon, name, self._image, (*names, *RECOMMENDED.get(names[0], ())))
        program = {"docker.io": "docker", "podman": "podman"}.get(names[0])
        if program is not None:
            self.import_busybox(program)


@pytest.fixture(scope="module")
def box(debian_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuidedBox]:
    with prepared_daemon(debian_image) as daemon:
        yield GuidedBox(daemon, debian_image, tmp_path_factory.mktemp("bin"))


@pytest.mark.long
def test_what_the_guide_shows(box: GuidedBox) -> None:
    said = {line.removeprefix("utsuwa exec box -- "): text for line, text in box.guide.said.items()}
    assert said["utsuwa launch debian/12 box --profile default --profile docker"] == "hello\n"
    assert said[f"{WEB} \\"].endswith("\nserved\n")
    assert said["docker build --tag hello - <<'END'"].endswith("\nbuilt inside\n")
    assert said["utsuwa config set box limits.memory=1GiB limits.processes=1000"] == "limited\n"
    assert said["apt-get install --yes podman"].startswith("hello\n")


@pytest.mark.long
def test_layers_are_overlays(box: GuidedBox) -> None:
    assert box.run("docker info --format '{{.Driver}}'") == "overlay2\n"
    assert "upperdir=/var/lib/docker/" in box.run("docker exec web cat /proc/mounts")


@pytest.mark.long
def test_limits_of_docker_hold(box: GuidedBox) -> None:
    ended = box.attempt(f"docker run --name oom --memory 64m busybox {FILL_MEMORY}")
    assert (ended.returncode, ended.stdout) == (137, "")
    assert box.run("docker inspect --format '{{.State.OOMKilled}}' oom && docker rm oom") == "true\noom\n"
    ended = box.attempt(
        "docker run --rm --pids-limit 5 busybox sh -c 'for i in 1 2 3 4 5 6; do sleep 9 & done'"
    )
    assert "can't fork" in ended.stderr


@pytest.mark.long
def test_a_privileged_container_gets_what_the_instance_has(box: GuidedBox) -> None:
    script = "mount -t tmpfs none /mnt && echo mounted; date -s 2020-01-01; mknod /mnt/sda b 8 0"
    said = box.attempt(f'docker run --rm --privileged busybox sh -c "{script}"')
    assert said.stdout.startswith("mounted\n")
    assert said.stderr.count("Operation not permitted") == 2


@pytest.mark.long
def test_containers_go_on_without_the_daemon_and_return_with_the_instance(box: GuidedBox) -> None:
    """Docker starts those with --restart again; images are still there."""
    pid = box.run("docker inspect --format '{{.State.Pid}}' web")
    box.daemon.kill()
    box.daemon.start()
    assert box.run("docker inspect --format '{{.State.Pid}}' web") == pid
    box.daemon.lxc("restart", "box", timeout=120)
    until(lambda: box.serves(8080, "served"), 90)
    assert box.run("docker run --rm hello") == "built inside\n"


@pytest.mark.long
def test_compose_and_podman(box: GuidedBox) -> None:
    assert box.run("podman info --format '{{.Store.GraphDriverName}}'") == "overlay\n"
    ended = box.attempt(f"podman run --rm --memory 64m busybox {FILL_MEMORY}")
    assert (ended.returncode, ended.stdout) == (137, "")
    box.run("docker-compose --file compose.yaml up --detach && podman start --all")
    until(lambda: box.serves(8082, "stored"), 60)
    until(lambda: box.serves(8081, "served"), 60)


@pytest.fixture(scope="module")
def newer() -> Iterator[Box]:
    """An instance with the Docker of Debian 13, which has come with its image."""
    with prepared_daemon(images.debian_13_with_docker()) as daemon:
        profile = (images.ROOT / "scripts/profiles/docker.yaml").read_text()
        daemon.lxc("profile", "create", "docker")
        daemon.lxc("profile", "edit", "docker", input=profile)
        daemon.lxc("launch", "debian/12", "box", "-p", "default", "-p", "docker", timeout=180)
        box = Box(daemon)
        box.wait_for_boot()
        box.import_busybox("docker")
        yield box


def test_newer_docker(newer: Box) -> None:
    assert newer.run(RUN_DOCKER) == "0\n"
    assert newer.run("docker info --format '{{.Driver}}'") == "overlay2\n"
    assert newer.attempt(f"docker run --rm --memory 64m busybox {FILL_MEMORY}").returncode == 137
    newer.run(f'docker run --detach --publish 8080:80 busybox sh -c "{SERVE}"')
    until(lambda: newer.serves(8080, "served"), 90)
    assert newer.run("docker run --rm --privileged busybox mount -t tmpfs none /mnt") == ""


@pytest.mark.long
def test_newer_runc(newer: Box) -> None:
    """That of sid opens settings below /proc/sys in another way (incus#2623, lxd#16902, runc#4968)."""
    runc = packages.of_sid("runc")
    newer.daemon.lxc("file", "push", str(runc), f"box/root/{runc.name}")
    newer.run(f"dpkg --install /root/{runc.name}")
    assert newer.run(RUN_DOCKER) == "0\n"
    build = "printf 'FROM busybox\\nRUN echo built >/built\\n' | docker buildx build --tag built --load -"
    newer.run(build)
    assert newer.run("docker run --rm --privileged --memory 64m built cat /built") == "built\n"
