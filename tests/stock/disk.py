"""The disks of the stock host: a Debian as its packages make it, and what it is given to install.

What takes minutes to make (the system, the bundle for `scripts/quickstart --offline`) is kept in the tests'
cache under a name that says what it is made of. The bundle's disk and the checkout's are made at each run.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import criu, images, packages
from tests.support.cache import cached
from tests.support.long import LONG

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = HERE / "sources.sh"
HOST = "bookworm"
"""The suite of the host that runs the tests."""
PYTHON = Path("/usr/bin/python3")
"""Debian's, which is that of the machine as well if that is of the same suite."""
CARRIED = ("acl", "libcap2-bin")
"""Packages for a container, which has no network to fetch them from; it is a Debian 12, as this host is."""


@dataclass(frozen=True)
class Release:
    """A system to install on: its suite, and the suite that its kernel comes from."""

    suite: str
    kernel: str


RELEASES = {
    "bookworm": Release("bookworm", "bookworm"),
    "bookworm-backports-kernel": Release("bookworm", "bookworm-backports"),
    "trixie": Release("trixie", "trixie"),
}


@dataclass(frozen=True)
class Disks:
    kernel: Path
    initrd: Path
    system: Path
    """Whole file system, no partitions; ext4, sparse. Not to be written to."""
    bundle: Path
    """ext4 with the folder that `scripts/offline-bundle` fills."""
    checkout: Path
    """ext4 with the files that git knows of this checkout, as they are, images and packages."""


def prepare(release: Release, folder: Path) -> Disks:
    """The disks of a release; takes minutes where none are kept. Raises AssertionError with what failed."""
    script = HERE / "make-system"
    made_of = [script.read_bytes(), SOURCES.read_bytes(), repr(release).encode()]
    system = cached(
        f"stock-{release.suite}-kernel-{release.kernel}",
        made_of,
        lambda fresh: _run(script, release.suite, release.kernel, fresh),
    )
    return Disks(
        system / "kernel",
        system / "initrd.img",
        system / "system.img",
        _bundle(release.suite, folder),
        _checkout(release, folder),
    )


def _bundle(suite: str, folder: Path) -> Path:
    """A disk with the bundle, whose program is made of the sources as they are now."""
    fill = HERE / "make-bundle"
    scripts = [ROOT / "scripts" / part for part in ("offline-bundle", "debian-host.sh")]
    files = [fill, SOURCES, ROOT / "pyproject.toml", *scripts, images.DEBIAN, *images.BUILDERS]
    made_of = [file.read_bytes() for file in files]
    if suite != HOST:
        stamp = 'root=$1; . "$1/scripts/debian-host.sh"; program_stamp'
        made_of.append(_run("bash", "-c", stamp, "bash", ROOT))
    kept = cached(
        f"stock-bundle-{suite}",
        made_of,
        lambda fresh: _run(fill, suite, images.debian().metadata.parent, fresh),
    )
    content = folder / "content"
    shutil.copytree(kept, content)
    if suite == HOST:
        _run(ROOT / "scripts/offline-bundle", "--program", content)
    shutil.copytree(criu.installed(), content / "criu")  # as `offline-bundle --criu` adds it
    return _make_image(content, folder / "bundle.img", "bundle")


def _checkout(release: Release, folder: Path) -> Path:
    content = folder / "content"
    listed = _run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.decode().split("\0"):
        source, target = ROOT / name, content / name
        if name and source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    shutil.copytree(cached("stock-packages", [repr(CARRIED).encode()], _download), content / "packages")
    (content / "busybox").mkdir()
    images.build_busybox(content / "busybox")
    if LONG:
        docker = images.debian_13_with_docker()
        shutil.copytree(docker.metadata.parent, content / "docker")
        shutil.copy2(packages.of_sid("runc"), content / "docker")
    if release.suite == HOST:
        # To compile Python takes the emulated machine half a minute. Users' checkouts have nothing compiled,
        # but only the checks, and that of the host before Utsuwa is installed, are run from this one.
        parts = [content / "src", content / "tests"]
        _run(PYTHON, "-m", "compileall", "-q", "-j0", "--invalidation-mode=unchecked-hash", *parts)
    return _make_image(content, folder / "checkout.img", "checkout")


def _download(folder: Path) -> None:
    _run("env", "--chdir", folder, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *CARRIED)


def _make_image(folder: Path, image: Path, label: str) -> Path:
    """Turn the folder into an ext4 file system with what is in it."""
    size = int(_run("du", "--summarize", "--block-size=1M", folder).split()[0])
    _run(
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        label,
        "-E",
        "root_owner=0:0",
        "-d",
        folder,
        image,
        f"{size * 5 // 4 + 16}M",
    )
    shutil.rmtree(folder)
    return image


def _run(*command: str | Path) -> bytes:
    ended = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True)
    reason = ended.stderr.decode(errors="replace")[-4000:]
    assert ended.returncode == 0, f"{command[0]} failed:\n{reason}"
    return ended.stdout
