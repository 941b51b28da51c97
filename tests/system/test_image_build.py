"""`utsuwa image build`: images from definitions, installed in a container."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import archives, images, isolation
from tests.support.archives import TestArchive, content_of, tree_of
from tests.support.client import command, environment, utsuwa_client
from tests.support.daemon import Daemon
from tests.support.leaks import HOME_PREFIX
from tests.support.tls import free_address

pytestmark = pytest.mark.root
SECONDS = 120


@pytest.fixture(scope="module")
def archive() -> TestArchive:
    return archives.archive_of_tests()


@pytest.fixture
def temporary() -> Iterator[Path]:
    """TMPDIR of the builds, in which nothing is left."""
    place = Path(
        tempfile.mkdtemp(prefix=f"{HOME_PREFIX}tmp-", dir=os.environ.get("UTSUWA_TEST_DIR", "/var/tmp"))
    )
    place.chmod(0o755)  # apt downloads as a user of its own, to whom those of pytest are closed
    yield place
    assert list(place.iterdir()) == []
    place.rmdir()


Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(module_daemon: Daemon, tmp_path: Path, temporary: Path) -> Iterator[Build]:
    """Build a definition, given as text; no instance is left."""

    def run(text: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "image.yaml"
        path.write_text(text)
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files/secret").write_text("hidden\n")
        words = ("image", "build", str(path), *arguments)
        return utsuwa_client(
            module_daemon, *words, check=check, env={"TMPDIR": str(temporary)}, timeout=SECONDS
        )

    yield run
    assert module_daemon.get("/1.0/instances") == []


FULL = """\
variant: small
properties:
  version: "1"
  owner: me
packages: [hello]
files:
  - path: /etc/motd
    content: |
      welcome
  - path: /etc/away/utsuwa-out
    content: inside
  - path: /srv/data/secret
    source: files/secret
    mode: 0640
    owner: user:user
commands:
  - echo first >/srv/order
  - |
    cd /srv
    echo second >>order
  - touch /var/log/noise /etc/ssh_host && ln -s /etc/motd /etc/link
templates:
  /etc/motd:
    when: [start]
    content: |
      {{ container.name }}
"""


def test_image_has_what_the_definition_says(
    build: Build, archive: TestArchive, module_daemon: Daemon, tmp_path: Path
) -> None:
    said = build(archive.definition() + FULL, "owner=you", "serial=7", "--alias", "small", "--public").stdout
    fingerprint = said.rsplit(" ", 1)[1].strip()
    image = module_daemon.get(f"/1.0/images/{fingerprint}")
    assert image["public"] is True
    assert [alias["name"] for alias in image["aliases"]] == ["small"]
    properties = {
        key: image["properties"][key] for key in ("os", "release", "variant", "version", "owner", "serial")
    }
    assert properties == {
        "os": "Debian",
        "release": "tiny",
        "variant": "small",
        "version": "1",
        "owner": "you",
        "serial": "7",
    }

    out = tmp_path / "out"
    assert build(archive.definition() + FULL, "owner=you", "serial=7", "--output", str(out)).stdout.endswith(
        f"Image written to {out}\n"
    )
    parts = [out / "metadata.tar.xz", out / "rootfs.squashfs"]
    assert hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest() == fingerprint, (
        "not reproducible"
    )

    rootfs = parts[1]
    tree = tree_of(rootfs)
    assert content_of(rootfs, "/etc/motd") == "welcome\n"
    assert tree["/srv/data/secret"][:2] == ("-rw-r-----", "1000/1000")
    assert content_of(rootfs, "/srv/data/secret") == "hidden\n"
    assert content_of(rootfs, "/srv/order") == "first\nsecond\n"
    assert tree["/etc/link"][2] == "/etc/motd"
    assert content_of(rootfs, "/srv/utsuwa-out") == "inside"
    assert not Path("/srv/utsuwa-out").exists(), "a link of the image led out of it"
    assert "/var/installed" in tree, "the package's script did not run"
    assert content_of(rootfs, "/etc/machine-id") == ""
    assert "/var/log/noise" not in tree
    assert "/etc/hostname" not in tree
    assert content_of(rootfs, "/etc/apt/sources.list") == (
        f"deb [signed-by=/etc/apt/keyrings/archive.gpg] {archive.mirror} tiny main\n"
    )
    assert not [path for path in tree if path.startswith(("/kit", "/var/lib/apt/lists/_"))]


def test_equal_image_is_not_imported_twice_and_reuse_deletes_the_previous_one(
    build: Build, archive: TestArchive, module_daemon: Daemon
) -> None:
    first = module_daemon.get("/1.0/images/aliases/small")["target"]
    same = archive.definition() + FULL
    again = build(same, "owner=you", "serial=7", "--alias", "small", "--reuse").stdout.split()[-1]
    assert again == first
    other = build(archive.definition(variant="other"), "--alias", "small", "--reuse").stdout.split()[-1]
    assert module_daemon.get("/1.0/images") == [f"/1.0/images/{other}"]


@pytest.mark.parametrize(
    ("keys", "rest", "message"),
    [
        pytest.param({}, "packages: [hello, helo]", "There is no package helo in the archive", id="package"),
        pytest.param(
            {}, "packages: [hello=7]", "There is no version 7 of the package hello", id="version of a package"
        ),
        pytest.param(
            {"release": "tinny"}, "", "The archive does not have this release; check 'release'", id="release"
        ),
        pytest.param(
            {"mirror": "http://127.0.0.1:9/debian"},
            "",
            "The archive cannot be reached; check 'mirror'",
            id="mirror that is away",
        ),
        pytest.param(
            {"keyring": "other.gpg"}, "", "The signature of the archive cannot be verified", id="signature"
        ),
        pytest.param({"keyring": "none.gpg"}, "", "none.gpg does not exist or is not readable", id="keyring"),
        pytest.param(
            {},
            "commands: ['true', 'echo out; echo err >&2; exit 7']",
            "Command 2 failed with exit status 7: echo out; echo err >&2; exit 7\n    out\n    err\n",
            id="command",
        ),
        pytest.param(
            {},
            "files: [{path: /etc/x, content: x, owner: nobody:nogroup}]",
            "The file /etc/x cannot be written:\n    chown: invalid user: 'nobody:nogroup'\n",
            id="owner",
        ),
        pytest.param({}, "packages: [broken]", "broken has a script that fails", id="script of a package"),
        pytest.param({}, "storage: fast", "Unknown key 'storage'", id="key"),
    ],
)
def test_error_says_what_is_wrong(
    build: Build, archive: TestArchive, tmp_path: Path, keys: dict[str, str], rest: str, message: str
) -> None:
    if keys.get("keyring") == "other.gpg":
        archives.make_key(tmp_path / "gpg", tmp_path / "other.gpg")
    ended = build(archive.definition(**keys) + rest, check=False)
    assert ended.returncode == 1
    assert message in ended.stderr.replace("\N{LEFT SINGLE QUOTATION MARK}", "'").replace(
        "\N{RIGHT SINGLE QUOTATION MARK}", "'"
    )


SLOW = "commands: ['sleep 1000']"


def begin(daemon: Daemon, tmp_path: Path, temporary: Path, definition: str) -> subprocess.Popen[bytes]:
    path = tmp_path / "slow.yaml"
    path.write_text(definition)
    return subprocess.Popen(
        command("image", "build", str(path)),
        env=environment(daemon) | {"TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def started(daemon: Daemon, tmp_path: Path, temporary: Path, definition: str) -> subprocess.Popen[bytes]:
    """Start a build, and wait until its last command runs in the container."""
    process = begin(daemon, tmp_path, temporary, definition)
    deadline = time.monotonic() + SECONDS
    while not _sleeps(daemon):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "the command does not run"
        time.sleep(0.1)
    return process


def _sleeps(daemon: Daemon) -> bool:
    """Return whether the command of `SLOW` runs in the container."""
    for url in daemon.get("/1.0/instances"):
        name = url.rsplit("/", 1)[1]
        found = utsuwa_client(
            daemon, "exec", name, "--cwd", "/", "--", "/usr/bin/pgrep", "-x", "sleep 1000", "-f", check=False
        )
        if found.returncode == 0:
            return True
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing(
    module_daemon: Daemon, archive: TestArchive, tmp_path: Path, temporary: Path, number: signal.Signals
) -> None:
    process = started(module_daemon, tmp_path, temporary, archive.definition() + SLOW)
    process.send_signal(number)
    assert process.communicate(timeout=SECONDS)[1] == b"Error: Interrupted\n"
    assert process.returncode == 130
    assert module_daemon.get("/1.0/instances") == []


def test_interrupted_download_leaves_nothing(
    module_daemon: Daemon, archive: TestArchive, tmp_path: Path, temporary: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        mirror = f"http://127.0.0.1:{server.getsockname()[1]}/debian"
        process = begin(module_daemon, tmp_path, temporary, archive.definition(mirror=mirror))
        with server.accept()[0]:
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=SECONDS)[1] == b"Error: Interrupted\n"
            assert process.returncode == 130


def test_container_of_a_killed_build_ends_and_the_next_build_removes_its_files(
    module_daemon: Daemon, archive: TestArchive, tmp_path: Path, temporary: Path, build: Build
) -> None:
    process = started(module_daemon, tmp_path, temporary, archive.definition() + SLOW)
    process.kill()
    process.communicate(timeout=SECONDS)
    deadline = time.monotonic() + SECONDS
    while module_daemon.get("/1.0/instances"):
        assert time.monotonic() < deadline, "the container of a killed build remains"
        time.sleep(0.1)
    assert list(temporary.iterdir()), "nothing to remove"
    build(archive.definition() + "packages: [absent]", check=False)


def test_other_servers_install_what_this_host_downloads(
    module_daemon: Daemon, archive: TestArchive, tmp_path: Path, build: Build
) -> None:
    address = free_address()
    config = {"core.https_address": address, "core.trust_password": "sesame"}
    module_daemon.do("PATCH", "/1.0", {"config": config})
    add = ("remote", "add", "far", f"https://{address}", "--accept-certificate", "--password=sesame")
    utsuwa_client(module_daemon, *add)
    out = tmp_path / "out"
    build(archive.definition(), "far:", "--output", str(out))
    assert content_of(out / "rootfs.squashfs", "/etc/machine-id") == ""

    module_daemon.do("POST", "/1.0/projects", {"name": "restricted", "config": {"restricted": "true"}})
    ended = build(archive.definition(), "far:", "--project=restricted", check=False)
    assert ended.returncode == 1
    assert "The container that installs the packages cannot be started" in ended.stderr
    assert "which restricted users and projects may not use" in ended.stderr


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_debian_image_is_the_same_whenever_it_is_built(module_daemon: Daemon, tmp_path: Path) -> None:
    fingerprints = set()
    for name in ("one", "two"):
        # its packages come over the host's network
        words = [*isolation.host_prefix(), *command("image", "build", str(images.DEBIAN))]
        subprocess.run(
            [*words, "--output", str(tmp_path / name)],
            env=environment(module_daemon),
            stdin=subprocess.DEVNULL,
            check=True,
        )
        files = (tmp_path / name / "metadata.tar.xz", tmp_path / name / "rootfs.squashfs")
        fingerprints.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(fingerprints) == 1
