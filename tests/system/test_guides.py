"""The commands of docs/guides, and that they do what the pages say. Docker has a test of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import packages
from tests.support.boxed import boxed_daemon
from tests.support.daemon import Daemon
from tests.support.guides import Guide
from tests.support.images import Image
from tests.support.networks import box_of, create

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


KEY = "[ -e ~/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519"
VOLUME = "utsuwa storage volume create default team security.shifted=true"


class Host:
    """A daemon in a network, and a home, `/srv` and files of ids of its own."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.box = box_of(daemon)
        self.srv = folder / "srv"
        passwd = Path("/etc/passwd").read_text().splitlines()
        files = {
            "subuid": "root:1000000:1000000000",
            "subgid": "root:1000000:1000000000",
            # ssh looks there for the home, whatever $HOME is
            "passwd": "\n".join([f"root:x:0:0:root:{daemon.home}:/bin/bash", *passwd[1:]]),
        }
        folder.chmod(0o755)
        self.srv.mkdir()
        self.box.run("mount", "--bind", str(self.srv), "/srv")
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")
            self.box.run("mount", "--bind", str(folder / name), f"/etc/{name}")

    def run(self, name: str, script: str) -> str:
        return self.daemon.lxc("exec", name, "--", "sh", "-c", script).stdout


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with boxed_daemon() as daemon:
        create(daemon, "br", ipv4_address="10.77.0.1/24", ipv6_address="none")
        nic = {"type": "nic", "network": "br", "name": "eth0"}
        daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"eth0": nic}})
        yield Host(daemon, tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def cloud(host: Host, cloud_image: Image) -> str:
    host.daemon.import_image(cloud_image.metadata, cloud_image.rootfs, alias="cloud")
    return "cloud"


def no_packages(name: str, names: list[str]) -> None:
    pytest.fail(f"{names} were to be installed in {name}")


def test_shared_directories(host: Host, busybox_image: Image, tmp_path: Path) -> None:
    host.daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="debian/12")
    guide = Guide("shared-directories.md", host.daemon, tmp_path, no_packages)
    guide.run()
    assert guide.said["mkdir --parents /srv/projects"].endswith("\n1000 /srv/projects/from-work\n")
    assert guide.said["echo root:1000:1 >>/etc/subuid"].endswith("\n1000 /srv/projects/from-lab\n")
    assert guide.said[VOLUME].endswith("\n1000 /srv/team/note\n")

    owner = "stat -c %u:%g /srv/projects/from-lab"
    assert [host.run(name, owner) for name in ("work", "lab")] == ["1000:1000\n"] * 2
    host.run("work", "touch /srv/projects/of-root")
    assert (host.srv / "projects/of-root").stat().st_uid == 0
    assert "Permission denied" in host.run("lab", "touch /srv/projects/of-root 2>&1 || true")
    assert "Read-only" in host.run("work", "touch /srv/licenses/new 2>&1 || true")


def test_directories_of_an_overlay_are_shared_with_one_user(host: Host) -> None:
    """As the page says: the kernel cannot map the ids of an overlay."""
    layers = host.srv / "layers"
    for name in ("lower", "upper", "work", "merged"):
        (layers / name).mkdir(parents=True)
    options = "lowerdir=lower,upperdir=upper,workdir=work"
    merged = layers / "merged"
    host.box.run("sh", "-c", f"cd {layers} && mount -t overlay -o {options} none {merged}")
    host.box.run("chown", "1000:1000", str(merged))
    disk = {"type": "disk", "source": str(merged), "path": "/mnt"}
    instance = host.daemon.get("/1.0/instances/lab")
    shifted = {**instance["devices"], "layered": {**disk, "shift": "true"}}
    reply = host.daemon.api("PUT", "/1.0/instances/lab", {**instance, "devices": shifted})
    assert "the ids of its file system cannot be mapped" in host.daemon.wait(reply)["err"]

    host.daemon.do("PATCH", "/1.0/instances/lab", {"devices": {"layered": disk}})
    host.daemon.lxc("exec", "lab", "--user", "1000", "--group", "1000", "--", "touch", "/mnt/new")
    assert (layers / "upper/new").stat().st_uid == 1000
    host.daemon.do("PUT", "/1.0/instances/lab", instance)


@pytest.mark.debian
@pytest.mark.long
def test_cloud_init(host: Host, cloud: str, tmp_path: Path) -> None:
    """Without the package of the page, which there is no network to fetch from."""
    replaced = {
        "images:debian/12/cloud": cloud,
        "packages: [nginx]\n": "",
        "/var/www/html/index.html": "/srv/index.html",
    }
    guide = Guide("cloud-init.md", host.daemon, tmp_path, no_packages, replaced)
    guide.run()
    assert "status: done" in guide.said["cat >~/web.yaml <<'END'"]
    found = guide.said["utsuwa exec web -- cloud-init status --long"]
    assert "DataSourceLXD" in found
    assert "  - hostname >/srv/index.html\n" in found, "the user data"
    assert host.run("web", "cat /etc/motd /srv/index.html") == "Set up by cloud-init.\nweb\n"
    assert "AAAA... ada@example.com" in host.run("web", "cat /home/ada/.ssh/authorized_keys")


@pytest.mark.debian
@pytest.mark.long
def test_development(host: Host, cloud: str, cloud_image: Image, tmp_path: Path) -> None:
    def install(name: str, names: list[str]) -> None:
        packages.install(host.daemon, name, cloud_image, tuple(names))

    guide = Guide("development.md", host.daemon, tmp_path, install, {"images:debian/12/cloud": cloud})
    try:
        guide.run()
    finally:
        host.box.run("ssh", "-O", "exit", "desk", check=False)
    assert (
        "status: done"
        in guide.said["[ -e ~/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519"]
    )
    assert guide.said["ssh desk 'echo it works >index.html'"] == "it works\n"
    assert (host.srv / "code/hello").stat().st_uid == 1000
    assert host.run("desk", "ls -d /usr/share/doc") == "/usr/share/doc\n"
    assert host.run("desk", "stat -c %U /home/dev/index.html") == "dev\n"
