"""Images for tests: a busybox of 2 MB that boots in milliseconds, and a complete Debian."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support import isolation
from tests.support.cache import cached

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "scripts/images/debian-12.yaml"
DOCKER_OF_VISITORS = ROOT / "scripts/images/try-docker.yaml"
TRIXIE: dict[str, Any] = {"release": "trixie", "properties": {"version": "13"}}
"""What differs in the definition for Debian 13."""
BUILDERS = sorted((ROOT / "src/utsuwa/cli/building").glob("*.*"))
"""What makes of the definition an image, without a daemon."""
BUSYBOX = Path("/bin/busybox")
UNIFIED, METADATA, ROOTFS = "busybox.tar.xz", "meta.tar.xz", "rootfs.squashfs"
FOLDERS = ("bin", "dev", "etc", "home", "home/user", "mnt", "proc", "root", "run", "sbin", "sys", "tmp")

# busybox's own default table spins on terminals that are not there.
INITTAB = b"::sysinit:/bin/true\n::ctrlaltdel:/sbin/reboot\n::restart:/sbin/init\n"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
GROUP = b"root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"
HOSTS = b"127.0.0.1\tlocalhost\n127.0.1.1\t{{ container.name }}\n"


@dataclass(frozen=True)
class Image:
    """The files of an image in both forms; `unified` is None if only the split form was built."""

    metadata: Path
    rootfs: Path
    unified: Path | None = None


def template(path: str, when: tuple[str, ...], file: str) -> dict[str, Any]:
    """One entry of metadata.yaml's `templates`."""
    return {path: {"when": list(when), "create_only": False, "template": file, "properties": {}}}


def build_busybox(folder: Path, properties: Mapping[str, str] | None = None) -> Image:
    """Write the files of both forms to the directory.

    Images built from other `properties` have another fingerprint.
    """
    files = _busybox_files()
    meta = _metadata_files(properties or {})
    with tarfile.open(folder / UNIFIED, "w:xz", preset=1) as tar:
        _add(tar, meta)
        _add(tar, {"rootfs": None} | {f"rootfs/{path}": content for path, content in files.items()})
    with tarfile.open(folder / METADATA, "w:xz", preset=1) as tar:
        _add(tar, meta)
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as tar:
        _add(tar, files)
    subprocess.run(
        [
            "mksquashfs",
            "-",
            str(folder / ROOTFS),
            "-tar",
            "-exports",
            "-noappend",
            "-quiet",
            "-no-progress",
            "-comp",
            "zstd",
            "-root-mode",
            "755",
        ],
        input=tree.getvalue(),
        capture_output=True,
        check=True,
    )
    return busybox_in(folder)


def busybox_in(folder: Path) -> Image:
    """Return the image that `build_busybox` has written there."""
    return Image(folder / METADATA, folder / ROOTFS, folder / UNIFIED)


def build_with_init(
    folder: Path, name: str, init: str, more: Mapping[str, bytes | str | None] | None = None
) -> Path:
    """Write `NAME.tar`, a unified busybox image whose /sbin/init is the script `init`.

    `more` are further files by path: content, the target of a symlink, or None for a directory.
    """
    files = {f"rootfs/{path}": content for path, content in _busybox_files().items()}
    unified = folder / f"{name}.tar"
    with tarfile.open(unified, "w") as tar:
        _add(tar, _metadata_files({"name": name}))
        added = {f"rootfs/{path}": content for path, content in (more or {}).items()}
        _add(tar, {"rootfs": None} | files | added | {"rootfs/sbin/init": init.encode()})
    return unified


def _busybox_files() -> dict[str, bytes | str | None]:
    """Return content by path: bytes for a file, str for a symlink's target, None for a directory."""
    applets = subprocess.run([str(BUSYBOX), "--list-full"], capture_output=True, check=True, text=True)
    files: dict[str, bytes | str | None] = dict.fromkeys(FOLDERS)
    files |= {"bin/busybox": BUSYBOX.read_bytes()}
    files |= {"usr": None, "usr/bin": None, "usr/sbin": None, "var": None}
    files |= {path: "/bin/busybox" for path in applets.stdout.split() if path != "bin/busybox"}
    files |= {"etc/inittab": INITTAB, "etc/passwd": PASSWD, "etc/group": GROUP}
    return files


def _metadata_files(properties: Mapping[str, str]) -> dict[str, bytes | str | None]:
    machine = platform.machine()
    described = {"os": "BusyBox", "description": f"BusyBox {machine}", "name": f"busybox-{machine}"}
    metadata = {
        "architecture": machine,
        "creation_date": int(BUSYBOX.stat().st_mtime),
        "properties": described | {"architecture": machine} | dict(properties),
        "templates": template("/etc/hostname", ("create", "copy"), "hostname.tpl")
        | template("/etc/hosts", ("create", "copy"), "hosts.tpl"),
    }
    return {
        "metadata.yaml": json.dumps(metadata, indent=2, sort_keys=True).encode(),
        "templates": None,
        "templates/hostname.tpl": b"{{ container.name }}\n",
        "templates/hosts.tpl": HOSTS,
    }


def _add(tar: tarfile.TarFile, files: Mapping[str, bytes | str | None]) -> None:
    for path, content in files.items():
        entry = tarfile.TarInfo(path)
        if content is None:
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if path.endswith("tmp") else 0o755
        elif isinstance(content, str):
            entry.type, entry.mode, entry.linkname = tarfile.SYMTYPE, 0o777, content
        else:
            entry.mode, entry.size = 0o755 if "bin/" in path else 0o644, len(content)
        if path.endswith("home/user"):
            entry.uid = entry.gid = 1000
        tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)


def debian() -> Image:
    """Return the image of `scripts/images/debian-12.yaml`."""
    return _built("debian-12", DEBIAN.read_text())


def debian_13() -> Image:
    """Return the same of Debian 13."""
    return _variant("debian-13", **TRIXIE)


def debian_with_cloud_init() -> Image:
    """Return the same of Debian 12 with cloud-init."""
    return _variant("debian-12-cloud", "cloud-init", "openssh-client")


def debian_13_with_docker() -> Image:
    """Return the same of Debian 13 with Docker and Podman."""
    docker = ("docker.io", "docker-cli", "docker-buildx", "iptables", "apparmor", "busybox-static")
    podman = ("podman", "crun", "netavark", "nftables")
    return _variant("debian-13-docker", *docker, *podman, **TRIXIE)


def docker_of_visitors() -> Image:
    """Return the image `docker` of the visitors of the public site."""
    definition = yaml.safe_load(DOCKER_OF_VISITORS.read_text())
    for file in definition["files"]:
        file["content"] = (DOCKER_OF_VISITORS.parent / file.pop("source")).read_text()
    return _built("try-docker", yaml.safe_dump(definition, sort_keys=False))


def _variant(name: str, *packages: str, **changes: Any) -> Image:
    """Return the image of the definition with further packages and other values."""
    definition = yaml.safe_load(DEBIAN.read_text()) | changes
    definition["packages"] += packages
    return _built(name, yaml.safe_dump(definition, sort_keys=False))


def _built(name: str, definition: str) -> Image:
    """Return the image of a definition, cached until that or what builds it changes."""

    def build(folder: Path) -> None:
        # its packages come over the host's network
        source = folder / "definition.yaml"
        source.write_text(definition)
        words = (sys.executable, "-m", "utsuwa.cli.building", str(source), str(folder))
        built = subprocess.run(
            [*isolation.host_prefix(), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=ROOT / "src",
        )
        assert built.returncode == 0, built.stderr.decode(errors="replace")[-4000:]

    folder = cached(name, [definition.encode(), *(file.read_bytes() for file in BUILDERS)], build)
    return Image(folder / "metadata.tar.xz", folder / "rootfs.squashfs")
