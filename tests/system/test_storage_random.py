"""Random trees and random changes on every driver: snapshots, copies and restores show what there was.

A plain directory gets the same changes, and is copied by `cp` where a volume is copied by its driver.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.support.long import LONG, amount
from tests.support.pools import MAP, PRIVILEGED, TestedPool, container, load, next_driver, source, ways
from tests.support.transfers import bring_up_to_date
from tests.support.whole_trees import Entry, differences, tree
from utsuwa.core.image_source import ImageSource
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import LayerDriver
from utsuwa.storage.drivers import overlay_chains
from utsuwa.storage.drivers.file_copies import FileCopies
from utsuwa.storage.layer_transfer import LayerTransferDriver

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

FOLDERS = [b"etc", b"bin", b"home", b"home/user", b"\xff\xfe", b"-rf *", b".wh.etc", b"l" * 255]
"""Those of the image, and others."""
FILES = [b"hosts", b"tool", b"second", b"file", b"new\nline", b"\xff\xfe", b".wh..wh..opq", b"%41;\t\x01"]
OLD = 1_000_000_000
"""Nanoseconds; times before a second later are compared."""
EXAMPLES = amount(6, long=120)

Change = tuple[str, list[bytes], list[bytes], int]
"""What to do, with which two paths, and a number that says more."""

folders = st.sampled_from(FOLDERS).map(lambda name: [name])
paths = folders | st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FILES)).map(list)
changes = st.tuples(
    st.sampled_from(
        ["write", "append", "punch", "folder", "renew", "renew", "remove", "rename", "rename", "swap", "link"]
        + ["symlink", "mode", "owner", "times", "attribute", "capability", "acl", "fifo", "socket", "device"]
    ),
    paths,
    paths,
    st.integers(0, 3),
)
OPERATIONS = [
    *("snapshot", "snapshot", "snapshot", "mounted snapshot", "restore", "copy", "delete", "remount"),
    *("rename", "restart", "flatten", "other pool", "other server", "other server"),
]
Round = tuple[list[Change], str]
"""Changes, and an operation after them."""
rounds = st.lists(
    st.tuples(st.lists(changes, max_size=4), st.sampled_from(OPERATIONS)), min_size=4, max_size=10
)


def apply(root: Path, change: Change) -> None:
    """Make a change; what is not possible is left."""
    what, first, second, number = change
    one, other = (Path(root, *map(os.fsdecode, names)) for names in (first, second))
    with contextlib.suppress(OSError):
        _ACTIONS[what](one, other, number)


def _write(one: Path, other: Path, number: int) -> None:
    if one.is_symlink():
        return
    one.parent.mkdir(parents=True, exist_ok=True)
    with one.open("wb") as file:
        file.write(bytes([65 + number]) * (number * 5000))


def _append(one: Path, other: Path, number: int) -> None:
    if one.is_file() and not one.is_symlink():
        with one.open("ab") as file:
            file.write(b"more")


def _punch(one: Path, other: Path, number: int) -> None:
    if one.is_file() and not one.is_symlink():
        os.truncate(one, (number + 1) << 18)


def _remove(one: Path, other: Path, number: int) -> None:
    if one.is_dir() and not one.is_symlink():
        shutil.rmtree(one)
    else:
        one.unlink()


def _renew(one: Path, other: Path, number: int) -> None:
    """Remove a directory, and create one of that name with another content."""
    if one.is_dir() and not one.is_symlink():
        shutil.rmtree(one)
        one.mkdir()
        (one / f"new{number}").touch()


def _rename(one: Path, other: Path, number: int) -> None:
    if number and other.is_dir() and not other.is_symlink():
        shutil.rmtree(other)
    one.rename(other)


def _swap(one: Path, other: Path, number: int) -> None:
    if one == other or one in other.parents or other in one.parents or not other.exists():
        return
    away = one.with_name("away")
    one.rename(away)
    other.rename(one)
    away.rename(other)


def _attribute(one: Path, other: Path, number: int) -> None:
    if number:
        os.setxattr(one, f"user.x{number}", bytes([number]) * 20, follow_symlinks=False)
    else:
        os.removexattr(one, "user.x1", follow_symlinks=False)


def _capability(one: Path, other: Path, number: int) -> None:
    """As setcap does it, which refuses all but regular files."""
    if one.is_file() and not one.is_symlink():
        value = bytes((1, 0, 0, 2, 1 << number)) + bytes(15)
        os.setxattr(one, "security.capability", value)


def _times(one: Path, other: Path, number: int) -> None:
    """A time of its own; without it, times are not compared."""
    if not one.is_dir() or one.is_symlink():
        os.utime(one, ns=(number, OLD + number), follow_symlinks=False)


def _acl(one: Path, other: Path, number: int) -> None:
    if one.exists() and not one.is_symlink():
        subprocess.run(["setfacl", "-m", f"u:{1000 + number}:rx", one], check=False, capture_output=True)


def _symlink(one: Path, other: Path, number: int) -> None:
    one.symlink_to(other.name)


_ACTIONS: dict[str, Callable[[Path, Path, int], object]] = {
    "write": _write,
    "append": _append,
    "punch": _punch,
    "folder": lambda one, other, number: one.mkdir(parents=True, exist_ok=True),
    "remove": _remove,
    "rename": _rename,
    "swap": _swap,
    "renew": _renew,
    "link": lambda one, other, number: os.link(one, other, follow_symlinks=False),
    "symlink": _symlink,
    "mode": lambda one, other, number: None if one.is_symlink() else one.chmod(0o4750 + number),
    "owner": lambda one, other, number: os.chown(one, number, 1000, follow_symlinks=False),
    "attribute": _attribute,
    "acl": _acl,
    "fifo": lambda one, other, number: os.mkfifo(one, 0o640),
    "socket": lambda one, other, number: os.mknod(one, 0o640 | stat.S_IFSOCK),
    "capability": _capability,
    "times": _times,
    "device": lambda one, other, number: os.mknod(one, 0o600 | stat.S_IFCHR, os.makedev(1, 3 + number)),
}


class Model:
    """A volume and its snapshots, and plain copies of what they have to be."""

    def __init__(self, way: str, image: ImageSource, place: Path, *, image_is_far: bool) -> None:
        self.way, self.image = way, image
        self.pool = load(place / "pool", way)
        self.other = load(place / "other", next_driver(self.pool.kind.name))
        self.far = load(place / "far", "overlay")
        for pool in (self.pool, self.other, self.far):
            pool.driver.create()
        if image_is_far:
            self.far.bring(image)
        self.image_is_far = image_is_far
        self.place = place / "copies"
        self.place.mkdir()
        self.plain: dict[str, Path] = {}
        self.count = 0
        self.keep("c1", self.pool.launch(image, "c1", PRIVILEGED))

    def keep(self, name: str, source: Path) -> None:
        target = self.place / f"plain-{len(list(self.place.iterdir()))}"
        subprocess.run(["cp", "--archive", "--no-target-directory", source, target], check=True)
        self.plain[name] = target

    def round(self, changes: list[Change], operation: str) -> None:
        note(f"{changes} {operation}")
        rootfs = self.pool.mount("c1", PRIVILEGED)
        for change in changes:
            if change[0] == "acl" and self.way == "overlay packed":
                continue  # squashfs refuses those of files that have not been changed before
            apply(rootfs, change)
            apply(self.plain["c1"], change)
        self.operate(operation)
        self.merge()

    def operate(self, operation: str) -> None:
        snapshots = [f"c1/{name}" for name in self.pool.snapshots()]
        match operation:
            case "snapshot" | "mounted snapshot":
                self.count += 1
                name = f"c1/s{self.count:02}"
                if operation == "snapshot":
                    self.pool.copy("c1", name)
                else:
                    self.pool.mount("c1", PRIVILEGED)
                    self.pool.copy("c1", name, mounted=PRIVILEGED)
                self.keep(name, self.plain["c1"])
            case "restore" if snapshots:
                self.replace(snapshots[-1])
            case "copy":
                self.pool.copy("c1", "c2", PRIVILEGED)
                self.pool.delete("c1")
                self.pool.rename("c2", "c1")
            case "delete" if snapshots:
                name = snapshots[len(snapshots) // 2]
                self.pool.delete(name)
                del self.plain[name]
            case "rename" if snapshots:
                self.count += 1
                self.pool.rename(snapshots[0], f"c1/s{self.count:02}")
                self.plain[f"c1/s{self.count:02}"] = self.plain.pop(snapshots[0])
            case "restart":
                mounts.unmount_below(self.place.parent)
                self.pool = load(self.place.parent / "pool", self.way)
                self.pool.driver.mount()
                self.pool.bring(self.image)
            case "flatten":
                self.flatten()
            case "other pool":
                self.take_over()
            case "other server" if isinstance(self.pool.driver, LayerTransferDriver):
                image = self.image if self.image_is_far else None
                if bring_up_to_date(self.pool, self.far, image) is not None:
                    self.check(self.far)
            case _:
                self.pool.unmount("c1")

    def replace(self, snapshot: str) -> None:
        self.pool.copy(snapshot, "c2", PRIVILEGED)
        self.pool.delete("c1")
        self.pool.rename("c2", "c1")
        self.keep("c1", self.plain[snapshot])

    def flatten(self) -> None:
        """Use the volume as on a kernel that cannot map layers, which turns them into a complete copy."""
        self.pool.unmount("c1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UTSUWA_IDMAPPED_MOUNTS_DISABLE", "1")
            self.pool.mount("c1", MAP)
            self.pool.unmount("c1")
        self.pool.mount("c1", PRIVILEGED)

    def take_over(self) -> None:
        """Copy the volume to a pool of another driver and back."""
        for here, there, name in ((self.pool, self.other, "c1"), (self.other, self.pool, "c2")):
            copies = FileCopies(here.driver, there.driver)
            copies.copy_volume(container("c1"), container(name), PRIVILEGED, Stopper())
            here.delete("c1")
        self.pool.rename("c2", "c1")

    def merge(self) -> None:
        driver = self.pool.driver
        if isinstance(driver, LayerDriver) and (merge := driver.layer_merge(container("c1"))):
            merge.run(Stopper())
            merge.finish()
            merge.end()

    def check(self, pool: TestedPool) -> None:
        for name, plain in self.plain.items():
            found = _with_own_times(tree(pool.mount(name, PRIVILEGED)))
            pool.unmount(name)
            assert differences(found, _with_own_times(tree(plain))) == [], name


def _with_own_times(found: dict[str, Entry]) -> dict[str, Entry]:
    """Without the times at which the changes were made, which differ."""
    return {n: e if e.modified < OLD + 10**9 else replace(e, modified=0) for n, e in found.items()}


@pytest.mark.parametrize("way", ways("packed"))
def test_random_changes(way: str, files: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(
        max_examples=EXAMPLES if way == "overlay" else EXAMPLES // 3,
        deadline=None,
        database=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
    )
    @given(rounds, st.integers(1, 3))
    def run(plan: list[Round], kept: int) -> None:
        monkeypatch.setattr(overlay_chains, "KEPT", kept)  # so that few snapshots suffice for merging layers
        with tempfile.TemporaryDirectory(dir=place) as folder:
            below = Path(folder)
            try:
                model = Model(way, source(files, way), below, image_is_far=kept > 1)
                for changes, operation in plan:
                    model.round(changes, operation)
                model.check(model.pool)
            finally:
                mounts.unmount_below(below)

    run()
