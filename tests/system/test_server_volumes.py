"""`storage.images_volume` and `storage.backups_volume`: files of the server on custom volumes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image

pytestmark = pytest.mark.root

KEY = "storage.images_volume"
POINTS = ("relocation begun", "relocation copied", "relocation exchanged")


@pytest.fixture(scope="module")
def d(faults: Faults, busybox_image: Image) -> Iterator[Daemon]:
    """A daemon with an image and with empty volumes on two pools."""
    daemon = Daemon(env=faults.env)
    try:
        daemon.start()
        daemon.make_defaults()
        daemon.do("POST", "/1.0/storage-pools", {"name": "other", "driver": "dir"})
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        for pool, name in (("default", "v1"), ("other", "v2")):
            daemon.do("POST", f"/1.0/storage-pools/{pool}/volumes/custom", {"name": name})
        yield daemon
    finally:
        problems = daemon.close()
    assert not problems


@pytest.fixture(autouse=True)
def _unset(d: Daemon) -> Iterator[None]:
    yield
    d.delete_instances()
    put(d, "")
    assert not d.dir.joinpath("images").is_symlink()
    assert volume_files(d, "default", "v1") == volume_files(d, "other", "v2") == []


def put(daemon: Daemon, value: str, key: str = KEY) -> None:
    daemon.do("PATCH", "/1.0", {"config": {key: value}})


def refused(daemon: Daemon, value: str, key: str = KEY) -> str:
    reply = daemon.api("PATCH", "/1.0", {"config": {key: value}})
    assert reply.status >= 400
    return reply.error


def root_of(daemon: Daemon, pool: str, volume: str) -> Path:
    return daemon.dir / "storage-pools" / pool / "custom" / f"default_{volume}" / "rootfs"


def volume_files(daemon: Daemon, pool: str, volume: str) -> list[str]:
    return sorted(path.name for path in root_of(daemon, pool, volume).iterdir())


def images(daemon: Daemon) -> list[str]:
    """The files of images, as seen in the state directory."""
    return sorted(path.name for path in (daemon.dir / "images").iterdir())


def test_images_move_to_a_volume_and_back(d: Daemon) -> None:
    before = images(d)
    assert len(before) == 2
    os.chown(root_of(d, "default", "v1"), 1000, 1000)  # as by initial.uid
    d.lxc("config", "set", KEY, "default/v1")
    assert d.dir.joinpath("images").is_symlink()
    assert root_of(d, "default", "v1").stat().st_uid == 0
    assert images(d) == volume_files(d, "default", "v1") == before
    assert root_of(d, "default", "v1").stat().st_mode & 0o777 == 0o700
    put(d, "other/v2")
    assert images(d) == volume_files(d, "other", "v2") == before
    assert volume_files(d, "default", "v1") == []
    d.restart()
    d.lxc("launch", "busybox", "c1")
    d.lxc("stop", "-f", "c1")
    d.lxc("publish", "c1", "--alias", "mine")
    assert len(volume_files(d, "other", "v2")) == 3
    d.lxc("image", "delete", "mine")
    d.lxc("config", "unset", KEY)
    assert images(d) == before


def test_a_volume_of_the_server_is_left_alone(d: Daemon) -> None:
    """Each of these would take the images away, or give instances access to them."""
    put(d, "default/v1")
    d.lxc("init", "busybox", "c1")
    for command in (
        "delete default v1",
        "rename default v1 v3",
        "move default/v1 other/v3",
        "snapshot default v1",
    ):
        ended = utsuwa_client(d, "storage", "volume", *command.split(), check=False)
        assert (ended.returncode, f"unset {KEY} first" in ended.stderr) == (1, True), command
    d.lxc("storage", "volume", "attach", "default", "v1", "c1", "/srv")
    assert "holds files of the server" in d.lxc("start", "c1", check=False).stderr + d.log_tail()
    assert len(volume_files(d, "default", "v1")) == 2


def test_only_empty_and_unused_volumes_are_accepted(d: Daemon) -> None:
    assert "must be POOL/VOLUME" in refused(d, "v1")
    assert "must be POOL/VOLUME" in refused(d, "default/v1/s1")
    assert "'nowhere' not found" in refused(d, "nowhere/v1")
    assert "'v9' not found" in refused(d, "default/v9")
    file = root_of(d, "default", "v1") / "file"
    file.touch()
    assert "contains 'file'" in refused(d, "default/v1")
    file.unlink()
    volume = "/1.0/storage-pools/default/volumes/custom/v1"
    d.do("POST", f"{volume}/snapshots", {"name": "s1"})
    assert "has snapshots" in refused(d, "default/v1")
    d.do("DELETE", f"{volume}/snapshots/s1")
    d.lxc("init", "busybox", "c1")
    d.lxc("storage", "volume", "attach", "default", "v1", "c1", "/srv")
    assert "in use by instance 'c1'" in refused(d, "default/v1")
    d.delete_instances()
    put(d, "default/v1", "storage.backups_volume")
    assert "unset storage.backups_volume first" in refused(d, "default/v1")
    put(d, "", "storage.backups_volume")
    assert KEY not in d.get("/1.0")["config"]


def test_a_change_is_undone_if_a_later_one_is_refused(d: Daemon) -> None:
    config = {KEY: "default/v1", "storage.backups_volume": "default/v9"}
    assert "'v9' not found" in d.api("PATCH", "/1.0", {"config": config}).error
    assert not d.dir.joinpath("images").is_symlink()
    assert not d.dir.joinpath("backups").is_symlink()
    assert volume_files(d, "default", "v1") == []
    d.do("DELETE", "/1.0/storage-pools/other/volumes/custom/v2")
    d.do("POST", "/1.0/storage-pools/other/volumes/custom", {"name": "v2"})


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("there", [True, False])
def test_a_move_that_is_killed_leaves_all_images_at_one_place(
    d: Daemon, faults: Faults, point: str, there: bool
) -> None:
    """The next start goes by the stored config, which is changed last."""
    before = images(d)
    if not there:
        put(d, "default/v1")
    with faults.kill_at(d, point):
        put(d, "default/v1" if there else "")
    assert images(d) == before
    assert d.dir.joinpath("images").is_symlink() is not there
    assert d.get("/1.0")["config"].get(KEY, "") == ("" if there else "default/v1")
    assert [path.name for path in d.dir.glob(".images*")] == []
    assert volume_files(d, "default", "v1") == ([] if there else before)


def test_images_are_not_lost_while_their_volume_is_not_available(d: Daemon) -> None:
    put(d, "other/v2")
    before = d.get("/1.0/images")
    pool = d.dir / "storage-pools/other"
    d.stop()
    pool.rename(pool.with_name("away"))
    d.start()
    try:
        assert d.get("/1.0/images") == before
        ended = d.lxc("init", "busybox", "c1", check=False)
        assert "on a volume that is not available" in ended.stderr
        warnings = d.get("/1.0/warnings?recursion=1")
        (warning,) = [w for w in warnings if w["type"] == "A volume of the server unavailable"]
        assert KEY in warning["last_message"]
    finally:
        d.stop()
        pool.with_name("away").rename(pool)
        d.start()
    d.lxc("init", "busybox", "c1")
