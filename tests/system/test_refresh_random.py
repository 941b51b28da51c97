"""Random changes of a volume and of its copy: a refresh makes the copy equal to the volume again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.support.long import LONG, amount
from tests.support.pools import (
    MAP,
    OTHER,
    PRIVILEGED,
    TYPES,
    TestedPool,
    container,
    load,
    next_driver,
    source,
    unpack_key,
    ways,
)
from tests.support.whole_trees import differences, tree
from tests.system.test_storage_random import FILES, FOLDERS, Change, apply, changes
from utsuwa.core.image_source import ImageSource
from utsuwa.host.mounts import mounts
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import CopyDriver
from utsuwa.storage.drivers.file_copies import FileCopies

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

EXAMPLES = amount(5, long=60)

WAYS = [
    *((way, "") for way in ways("packed")),
    *((name, name) for name, kind in TYPES.items() if unpack_key(kind)),
    *((name, next_driver(name)) for name in TYPES),
]
"""The drivers of the volume's pool, and of that of the copy if it is another one."""


@dataclass(frozen=True)
class Round:
    changes: list[Change]
    of_copy: list[Change]
    sneaked: list[bytes]
    """A file whose content changes, but neither its size nor its times of modification."""
    runs: bool
    """Whether the volume is in use while the copy is refreshed."""


files = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(FILES)).map(list)
rounds = st.lists(
    st.builds(Round, st.lists(changes, max_size=4), st.lists(changes, max_size=3), files, st.booleans()),
    min_size=2,
    max_size=4,
)


def sneak(root: Path, names: list[bytes]) -> None:
    path = Path(root, *map(os.fsdecode, names))
    with contextlib.suppress(OSError):
        status = path.lstat()
        if path.is_symlink() or not path.is_file() or not status.st_size:
            return
        with path.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(b"b" if first == b"a" else b"a")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class World:
    """The volume `c1`, and its copy `c2`, which may be on another pool."""

    def __init__(self, pool: TestedPool, other: TestedPool, image: ImageSource) -> None:
        self.pool, self.other = pool, other
        self.copies: CopyDriver = pool.copies if pool is other else FileCopies(pool.driver, other.driver)
        pool.launch(image, "c1", MAP)
        self.copy("c2")

    def copy(self, target: str, *, runs: bool = False, like: str = "") -> None:
        old = container(like) if like else None
        mounted = MAP if runs else None
        self.copies.copy_volume(
            container("c1"), container(target), OTHER, Stopper(), mounted=mounted, like=old
        )

    def round(self, one: Round) -> None:
        note(str(one))
        rootfs = self.pool.mount("c1", PRIVILEGED)
        for change in one.changes:
            apply(rootfs, change)
        sneak(rootfs, one.sneaked)
        expected = tree(rootfs)
        copy = self.other.mount("c2", PRIVILEGED)
        for change in one.of_copy:
            apply(copy, change)
        self.other.unmount("c2")
        self.pool.unmount("c1")
        if one.runs:
            self.pool.mount("c1", MAP)
        self.copy("c3", runs=one.runs, like="c2")
        self.pool.unmount("c1")
        self.other.delete("c2")
        self.other.rename("c3", "c2")
        assert differences(tree(self.other.mount("c2", PRIVILEGED)), expected) == []
        self.other.unmount("c2")
        assert differences(tree(self.pool.mount("c1", PRIVILEGED)), expected) == []


@pytest.mark.parametrize(("way", "other"), WAYS)
def test_refreshed_after_random_changes(way: str, other: str, files: Path, place: Path) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
    )
    @given(rounds)
    def run(plan: list[Round]) -> None:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            pools = [load(Path(folder) / "pool", way)]
            if other:
                pools.append(load(Path(folder) / "other", other))
            for pool in pools:
                pool.driver.create()
            try:
                world = World(pools[0], pools[-1], source(files, way))
                for one in plan:
                    world.round(one)
            finally:
                mounts.unmount_below(Path(folder))

    run()
