"""Host failures of drivers as errors of the contract."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError, InvalidImage, OutOfSpace, ProcessFailed
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.overlay import OverlayDriver
from utsuwa.storage.drivers.records import VolumeRecord


def failing(error: Exception) -> None:
    @translated
    def method() -> None:
        raise error

    method()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_becomes_out_of_space(number: int) -> None:
    with pytest.raises(OutOfSpace, match="free some space"):
        failing(OSError(number, "x"))


@pytest.mark.parametrize("text", ["cp: writing: No space left on device", "Disk quota exceeded"])
def test_a_full_disk_in_a_program(text: str) -> None:
    with pytest.raises(OutOfSpace):
        failing(ProcessFailed(["cp"], 1, text))


def test_other_failures() -> None:
    with pytest.raises(HostError, match="Permission denied.*/pool/x"):
        failing(PermissionError(errno.EACCES, "Permission denied", "/pool/x"))
    with pytest.raises(ProcessFailed):
        failing(ProcessFailed(["cp"], 1, "cannot stat"))
    with pytest.raises(InvalidImage):
        failing(InvalidImage("broken"))


def a_pool(folder: Path, **instances: str) -> OverlayDriver:
    for name, image in instances.items():
        (folder / "containers" / name).mkdir(parents=True)
        records.store_volume(folder / "containers" / name, VolumeRecord(image=image))
    return OverlayDriver(folder, {})


def test_an_image_below_a_damaged_instance_counts_as_used(tmp_path: Path) -> None:
    driver = a_pool(tmp_path, one="a", two="b", bad="b")
    (tmp_path / "containers/bad/volume.json").write_text("{")
    assert driver.image_users("a") == ["bad", "one"]
    (tmp_path / "containers/bad/volume.json").unlink()
    assert driver.image_users("a") == ["bad", "one"]


def test_instances_deleted_or_moved_while_users_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = a_pool(tmp_path, one="a", two="a", zoe="a")
    load = records.load_volume

    def meanwhile(folder: Path) -> VolumeRecord:
        if folder.name == "one" and folder.is_dir():
            folder.rename(folder.with_name(".gone"))
        if folder.name == "zoe" and folder.is_dir():
            folder.rename(folder.with_name("abe"))
        return load(folder)

    monkeypatch.setattr(records, "load_volume", meanwhile)
    assert driver.image_users("a") == ["abe", "two"]
