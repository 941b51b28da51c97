"""The state folder's disk is full: whatever is asked works or says so, and nothing is half-done."""

from __future__ import annotations

import contextlib
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import images
from tests.support.boxed import boxed_daemon
from tests.support.crash_world import EXTRA, World
from tests.support.disks import loop_ext4
from tests.support.images import Image
from tests.support.long import LONG

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

SIZE = 256 << 20
BLOCK, COARSE = 1024, 64 << 10
ROOMS = (0, 24) if LONG else (24,)
"""KiB that are left: nothing, and too little for what goes on after a good beginning."""
COPYING = ("copy to other pool", "rebuild", "file push", "file push by SFTP")
ROOM_OF_COPIES = 1200
"""KiB that are left in the middle of a copy of all files."""
FULL = re.compile(
    r"[Nn]o space left (for the (database|image|files in)|on the storage pool|on device|while writing)"
)


class Disk:
    """A small ext4 of the test's own in a loop file, which can be filled up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast, self._crumbs = folder / "ballast", folder / "crumbs"

    def fill(self, room: int) -> None:
        """Leave so many KiB."""
        keep = room << 10
        with self._ballast.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, max(self.free() - keep - COARSE, BLOCK))
        # What is left in small pieces, which one large file would not get.
        with self._crumbs.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while self.free() > keep:
                file.write(b"x" * BLOCK)
                os.fdatasync(file.fileno())
        assert self.free() <= keep

    def free(self) -> int:
        left = os.statvfs(self.folder)
        return left.f_bavail * left.f_frsize

    def wait_until_quiet(self) -> None:
        """Images are unpacked in the background, which takes and frees space."""
        seen = [self.free()]
        while len(seen) < 5 or len(set(seen[-5:])) > 1:
            assert len(seen) < 600, "the free space never settles"
            time.sleep(0.05)
            seen.append(self.free())

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)
        self._crumbs.unlink(missing_ok=True)


@pytest.fixture
def disk() -> Iterator[Disk]:
    with tempfile.TemporaryDirectory(prefix="ut-full-", dir="/var/tmp") as outer:
        Path(outer).chmod(0o711)
        with loop_ext4(Path(outer) / "disk", SIZE, "-m", "0", "-b", str(BLOCK)) as folder:
            folder.chmod(0o711)
            yield Disk(folder)


@pytest.fixture
def world(
    disk: Disk, busybox_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setenv("UTSUWA_TEST_DIR", str(disk.folder))
    extra = images.build_busybox(tmp_path, {"name": EXTRA}).unified
    assert extra is not None
    with boxed_daemon(log=tmp_path / "daemon.log") as daemon:
        daemon.faults_expected = True  # what cannot be undone for want of space is logged
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield World(daemon, random.Random(1), extra.read_bytes())
        disk.empty()


def test_everything(world: World, disk: Disk) -> None:
    """Each operation meets a disk that is full, or nearly so."""
    world.operations["exec"] = lambda: world.record(world.have(running=True))
    table = [
        f"| operation |{''.join(f' {room} KiB left |' for room in (*ROOMS, ROOM_OF_COPIES))}",
        "|---|" + "---|" * (len(ROOMS) + 1),
    ]
    for name in world.operations:
        answers = [meet(world, disk, name, room) for room in ROOMS]
        answers.append(meet(world, disk, name, ROOM_OF_COPIES) if name in COPYING else "")
        table.append(f"| {name} | {' | '.join(answers)} |")
    disk.fill(0)
    world.daemon.restart()
    world.daemon.kill()
    world.daemon.start()
    disk.empty()
    world.daemon.restart()
    world.check()
    world.check_that_all_start()
    print("\n".join(table))  # noqa: T201


def meet(world: World, disk: Disk, name: str, room: int) -> str:
    """Do one operation; gives what it came to, by which nothing else has changed."""
    step = world.operations[name]()
    disk.wait_until_quiet()
    before = shown(world)
    disk.fill(room)
    step.request.run()
    done, error = step.request.done, step.request.error
    if not done:
        assert FULL.search(error), f"{name} with {room} KiB: {error}"
        assert shown(world) == before, f"{name} with {room} KiB is half done: {error}"
    step.after(done)
    world.shared.check()
    world.check_instances()
    world.snapshots.check()
    world.check_values()
    disk.empty()
    for name in world.instances:
        world.files_of(name)
    world.check_files()
    return "works" if done else "refused"


def shown(world: World) -> list[Any]:
    """All that the API shows of what is stored, but for images on pools, which come in the background."""
    kinds = ("images", "networks", "profiles", "projects")
    pools = world.daemon.get("/1.0/storage-pools?recursion=1")
    for pool in pools:
        pool["used_by"] = [url for url in pool["used_by"] if not url.startswith("/1.0/images/")]
    instances = world.daemon.get("/1.0/instances?recursion=1")
    for instance in instances:  # a restore of a running one that is refused has restarted it
        del instance["last_used_at"]
        for key in [key for key in instance["config"] if key.endswith(".host_name")]:
            del instance["config"][key]
            del instance["expanded_config"][key]
    snapshots = [world.daemon.get(f"/1.0/instances/{name}/snapshots?recursion=1") for name in world.instances]
    return [pools, instances, snapshots, *(world.daemon.get(f"/1.0/{kind}?recursion=1") for kind in kinds)]
