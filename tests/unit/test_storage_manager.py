"""The storage manager over a real database and drivers that only remember: rows, undo, locks, events."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import prepared
from tests.support.instances import instance_row
from tests.support.members import second_member
from tests.support.open_warnings import OpenWarnings, no_retries
from utsuwa.core import clock
from utsuwa.core.errors import (
    AlreadyExists,
    HostError,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
    OtherMember,
    OutOfSpace,
    ProcessFailed,
    Unavailable,
)
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.paths import StatePaths
from utsuwa.core.scope import EVERYTHING, NOTHING, Scope
from utsuwa.core.volumes import Volume, VolumeKind
from utsuwa.db import images as image_rows
from utsuwa.db import instances as instance_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db import storage_pools, storage_volumes
from utsuwa.db.codes import VOLUME_CONTAINER, VOLUME_IMAGE
from utsuwa.db.database import Database
from utsuwa.db.images import ImageRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.processes.stopper import Stopper
from utsuwa.operations import retries
from utsuwa.operations.events import EventHub
from utsuwa.operations.operations import Operations
from utsuwa.storage import pools as module
from utsuwa.storage.base import DriverType, Fill, Usage
from utsuwa.storage.drivers import driver_type
from utsuwa.storage.manager import StorageManager
from utsuwa.storage.volume_rows import new_row
from utsuwa.wire.edits import any_state
from utsuwa.wire.edits import replace as replace_with
from utsuwa.wire.storage import StoragePoolPut

FINGERPRINT = "ab" * 32
IMAGE = ImageSource(FINGERPRINT, Path("/metadata"), Path("/rootfs"))


def container(name: str) -> Volume:
    return Volume("container", "default", name)


class FakeDriver:
    """A pool in memory. `fail[method]` is raised once; `gate` holds the making of volumes up,
    `unpacking` the bringing of an image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exists = False
        self.discarded = False
        self.kept: dict[str, str | None] = {}
        self.on_pool: set[str] = set()
        self.mounted: dict[str, IdMap] = {}
        self.fail: dict[str, Exception] = {}
        self.gate: threading.Event | None = None
        self.held_up = threading.Event()
        self.unpacked = 0
        self.unpacking: threading.Event | None = None
        self.trimmed: list[str] = []
        self.configured: list[Mapping[str, str]] = []

    def _maybe_fail(self, method: str) -> None:
        if error := self.fail.pop(method, None):
            raise error

    def create(self) -> None:
        self._maybe_fail("create")
        self.exists = True

    def delete(self) -> None:
        self._maybe_fail("delete")
        self.exists = False

    def discard(self) -> None:
        self._maybe_fail("discard")
        self.discarded = True

    def mount(self) -> None:
        self._maybe_fail("mount")

    def unmount(self) -> None:
        self.mounted.clear()

    def usage(self) -> Usage:
        return Usage(1, 2, 3, 4)

    def configure(self, config: Mapping[str, str]) -> bool:
        self.configured.append(config)
        return True

    def ensure_image(self, image: ImageSource, stopper: Stopper, *, ahead: bool) -> None:
        self._maybe_fail("ensure_image")
        if image.fingerprint in self.on_pool:
            return
        self.unpacked += 1
        while self.unpacking is not None and not self.unpacking.wait(0.01):
            if stopper.stopped:
                raise ProcessFailed(["unsquashfs"], None, "was stopped")
        self.on_pool.add(image.fingerprint)

    def trim_image(self, fingerprint: str) -> None:
        self.trimmed.append(fingerprint)

    def sync_images(self) -> None:
        self._maybe_fail("sync_images")

    def delete_image(self, fingerprint: str) -> None:
        self.on_pool.discard(fingerprint)

    def images(self) -> list[str]:
        return sorted(self.on_pool)

    def image_users(self, fingerprint: str) -> list[str]:
        self._maybe_fail("image_users")
        return [name for name, image in self.kept.items() if image == fingerprint]

    def create_volume(self, volume: Volume, idmap: IdMap, fill: Fill | None) -> None:
        self._create(volume, None)

    def create_from_image(self, volume: Volume, idmap: IdMap, image: ImageSource, stopper: Stopper) -> None:
        assert image.fingerprint in self.on_pool
        self._create(volume, image.fingerprint)

    def _create(self, volume: Volume, image: str | None) -> None:
        if self.gate:
            self.held_up.set()
            self.gate.wait(10)
        self._maybe_fail("create_volume")
        self.kept[volume.storage_name] = image

    def image_of(self, volume: Volume) -> str | None:
        return self.kept.get(volume.storage_name)

    def delete_volume(self, volume: Volume) -> None:
        self.mounted.pop(volume.storage_name, None)
        self.kept.pop(volume.storage_name, None)

    def rename_volume(self, volume: Volume, new: Volume) -> None:
        self._maybe_fail("rename_volume")
        if volume.storage_name in self.kept:
            self.kept[new.storage_name] = self.kept.pop(volume.storage_name)

    def rename_snapshots(self, volume: Volume, new: Volume) -> None:
        self._maybe_fail("rename_snapshots")

    def snapshots(self, volume: Volume) -> list[str]:
        return []

    def mount_volume(self, volume: Volume, idmap: IdMap) -> Path:
        self.mounted[volume.storage_name] = idmap
        return self.volume_folder(volume) / "rootfs"

    def unmount_volume(self, volume: Volume) -> None:
        self.mounted.pop(volume.storage_name, None)

    def volume_folder(self, volume: Volume) -> Path:
        return self.folder / volume.path

    def volume_usage(self, volume: Volume) -> int | None:
        self._maybe_fail("volume_usage")
        return 42

    def volumes(self, kind: VolumeKind) -> list[str]:
        return sorted(self.kept) if kind == "container" else []


class QuotaDriver(FakeDriver):
    """One that enforces sizes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.quotas: dict[str, int | None] = {}

    def set_quota(self, volume: Volume, size: int | None) -> None:
        self._maybe_fail("set_quota")
        self.quotas[volume.storage_name] = size


NOT_ENFORCED = "Size of a volume not enforced"


class Setting:
    """A manager, what it stands on, and the drivers that it made."""

    def __init__(self, database: Database, paths: StatePaths) -> None:
        self.database = database
        self.paths = paths
        self.hub = EventHub()
        self.drivers: dict[str, FakeDriver] = {}
        self.events: list[tuple[str, str]] = []
        self.warnings = OpenWarnings()
        self.retries = no_retries()
        self.manager = self.again()

    def again(self) -> StorageManager:
        """The manager of a daemon that was started anew."""
        self.manager = StorageManager(
            self.database, self.paths, Operations(self.hub), self.warnings, self.retries
        )
        return self.manager

    def kind(self, name: str) -> DriverType:
        """The real record with a driver that only remembers."""
        return replace(driver_type(name), make=self.make)

    def make(self, folder: Path, config: Mapping[str, str]) -> FakeDriver:
        return self.drivers.setdefault(folder.name, FakeDriver(folder))

    async def create(self, name: str = "c1", image: ImageSource | None = IMAGE) -> None:
        await self.manager.volumes.create("p", container(name), IdMap(), image)

    async def volumes(self, kind: int = VOLUME_CONTAINER) -> list[str]:
        found = await self.database.read("test", storage_volumes.get_all, None, "p", kind)
        return [volume.name for volume in found]

    async def rows(self) -> list[VolumeRow]:
        return await self.database.read("test", storage_volumes.get_here, "p", VOLUME_CONTAINER)

    async def write(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self.database.write("test", work, *arguments)


@pytest.fixture
async def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    paths = StatePaths(tmp_path / "state")
    paths.root.mkdir()
    paths.create_directories()
    database = await Database.open(prepared.sqlite(paths.database))
    made = Setting(database, paths)
    monkeypatch.setattr(module, "driver_type", made.kind)
    monkeypatch.setattr(
        made.hub, "publish_lifecycle", lambda action, source, *_: made.events.append((action, source))
    )
    yield made
    await made.retries.stop()
    await made.manager.stop()
    await database.close()


@pytest.fixture
async def pool(setting: Setting) -> FakeDriver:
    await setting.manager.pools.create("p")
    return setting.drivers["p"]


def image_row() -> ImageRow:
    return ImageRow(
        id=0, project="default", fingerprint=FINGERPRINT, filename="x", size=1, architecture="x86_64",
        created_at=None, expires_at=None, uploaded_at=clock.now(), state="ready",
    )  # fmt: skip


# ---- pools


async def test_a_pool_from_birth_to_death(setting: Setting) -> None:
    manager = setting.manager
    await manager.pools.create("p", description="first", config={"rsync.bwlimit": "10MB", "user.x": ""})
    (shown,) = await manager.pools.all()
    assert shown.available
    assert (shown.row.driver, shown.row.description) == ("overlay", "first")
    assert shown.row.config == {
        "source": str(setting.paths.pool("p")),
        "rsync.bwlimit": "10MB",
        "overlay.mount_options": "redirect_dir=on,index=on,nfs_export=on,metacopy=off",
    }
    assert await manager.pools.resources("p") == Usage(1, 2, 3, 4)
    assert manager.pools.drivers_in_use == {"overlay"}
    await manager.pools.edit(
        "p", replace_with(StoragePoolPut(description="second", config={"user.y": "1"})), any_state
    )
    row = await manager.pools.get("p")
    assert row.description == "second"
    assert row.config["user.y"] == "1"
    assert "rsync.bwlimit" not in row.config
    assert row.config["source"] == str(setting.paths.pool("p"))
    await manager.pools.delete("p")
    assert await manager.pools.all() == []
    assert not setting.drivers["p"].exists
    url = "/1.0/storage-pools/p"
    assert setting.events == [(f"storage-pool-{what}", url) for what in ("created", "updated", "deleted")]


async def test_given_source_is_stored_as_initial_source(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    await setting.manager.pools.create("p", "dir", config={"source": str(tmp_path / "link")})
    config = (await setting.manager.pools.get("p")).config
    assert config == {
        "source": str(tmp_path / "real"),
        "volatile.initial_source": str(tmp_path / "link"),
    }


async def test_what_another_server_has_noted_of_its_pool_is_passed_over(setting: Setting) -> None:
    """LXD's dumps hold it, and its own preseed takes it back (lxd#9006)."""
    await setting.manager.pools.create("p", "dir", config={"volatile.initial_source": "/dev/sdb"})
    assert (await setting.manager.pools.get("p")).config == {"source": str(setting.paths.pool("p"))}


@pytest.mark.parametrize(
    ("name", "driver", "config", "error"),
    [
        ("", "dir", {}, InvalidName),
        ("a/b", "dir", {}, InvalidName),
        ("p", "floppy", {}, InvalidRequest),
        ("p", "dir", {"size": "1GiB"}, InvalidConfig),
        ("p", "dir", {"source": "here"}, InvalidConfig),
        ("p", "dir", {"source": "/"}, InvalidConfig),
        ("p", "overlay", {"overlay.mount_options": "userxattr"}, InvalidConfig),
    ],
)
async def test_pools_that_are_refused(
    setting: Setting, name: str, driver: str, config: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await setting.manager.pools.create(name, driver, config=config)
    assert await setting.manager.pools.all() == []
    assert setting.events == []


async def test_no_source_in_the_state_folder(setting: Setting) -> None:
    with pytest.raises(InvalidConfig, match="state directory"):
        await setting.manager.pools.create("p", config={"source": str(setting.paths.images)})
    await setting.manager.pools.create("p", config={"source": str(setting.paths.pool("p"))})


async def test_a_name_that_is_taken(setting: Setting, pool: FakeDriver) -> None:
    with pytest.raises(AlreadyExists, match="'p'"):
        await setting.manager.pools.create("p", "dir")
    assert pool.exists


async def test_a_pool_that_cannot_be_made_leaves_nothing(setting: Setting) -> None:
    setting.drivers["p"] = FakeDriver(setting.paths.pool("p"))
    setting.drivers["p"].fail["create"] = OutOfSpace("full")
    with pytest.raises(OutOfSpace):
        await setting.manager.pools.create("p")
    with pytest.raises(NotFound):
        await setting.manager.pools.get("p")
    await setting.manager.pools.create("p")


@pytest.mark.parametrize("key", ["source", "volatile.initial_source", "overlay.mount_options"])
async def test_fixed_keys(setting: Setting, pool: FakeDriver, key: str) -> None:
    with pytest.raises(InvalidConfig, match=key):
        await setting.manager.pools.edit(
            "p",
            replace_with(StoragePoolPut(config={key: "/other" if "source" in key else "index=on"})),
            any_state,
        )


async def test_updates_that_are_refused(setting: Setting, pool: FakeDriver) -> None:
    with pytest.raises(InvalidConfig, match="unknown"):
        await setting.manager.pools.edit(
            "p", replace_with(StoragePoolPut(config={"unknown": "1"})), any_state
        )
    with pytest.raises(NotFound):
        await setting.manager.pools.edit("q", replace_with(StoragePoolPut()), any_state)
    assert [e for e, _ in setting.events] == ["storage-pool-created"]


async def test_a_pool_in_use_stays(setting: Setting, pool: FakeDriver) -> None:
    await setting.create()
    with pytest.raises(InUse, match="in use"):
        await setting.manager.pools.delete("p")
    await setting.manager.volumes.delete("p", container("c1"))
    disk = {"root": {"type": "disk", "path": "/", "pool": "p"}}
    profile = await setting.write(profile_rows.insert, ProfileRow(0, "default", "disks", devices=disk))
    with pytest.raises(InUse):
        await setting.manager.pools.delete("p")
    assert pool.exists
    await setting.write(profile_rows.delete, profile)
    await setting.manager.pools.delete("p")


async def test_instances_can_be_used_while_deleting_their_pool_fails(
    setting: Setting, pool: FakeDriver
) -> None:
    await setting.create()
    deletion = asyncio.create_task(setting.manager.pools.delete("p"))
    while not deletion.done():
        await setting.manager.volumes.unmount("p", container("c1"))
    with pytest.raises(InUse):
        await deletion


async def test_images_do_not_hold_a_pool(setting: Setting, pool: FakeDriver) -> None:
    await setting.write(image_rows.insert, image_row())
    await setting.create()
    await setting.manager.volumes.delete("p", container("c1"))
    shown = await setting.manager.pools.show("p")
    assert shown.use.volumes == [(VOLUME_IMAGE, "default", FINGERPRINT)]
    await setting.manager.pools.delete("p")


async def test_a_pool_that_cannot_be_removed_can_be_removed_later(setting: Setting, pool: FakeDriver) -> None:
    pool.fail["delete"] = HostError("busy")
    with pytest.raises(HostError):
        await setting.manager.pools.delete("p")
    await setting.manager.pools.delete("p")
    with pytest.raises(NotFound):
        await setting.manager.pools.show("p")


async def test_deleted_pool_stays_deleted_if_its_row_cannot_be_removed(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no room for the removal of its row, and its files cannot come back."""

    def full(*_: object) -> None:
        raise OutOfSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(storage_pools, "delete", full)
        await setting.manager.pools.delete("p")
    assert "before the next start: full" in caplog.text
    assert not pool.exists
    assert await setting.manager.pools.all() == []
    with pytest.raises(NotFound):
        await setting.manager.pools.get("p")
    await setting.manager.pools.create("p")
    assert [shown.row.name for shown in await setting.manager.pools.all()] == ["p"]


async def test_start_completes_an_interrupted_deletion(setting: Setting, pool: FakeDriver) -> None:
    row = await setting.database.read("test", storage_pools.get, "p")
    await setting.write(storage_pools.set_state, row.id, "deleting")
    manager = setting.again()
    await manager.start()
    assert not pool.exists
    assert await manager.pools.all() == []
    await manager.pools.create("p")


# ---- instances


async def test_an_instance_from_birth_to_death(setting: Setting, pool: FakeDriver) -> None:
    await setting.write(image_rows.insert, image_row())
    await setting.create()
    link = setting.paths.containers / "c1"
    assert link.readlink() == setting.manager.volumes.folder("p", container("c1"))
    assert await setting.volumes() == ["c1"]
    assert await setting.volumes(VOLUME_IMAGE) == [FINGERPRINT]
    volume = container("c1")
    assert await setting.manager.volumes.mount("p", volume, IdMap()) == link.readlink() / "rootfs"
    assert list(pool.mounted) == ["c1"]
    await setting.manager.volumes.unmount("p", container("c1"))
    assert not pool.mounted
    assert await setting.manager.volumes.usage("p", container("c1")) == 42
    pool.fail["volume_usage"] = HostError("gone")
    assert await setting.manager.volumes.usage("p", container("c1")) is None
    await setting.manager.volumes.rename("p", container("c1"), container("c2"))
    assert pool.volumes("container") == await setting.volumes() == ["c2"]
    assert [p.name for p in setting.paths.containers.iterdir()] == ["c2"]
    for _ in range(2):
        await setting.manager.volumes.delete("p", container("c2"))
    assert pool.volumes("container") == await setting.volumes() == []
    assert not list(setting.paths.containers.iterdir())
    assert pool.images() == [FINGERPRINT]


@pytest.mark.parametrize("step", ["ensure_image", "create_volume"])
async def test_a_failure_leaves_nothing(setting: Setting, pool: FakeDriver, step: str) -> None:
    pool.fail[step] = OutOfSpace("full")
    with pytest.raises(OutOfSpace):
        await setting.create()
    assert pool.volumes("container") == pool.images() == await setting.volumes() == []
    assert await setting.volumes(VOLUME_IMAGE) == []
    assert not list(setting.paths.containers.iterdir())
    await setting.create()


async def test_cancelled_in_mid_creation(setting: Setting, pool: FakeDriver) -> None:
    """The thread cannot be stopped: its end is awaited, then its work is undone."""
    pool.gate = threading.Event()
    task = asyncio.create_task(setting.create())
    assert await asyncio.to_thread(pool.held_up.wait, 10)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    pool.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.volumes("container") == pool.images() == await setting.volumes() == []


async def test_unpacking_ends_early_for_a_creation_that_is_cancelled(
    setting: Setting, pool: FakeDriver
) -> None:
    pool.unpacking = threading.Event()
    creation = asyncio.create_task(setting.create())
    while not pool.unpacked:
        await asyncio.sleep(0.01)
    creation.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await creation
    assert pool.volumes("container") == pool.images() == await setting.volumes() == []


async def test_cancelled_while_the_image_is_released(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    letting_go = asyncio.Event()

    async def slow(*_: object, **__: object) -> None:
        letting_go.set()
        await asyncio.sleep(10)

    with monkeypatch.context() as patch:
        patch.setattr(setting.manager.images, "_forget", slow)
        creation = asyncio.create_task(setting.create())
        await letting_go.wait()
        patch.undo()
        creation.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creation
    assert pool.volumes("container") == pool.images() == await setting.volumes() == []
    assert not (setting.paths.containers / "c1").is_symlink()


async def test_an_image_that_cannot_be_removed_causes_no_failure(setting: Setting, pool: FakeDriver) -> None:
    pool.fail["image_users"] = HostError("one record is damaged")
    await setting.create()
    assert pool.volumes("container") == ["c1"]
    pool.fail["image_users"] = HostError("one record is damaged")
    await setting.manager.volumes.delete("p", container("c1"))
    assert pool.volumes("container") == await setting.volumes() == []


async def test_a_pool_is_not_deleted_below_what_is_just_being_made(
    setting: Setting, pool: FakeDriver
) -> None:
    pool.gate = threading.Event()
    creation = asyncio.create_task(setting.create())
    while not await setting.volumes():
        await asyncio.sleep(0.001)
    with pytest.raises(InUse):
        await setting.manager.pools.delete("p")
    pool.gate.set()
    await creation
    assert pool.volumes("container") == ["c1"]
    await setting.manager.volumes.delete("p", container("c1"))
    # And the other way round: the pool is closed first.
    async with setting.manager.volumes._locks.hold("p", container("c2")):
        creation = asyncio.create_task(setting.create("c2"))
        await asyncio.sleep(0.01)
        await setting.manager.pools.delete("p")
    with pytest.raises((NotFound, Unavailable)):
        await creation
    assert pool.volumes("container") == []


async def test_a_rename_that_fails(setting: Setting, pool: FakeDriver) -> None:
    await setting.create()
    await setting.create("c2")

    def taken(_: object) -> None:
        raise AlreadyExists("c9")

    with pytest.raises(AlreadyExists):
        await setting.manager.volumes.rename("p", container("c1"), container("c9"), taken)
    assert pool.volumes("container") == await setting.volumes() == ["c1", "c2"]
    assert sorted(p.name for p in setting.paths.containers.iterdir()) == ["c1", "c2"]


async def test_a_rename_that_fails_on_a_disk_without_room_for_a_link(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setting.create()

    def full(link: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no room", str(link))

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(OSError, match="no room"):
        await setting.manager.volumes.rename("p", container("c1"), container("c2"))
    assert pool.volumes("container") == await setting.volumes() == ["c1"]
    assert [p.name for p in setting.paths.containers.iterdir()] == ["c1"]


async def test_links_that_a_kill_left_are_swept(setting: Setting, pool: FakeDriver) -> None:
    (setting.paths.containers / "gone").symlink_to(setting.paths.pool("p") / "containers/gone")
    await setting.again().start()
    assert not list(setting.paths.containers.iterdir())


async def test_an_incomplete_pool_is_created_again(setting: Setting) -> None:
    """A full disk kept its making from being undone."""
    row = PoolRow(id=0, name="half", driver="dir", description="", config={}, state="creating")
    await setting.write(storage_pools.insert, row)
    await setting.manager.pools.create("half", "dir")
    assert "half" in [pool.row.name for pool in await setting.manager.pools.all()]


async def test_a_pool_missing_at_the_start_is_retried(setting: Setting, pool: FakeDriver) -> None:
    manager = setting.again()
    pool.fail["mount"] = HostError("/srv/p is gone")
    await manager.start()
    pool.fail["mount"] = HostError("/srv/p is still gone")
    with pytest.raises(Unavailable, match="'p' is not available: /srv/p is still gone"):
        await manager.pools.ensure_available("p")
    assert not (await manager.pools.show("p")).available
    pool.fail.pop("mount", None)
    await asyncio.gather(manager.pools.ensure_available("p"), manager.pools.ensure_available("p"))
    assert (await manager.pools.show("p")).available
    with pytest.raises(NotFound):
        await manager.pools.ensure_available("q")


async def test_unavailable_pool_is_retried_with_a_warning(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_WAITS", (0.005,))
    monkeypatch.setattr(retries, "_REST", 0.001)
    pool.fail["mount"] = HostError("/srv/p is gone")
    manager = setting.again()
    await manager.start()
    assert setting.warnings.messages == {
        "Storage pool unavailable": "storage pool 'p' cannot be used: /srv/p is gone"
    }
    assert "storage pool p" in setting.retries
    pool.fail.clear()
    async with asyncio.timeout(30):
        while "storage pool p" in setting.retries:
            await asyncio.sleep(0.005)
    assert (await manager.pools.show("p")).available
    assert setting.warnings.messages == {}


async def test_a_pool_whose_deletion_cannot_be_noted_stays_in_use(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutOfSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(storage_pools, "set_state", full)
        with pytest.raises(OutOfSpace):
            await setting.manager.pools.delete("p")
    await setting.create()


async def test_rename_is_undone_if_the_database_is_full(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even that it was given up can be stored; the next start finds the files where they were."""
    await setting.create()
    set_new_name = storage_volumes.set_new_name

    def full(tx: Transaction, volume_id: int, new: str) -> None:
        if not new:
            raise OutOfSpace("full")
        set_new_name(tx, volume_id, new)

    def fill(_: object) -> None:
        raise OutOfSpace("full")

    await setting.write(instance_rows.insert, instance_row(state="ready"))
    with monkeypatch.context() as patch:
        patch.setattr(storage_volumes, "set_new_name", full)
        with pytest.raises(OutOfSpace):
            await setting.manager.volumes.rename("p", container("c1"), container("c9"), fill)
    assert "is kept until the next start: full" in caplog.text
    assert pool.volumes("container") == await setting.volumes() == ["c1"]
    assert [p.name for p in setting.paths.containers.iterdir()] == ["c1"]
    await setting.again().start()
    assert pool.volumes("container") == await setting.volumes() == ["c1"]
    (row,) = await setting.rows()
    assert row.new_name == ""


async def test_what_cannot_be_noted_is_not_begun(
    setting: Setting, pool: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setting.create()

    def full(*_: object) -> None:
        raise OutOfSpace("full")

    monkeypatch.setattr(storage_volumes, "set_new_name", full)
    pool.fail["rename_volume"] = AssertionError("the files were moved")
    with pytest.raises(OutOfSpace):
        await setting.manager.volumes.rename("p", container("c1"), container("c9"))
    assert pool.volumes("container") == ["c1"]


async def test_sizes_that_the_pool_cannot_enforce(setting: Setting, pool: FakeDriver) -> None:
    """They are stored, shown as not enforced, and a warning until they are unset."""
    await setting.manager.volumes.create("p", container("c1"), IdMap(), None, "10GiB")
    (row,) = await setting.rows()
    assert row.config == {"size": "10GiB", "volatile.size.enforced": "false"}
    assert "the size of containers/c1 is not enforced" in setting.warnings.messages[NOT_ENFORCED]
    await setting.manager.volumes.set_size("p", container("c1"), "20GiB")
    (row,) = await setting.rows()
    assert row.config == {"size": "20GiB", "volatile.size.enforced": "false"}
    await setting.manager.volumes.set_size("p", container("c1"), "")
    (row,) = await setting.rows()
    assert row.config == {}
    assert setting.warnings.messages == {}


async def test_sizes_that_the_pool_enforces(setting: Setting) -> None:
    driver = setting.drivers["p"] = QuotaDriver(setting.paths.pool("p"))
    await setting.manager.pools.create("p")
    await setting.manager.volumes.create("p", container("c1"), IdMap(), None, "10MiB")
    await setting.create("c2", None)
    assert driver.quotas == {"c1": 10 * 2**20}
    assert [row.config for row in await setting.rows()] == [{"size": "10MiB"}, {}]
    driver.fail["set_quota"] = InvalidConfig("it is larger")
    with pytest.raises(InvalidConfig):
        await setting.manager.volumes.set_size("p", container("c1"), "1MiB")
    await setting.manager.volumes.set_size("p", container("c1"), "")
    assert driver.quotas == {"c1": None}
    driver.fail["set_quota"] = HostError("no quotas here")
    with pytest.raises(HostError):
        await setting.manager.volumes.create("p", container("c3"), IdMap(), None, "10MiB")
    assert driver.volumes("container") == await setting.volumes() == ["c1", "c2"]
    assert setting.warnings.messages == {}


async def test_directories_outside_the_root_disk_need_a_driver_that_has_them(
    setting: Setting, pool: FakeDriver
) -> None:
    await setting.create()
    with pytest.raises(InvalidConfig, match="directories"):
        await setting.manager.volumes.mount_folder("p", container("c1"), IdMap(), "docker")


async def test_unknown_pools_and_volumes(setting: Setting, pool: FakeDriver) -> None:
    with pytest.raises(NotFound):
        await setting.manager.volumes.create("q", container("c1"), IdMap(), None)
    with pytest.raises(NotFound):
        await setting.manager.volumes.all(EVERYTHING, "q", "default")
    with pytest.raises(NotFound):
        await setting.manager.volumes.get(EVERYTHING, "p", "default", VOLUME_CONTAINER, "c1")
    await setting.create()
    assert (
        await setting.manager.volumes.get(EVERYTHING, "p", "default", VOLUME_CONTAINER, "c1")
    ).name == "c1"
    assert [v.row.name for v in await setting.manager.volumes.all(EVERYTHING, "p", "other")] == [FINGERPRINT]
    assert len(await setting.manager.volumes.all(EVERYTHING, "p", None, VOLUME_CONTAINER)) == 1


async def test_volumes_of_other_projects_are_not_found(setting: Setting, pool: FakeDriver) -> None:
    await setting.create()
    await setting.write(image_rows.insert, image_row())
    volumes = setting.manager.volumes
    held = Scope(frozenset({"default"}))
    assert {v.row.name for v in await volumes.all(held, "p", None)} == {"c1", FINGERPRINT}
    assert (await volumes.get(held, "p", "default", VOLUME_IMAGE, FINGERPRINT)).name == FINGERPRINT
    assert await volumes.all(NOTHING, "p", None) == []
    for kind, name in ((VOLUME_CONTAINER, "c1"), (VOLUME_IMAGE, FINGERPRINT)):
        with pytest.raises(NotFound, match="not found on pool"):
            await volumes.get(NOTHING, "p", "default", kind, name)


# ---- images


async def test_a_deleted_image_is_removed_with_its_last_instance(setting: Setting, pool: FakeDriver) -> None:
    row_id = await setting.write(image_rows.insert, image_row())
    await setting.create()
    await setting.create("c2")
    await setting.write(image_rows.delete, row_id)
    await setting.manager.images.delete(FINGERPRINT)
    assert pool.images() == [FINGERPRINT]
    await setting.manager.volumes.delete("p", container("c1"))
    assert pool.images() == [FINGERPRINT]
    await setting.manager.volumes.delete("p", container("c2"))
    assert pool.images() == await setting.volumes(VOLUME_IMAGE) == []


async def test_a_deleted_image_without_instances_is_removed_immediately(
    setting: Setting, pool: FakeDriver
) -> None:
    row_id = await setting.write(image_rows.insert, image_row())
    await setting.create()
    await setting.manager.volumes.delete("p", container("c1"))
    await setting.manager.images.delete(FINGERPRINT)
    assert pool.images() == [FINGERPRINT]
    await setting.write(image_rows.delete, row_id)
    await setting.manager.images.delete(FINGERPRINT)
    assert pool.images() == []


async def test_an_image_is_held_while_an_instance_is_made_from_it(setting: Setting, pool: FakeDriver) -> None:
    row_id = await setting.write(image_rows.insert, image_row())
    pool.gate = threading.Event()
    task = asyncio.create_task(setting.create())
    while not pool.images():
        await asyncio.sleep(0.01)
    await setting.write(image_rows.delete, row_id)
    await setting.manager.images.delete(FINGERPRINT)
    assert pool.images() == [FINGERPRINT]
    pool.gate.set()
    await task
    assert pool.volumes("container") == ["c1"]


# ---- prefetching images


@pytest.fixture
async def imported(setting: Setting, pool: FakeDriver) -> FakeDriver:
    """A pool that a profile names, which is held up in bringing on an image that has just been imported."""
    pool.unpacking = threading.Event()
    disk = {"root": {"type": "disk", "path": "/", "pool": "p"}}
    await setting.write(profile_rows.insert, ProfileRow(0, "default", "disks", devices=disk))
    await setting.write(image_rows.insert, image_row())
    setting.manager.images.prepare(IMAGE)
    while not pool.unpacked:
        await asyncio.sleep(0.01)
    return pool


async def all_prepared(setting: Setting) -> None:
    while setting.manager.images._prefetcher._queue:
        await asyncio.sleep(0.01)


async def test_an_imported_image_is_brought_where_a_profile_has_its_root_disk(
    setting: Setting, imported: FakeDriver
) -> None:
    await setting.manager.pools.create("q")
    assert imported.unpacking is not None
    imported.unpacking.set()
    await all_prepared(setting)
    assert imported.images() == await setting.volumes(VOLUME_IMAGE) == [FINGERPRINT]
    setting.manager.images.prepare(IMAGE)
    await asyncio.sleep(0.05)
    assert imported.unpacked == 1
    assert setting.drivers["q"].unpacked == 0


async def test_launches_wait_for_an_unpacking_in_progress_and_share_it(
    setting: Setting, imported: FakeDriver
) -> None:
    launches = [asyncio.create_task(setting.create(name)) for name in ("c1", "c2")]
    await asyncio.sleep(0.05)
    assert imported.volumes("container") == []
    assert imported.unpacking is not None
    imported.unpacking.set()
    await asyncio.gather(*launches)
    assert imported.volumes("container") == ["c1", "c2"]
    assert imported.unpacked == 1


async def test_an_image_that_is_deleted_meanwhile_is_not_waited_for(
    setting: Setting, imported: FakeDriver
) -> None:
    for row in await setting.database.read("test", image_rows.get_all, None):
        await setting.write(image_rows.delete, row.id)
    async with asyncio.timeout(30):
        await setting.manager.images.delete(FINGERPRINT)
    assert imported.images() == await setting.volumes(VOLUME_IMAGE) == []


async def test_a_launch_that_waits_keeps_a_deleted_image(setting: Setting, imported: FakeDriver) -> None:
    launch = asyncio.create_task(setting.create())
    await asyncio.sleep(0.05)
    for row in await setting.database.read("test", image_rows.get_all, None):
        await setting.write(image_rows.delete, row.id)
    deletion = asyncio.create_task(setting.manager.images.delete(FINGERPRINT))
    await asyncio.sleep(0.05)
    assert imported.unpacking is not None
    imported.unpacking.set()
    await asyncio.gather(launch, deletion)
    assert imported.volumes("container") == ["c1"]
    assert imported.images() == [FINGERPRINT]
    assert imported.unpacked == 1


async def test_a_pool_that_is_deleted_meanwhile(setting: Setting, imported: FakeDriver) -> None:
    for profile in await setting.database.read("test", profile_rows.get_all, "default"):
        if profile.name == "disks":
            await setting.write(profile_rows.delete, profile.id)
    async with asyncio.timeout(30):
        await setting.manager.pools.delete("p")
    assert not imported.exists
    assert imported.images() == []
    setting.manager.images.prepare(IMAGE)
    await asyncio.sleep(0.05)
    assert imported.unpacked == 1


async def test_the_end_of_the_daemon_does_not_wait_for_an_unpacking(
    setting: Setting, imported: FakeDriver
) -> None:
    async with asyncio.timeout(30):
        await setting.manager.stop()
    assert imported.images() == []


async def test_unpacking_that_fails_is_left_to_the_first_launch(
    setting: Setting, imported: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    imported.fail["ensure_image"] = OutOfSpace("the disk is full")
    other = replace(image_row(), fingerprint="cd" * 32)
    await setting.write(image_rows.insert, other)
    setting.manager.images.prepare(replace(IMAGE, fingerprint="cd" * 32))
    while len(setting.manager.images._prefetcher._queue) < 2:
        await asyncio.sleep(0.01)
    assert imported.unpacking is not None
    imported.unpacking.set()
    await all_prepared(setting)
    assert "its first launch retries: the disk is full" in caplog.text
    assert imported.images() == [FINGERPRINT]


async def test_unpack_images_can_be_changed(setting: Setting, pool: FakeDriver) -> None:
    """What no instance needs goes, so that the next launch brings it in the other form."""
    await setting.write(image_rows.insert, image_row())
    await setting.create()
    await setting.manager.pools.edit(
        "p", replace_with(StoragePoolPut(config={"overlay.unpack_images": "false"})), any_state
    )
    assert pool.configured[-1]["overlay.unpack_images"] == "false"
    assert pool.trimmed == [FINGERPRINT]
    assert pool.images() == [FINGERPRINT]
    await setting.manager.volumes.delete("p", container("c1"))
    assert pool.trimmed == [FINGERPRINT, FINGERPRINT]
    await setting.manager.pools.edit("p", replace_with(StoragePoolPut()), any_state)
    assert pool.images() == await setting.volumes(VOLUME_IMAGE) == []
    await setting.create()
    assert await setting.volumes(VOLUME_IMAGE) == [FINGERPRINT]


# ---- a new start


async def test_start_removes_incomplete_volumes(setting: Setting, pool: FakeDriver) -> None:
    for row in (instance_row("whole", state="ready"), instance_row("half", state="creating")):
        await setting.write(instance_rows.insert, row)
        await setting.create(row.ref.name, None)
    await setting.create("orphan", None)
    (setting.paths.containers / "whole").unlink()
    pool.on_pool.add("cd" * 32)
    half = PoolRow(id=0, name="q", driver="dir", state="creating")
    await setting.write(storage_pools.insert, half)
    manager = setting.again()
    await manager.start()
    assert setting.drivers["q"].discarded
    assert await setting.volumes() == ["half", "whole"]
    assert pool.volumes("container") == ["half", "orphan", "whole"], "what nobody knows is left for people"
    assert sorted(p.name for p in setting.paths.containers.iterdir()) == ["half", "whole"]
    assert pool.images() == []
    assert [p.row.name for p in await manager.pools.all()] == ["p"]
    assert [row.name for row in await setting.database.read("test", storage_pools.get_all)] == ["p"]


async def test_start_lists_the_images_that_the_pool_keeps(setting: Setting, pool: FakeDriver) -> None:
    await setting.write(image_rows.insert, image_row())
    pool.on_pool.add(FINGERPRINT)  # a kill came before its row
    await setting.again().start()
    assert await setting.volumes(VOLUME_IMAGE) == [FINGERPRINT]
    pool.on_pool.clear()
    await setting.again().start()
    assert await setting.volumes(VOLUME_IMAGE) == []


@pytest.mark.parametrize("moved", [False, True])
async def test_start_undoes_a_renaming_that_a_kill_cut_off(
    setting: Setting, pool: FakeDriver, moved: bool
) -> None:
    """It was noted, and the files may have their new name; one renamed long ago keeps its own."""
    for name in ("old", "renamed"):
        await setting.write(instance_rows.insert, instance_row(name, state="ready"))
    await setting.create("old", None)
    await setting.create("long-ago", None)
    await setting.manager.volumes.rename("p", container("long-ago"), container("renamed"))
    row = await setting.manager.volumes.get(EVERYTHING, "p", "default", VOLUME_CONTAINER, "old")
    await setting.write(storage_volumes.set_new_name, row.id, "new")
    if moved:
        pool.rename_volume(container("old"), container("new"))
    await setting.again().start()
    assert pool.volumes("container") == ["old", "renamed"]
    assert sorted(p.name for p in setting.paths.containers.iterdir()) == ["old", "renamed"]
    assert {row.name: row.new_name for row in await setting.rows()} == {"old": "", "renamed": ""}


async def test_a_renaming_that_stayed_noted_moves_nothing_of_a_later_instance(
    setting: Setting, pool: FakeDriver
) -> None:
    for name in ("old", "new"):
        await setting.write(instance_rows.insert, instance_row(name, state="ready"))
        await setting.create(name, None)
    pool.delete_volume(container("old"))
    row = await setting.manager.volumes.get(EVERYTHING, "p", "default", VOLUME_CONTAINER, "old")
    await setting.write(storage_volumes.set_new_name, row.id, "new")
    await setting.again().start()
    assert pool.volumes("container") == ["new"]


async def test_a_pool_that_cannot_be_mounted_is_shown_and_refused(setting: Setting, pool: FakeDriver) -> None:
    await setting.create()
    pool.fail["mount"] = HostError("no disk")
    manager = setting.again()
    await manager.start()
    (shown,) = await manager.pools.all()
    assert not shown.available
    with pytest.raises(Unavailable, match="'p'"):
        await manager.volumes.mount("p", container("c1"), IdMap())
    assert pool.volumes("container") == ["c1"]


async def test_a_shutdown_unmounts(setting: Setting, pool: FakeDriver) -> None:
    await setting.create()
    await setting.manager.volumes.mount("p", container("c1"), IdMap())
    await setting.manager.stop()
    assert pool.mounted
    await setting.manager.stop(unmount=True)
    assert not pool.mounted


# ---- members


async def test_a_pool_of_another_member_is_pending_until_it_is_created_here(
    setting: Setting, tmp_path: Path
) -> None:
    config = {"source": "/srv/other", "rsync.bwlimit": "1MB"}
    async with second_member(setting.database):
        await setting.write(storage_pools.insert, PoolRow(0, "p", "dir", "d", config, "ready"))
        await setting.write(storage_volumes.insert, new_row("p", container("theirs")))
    await setting.manager.start()
    pools = setting.manager.pools
    assert setting.drivers == {}
    shown = await pools.show("p")
    assert (shown.row.state, shown.available, shown.row.locations) == ("pending", False, ("host2",))
    volumes = await setting.manager.volumes.all(EVERYTHING, "p", None)
    assert [shown.row.name for shown in volumes] == ["theirs"]
    for call in (pools.get("p"), pools.delete("p"), pools.edit("p", lambda old: old, any_state)):
        with pytest.raises(OtherMember, match="is on host2 only: create it on this member, too"):
            await call
    with pytest.raises(InvalidConfig, match="has the driver 'dir' on other members"):
        await pools.create("p", "overlay")
    with pytest.raises(InvalidConfig, match=r"rsync\.bwlimit of storage pool 'p' is shared by all members"):
        await pools.create("p", "dir", config={"rsync.bwlimit": "2MB"})
    await pools.create("p", "dir", config={"source": str(tmp_path / "mine"), "rsync.bwlimit": "1MB"})
    row = await pools.get("p")
    assert (row.config["source"], row.config["rsync.bwlimit"]) == (str(tmp_path / "mine"), "1MB")
    assert (row.description, row.locations) == ("d", ("host1", "host2"))
    with pytest.raises(AlreadyExists):
        await pools.create("p", "dir")
    await pools.delete("p")
    assert await setting.volumes() == ["theirs"]
    assert (await pools.show("p")).row.locations == ("host2",)


async def test_a_change_of_a_pool_by_another_member_is_followed(setting: Setting, pool: FakeDriver) -> None:
    pools = setting.manager.pools
    await pools.follow_others()
    assert pool.configured == []
    row = await pools.get("p")
    async with second_member(setting.database):
        await setting.write(storage_pools.insert, replace(row, state="ready"))
        await setting.write(storage_pools.update, replace(row, config={**row.config, "user.a": "1"}))
    await pools.follow_others()
    await pools.follow_others()
    assert [config.get("user.a") for config in pool.configured] == ["1"]
