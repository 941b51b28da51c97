"""Pools of every driver for the tests of drivers, and a small image to put on them."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import plain_driver
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.image_source import ImageSource
from utsuwa.core.volumes import Volume
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import DriverType, FolderDriver
from utsuwa.storage.drivers import DRIVERS
from utsuwa.storage.known_pools import KnownPool

PRIVILEGED = IdMap()
FINGERPRINT = "ab" * 32


def idmap(host: int, count: int = 65_536) -> IdMap:
    ranges = (IdRange(0, host, count),)
    return IdMap(ranges, ranges)


MAP, OTHER = idmap(100_000), idmap(2_000_000)

TYPES: Mapping[str, DriverType] = {**DRIVERS, plain_driver.TYPE.name: plain_driver.TYPE}


def unpack_key(kind: DriverType) -> str | None:
    """The key of a driver that can also mount an image as it is."""
    name = f"{kind.name}.unpack_images"
    return name if any(key.name == name for key in kind.keys) else None


def ways(*conditions: str) -> list[str]:
    """Every driver, alone and with each of the conditions under which it can work, as `overlay packed`."""
    found = []
    for kind in TYPES.values():
        out = {"packed", "untrusted"} if unpack_key(kind) is None else set()
        out |= {"shifted"} if kind.needs_idmapped_mounts else set()
        found += [kind.name, *(f"{kind.name} {one}" for one in conditions if one not in out)]
    return found


WAYS = ways("packed", "untrusted", "tar", "shifted")
"""A driver, and what holds: its images are not unpacked, and the image is a squashfs that may be mounted
(packed) or may not (untrusted); it is a tar; there are no idmapped mounts (shifted)."""


def next_driver(name: str) -> str:
    """Another driver than that one: the next in the table."""
    names = list(TYPES)
    return names[(names.index(name) + 1) % len(names)]


def as_kernel_leaves_it(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the way that is the parameter of a fixture, with what holds for it in force."""
    way = str(request.param)
    if way.endswith("shifted"):
        monkeypatch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
    return way


def container(name: str, snapshot: str | None = None) -> Volume:
    """An instance's volume, or a snapshot of it; `c1/s1` stands for both."""
    name, _, after = name.partition("/")
    return Volume("container", "default", name, snapshot or after or None)


class TestedPool(KnownPool):
    """A pool with short words for what tests do with instances on it."""

    __test__ = False

    def bring(self, image: ImageSource, stopper: Stopper | None = None, *, ahead: bool = False) -> None:
        self.images.ensure_image(image, stopper or Stopper(), ahead=ahead)

    def create(self, image: ImageSource | None, name: str = "c1", ids: IdMap = MAP) -> None:
        if image is None:
            self.driver.create_volume(container(name), ids, None)
        else:
            self.images.create_from_image(container(name), ids, image, Stopper())

    def launch(self, image: ImageSource, name: str = "c1", ids: IdMap = MAP) -> Path:
        """Make an instance and mount it; its rootfs."""
        self.bring(image)
        self.create(image, name, ids)
        return self.mount(name, ids)

    def mount(self, name: str = "c1", ids: IdMap = MAP) -> Path:
        return self.driver.mount_volume(container(name), ids)

    def mount_folder(self, folder: str, name: str = "c1", ids: IdMap = MAP) -> Path:
        assert isinstance(self.driver, FolderDriver)
        return self.driver.mount_folder(container(name), ids, folder)

    def unmount(self, name: str = "c1") -> None:
        self.driver.unmount_volume(container(name))

    def copy(self, source: str, target: str, ids: IdMap = MAP, mounted: IdMap | None = None) -> None:
        """Copy a volume or a snapshot; the target's owner is that of `ids`, or the host's for a snapshot."""
        owner = PRIVILEGED if "/" in target else ids
        self.copies.copy_volume(container(source), container(target), owner, Stopper(), mounted=mounted)

    def snapshots(self, name: str = "c1") -> list[str]:
        return self.driver.snapshots(container(name))

    def rename(self, name: str, new: str) -> None:
        self.driver.rename_volume(container(name), container(new))

    def delete(self, name: str) -> None:
        self.driver.delete_volume(container(name))

    def folder(self, name: str = "c1") -> Path:
        return self.driver.volume_folder(container(name))

    def names(self) -> list[str]:
        return self.driver.volumes("container")


def pool_of(driver: str, folder: Path, config: Mapping[str, str] | None = None) -> TestedPool:
    """The pool at `folder`, which is made or was made before."""
    return TestedPool("p", TYPES[driver], folder, config or {}, row_id=1)


def load(folder: Path, way: str) -> TestedPool:
    """The pool of a way, which is made or was made before."""
    driver, *conditions = way.split()
    key = unpack_key(TYPES[driver])
    off = {key: "false"} if key is not None and {"packed", "untrusted"} & {*conditions} else {}
    return pool_of(driver, folder, off)


def new_pool(place: Path, driver: str, **config: str) -> TestedPool:
    """One that has been made; `__` stands for the dot in a key."""
    made = pool_of(driver, place / "pool", {key.replace("__", "."): v for key, v in config.items()})
    made.driver.create()
    return made


def make_files(folder: Path) -> Path:
    """`metadata.tar.xz`, `rootfs.squashfs` and `rootfs.tar` of one small tree; gives the folder."""
    tree = folder / "tree"
    for path, owner in (("bin/tool", 0), ("home/user/file", 1000), ("etc/hosts", 0)):
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"#!/bin/sh\n" * 100)
        os.chown(file, owner, owner)
    (tree / "bin/tool").chmod(0o4755)
    (tree / "bin/second").hardlink_to(tree / "bin/tool")
    (tree / "bin/link").symlink_to("tool")
    os.chown(tree / "bin/link", 7, 7, follow_symlinks=False)
    subprocess.run(["cp", "/bin/true", tree / "bin/ping"], check=True)
    subprocess.run(["setcap", "cap_net_raw+ep", tree / "bin/ping"], check=True)
    pack(tree, folder / "rootfs.squashfs")
    subprocess.run(["tar", "-C", tree, "--xattrs", "-cf", folder / "rootfs.tar", "."], check=True)
    meta = folder / "meta"
    (meta / "templates").mkdir(parents=True)
    (meta / "metadata.yaml").write_text("architecture: x86_64\ncreation_date: 1\n")
    (meta / "templates/hostname.tpl").write_text("{{ container.name }}\n")
    with tarfile.open(folder / "metadata.tar.xz", "w:xz") as tar:
        tar.add(meta / "metadata.yaml", "metadata.yaml")
        tar.add(meta / "templates", "templates")
    return folder


def pack(tree: Path, archive: Path) -> None:
    """A squashfs, or a tar by the archive's name."""
    command: list[str | Path] = ["mksquashfs", tree, archive, "-quiet", "-no-progress"]
    if archive.suffix == ".tar":
        command = ["tar", "-C", tree, "-cf", archive, "."]
    subprocess.run(command, check=True, capture_output=True)


def source(files: Path, way: str) -> ImageSource:
    """The image of a way, of the files that `make_files` made."""
    rootfs = files / ("rootfs.tar" if way.endswith("tar") else "rootfs.squashfs")
    return ImageSource(FINGERPRINT, files / "metadata.tar.xz", rootfs, trusted="untrusted" not in way)


def check_owners(rootfs: Path, ids: IdMap) -> None:
    """Everything shows the ids that the map gives to the container's."""
    for path, owner in (
        (".", 0),
        ("etc/hosts", 0),
        ("home/user/file", 1000),
        ("bin/tool", 0),
        ("bin/link", 7),
    ):
        status = (rootfs / path).lstat()
        assert (status.st_uid, status.st_gid) == (ids.host_uid(owner), ids.host_gid(owner)), path
    assert (rootfs / "bin/tool").stat().st_mode & stat.S_ISUID
    assert (rootfs / "bin/tool").stat().st_ino == (rootfs / "bin/second").stat().st_ino
    capability = os.getxattr(rootfs / "bin/ping", "security.capability")
    root = int.from_bytes(capability[20:24], "little")
    assert root == ids.host_uid(0)


def acl_of(path: Path) -> str:
    return subprocess.run(["getfacl", "-cn", path], capture_output=True, text=True, check=True).stdout


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
