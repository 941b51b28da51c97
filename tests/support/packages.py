"""Packages of Debian for guests that have no network to fetch them from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support import isolation
from tests.support.cache import cached
from tests.support.daemon import Daemon
from tests.support.images import Image


def missing_from(image: Image, names: tuple[str, ...]) -> list[Path]:
    """Return the files of packages, with those that they depend on and the image lacks, for `dpkg --install`.

    The image is of the host's release and architecture, as the host's apt fetches them.
    """
    status = subprocess.run(
        ["unsquashfs", "-cat", str(image.rootfs), "var/lib/dpkg/status"], capture_output=True, check=True
    ).stdout

    def fetch(folder: Path) -> None:
        (folder / "partial").mkdir()
        (folder / "status").write_bytes(status)
        settings = {"Dir::State::status": str(folder / "status"), "Dir::Cache::archives": str(folder)}
        words = ("--download-only", "--yes", "--no-install-recommends", "install", *names)
        _apt_get(settings, *words)

    folder = cached(f"guest-packages-{names[0]}", [status, repr(names).encode()], fetch)
    return sorted(folder.glob("*.deb"))


def of_sid(name: str) -> Path:
    """Return the file of a package of Debian's unstable release, as it was when it was first fetched."""

    def fetch(folder: Path) -> None:
        uri = _host("apt-get", "indextargets", "--format", "$(REPO_URI)", *_MAIN).split()[0]
        sources, lists = folder / "sources", folder / "lists"
        (lists / "partial").mkdir(parents=True)
        sources.write_text(f"deb [signed-by={_KEYRING}] {uri} sid main\n")
        settings = {
            "Dir::Etc::SourceList": str(sources),
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": str(lists),
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Acquire::Languages": "none",
        }
        _apt_get(settings, "update")
        _apt_get(settings, "download", name, cwd=folder)
        shutil.rmtree(lists)

    (file,) = cached(f"sid-package-{name}", [], fetch).glob("*.deb")
    return file


_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MAIN = ("Created-By: Packages", "Label: Debian", "Component: main")
_ALWAYS = {"APT::Sandbox::User": "root", "Debug::NoLocking": "1"}


def _apt_get(settings: Mapping[str, str], *words: str, cwd: Path | None = None) -> None:
    options = (word for key, value in {**_ALWAYS, **settings}.items() for word in ("-o", f"{key}={value}"))
    _host(*(("env", f"--chdir={cwd}") if cwd else ()), "apt-get", "-q", "-q", *options, *words)


def _host(*command: str) -> str:
    """Run a command that needs the machine's network, and return what it prints."""
    ended = subprocess.run(
        [*isolation.host_prefix(), *command], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def install(daemon: Daemon, name: str, image: Image, names: tuple[str, ...]) -> None:
    """Install packages in an instance of `image` that runs."""
    folder = f"/root/packages-{names[0]}"
    files = map(str, missing_from(image, names))
    daemon.lxc("file", "push", "--create-dirs", *files, f"{name}{folder}/", timeout=180)
    script = f"apt-get -q -y -o DPkg::Options::=--force-unsafe-io install {folder}/* && rm -r {folder}"
    daemon.lxc("exec", name, "--env", "DEBIAN_FRONTEND=noninteractive", "--", "sh", "-c", script, timeout=300)
