"""`utsuwa image build`: images from definitions, installed in a container."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import archives
from tests.support.archives import TestArchive, content_of, tree_of
from tests.support.client import command, environment, utsuwa_client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root
SECONDS = 120


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> TestArchive:
    folder = tmp_path_factory.mktemp("archive")
    for place in (folder, folder.parent, folder.parent.parent):
        place.chmod(0o755)  # apt reads it as a user of its own
    return archives.make(folder)


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """TMPDIR of the builds, in which nothing is left."""
    place = Path(tempfile.mkdtemp(prefix="utsuwa-test-tmp-", dir=tmp_path))
    for folder in (place, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    yield place
    assert list(place.iterdir()) == []


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


def started(daemon: Daemon, tmp_path: Path, temporary: Path, definition: str) -> subprocess.Popen[bytes]:
    """Start a build, and wait until its last command runs in the container."""
    path = tmp_path / "slow.yaml"
    path.write_text(definition)
    process = subprocess.Popen(
        command("image", "build", str(path)),
        env=environment(daemon) | {"TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + SECONDS
    while not _sleeps(daemon):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
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
