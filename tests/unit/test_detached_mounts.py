"""Options of mounts, and their flags in the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.host import syscalls
from utsuwa.host.mounts import detached
from utsuwa.host.mounts.detached import Options

RO, NOEXEC = syscalls.MOUNT_ATTR_RDONLY, syscalls.MOUNT_ATTR_NOEXEC
NOATIME, STRICT = syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR_STRICTATIME


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ((), 0),
        (("defaults", "relatime"), 0),
        (("ro", "noexec"), RO | NOEXEC),
        (("ro", "rw", "noexec", "exec"), 0),
        (("noatime", "strictatime"), STRICT),
        (("strictatime", "noatime"), NOATIME),
        (("noatime", "relatime", "uid=5"), 0),
    ],
)
def test_the_last_of_contradicting_options_applies(options: tuple[str, ...], flags: int) -> None:
    assert Options(others=options).attributes == flags
    assert Options(read_only=True, others=options).attributes == flags | RO


def test_options_of_file_systems_are_for_devices() -> None:
    options = Options(others=("noexec", "uid=5"))
    assert options.of_filesystem == ["uid=5"]
    with pytest.raises(InvalidConfig, match="'uid=5' is an option of file systems"):
        detached.copied(-1, options)


def test_a_source_below_allowed_paths(tmp_path: Path) -> None:
    """No symlink leads out, whatever was looked at before."""
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    (allowed / "folder").mkdir(parents=True)
    outside.mkdir()
    (allowed / "inside").symlink_to("folder")
    (allowed / "link").symlink_to(outside)
    (allowed / "up").symlink_to("../outside")
    paths = ["/nowhere", str(allowed)]
    for good in (allowed, allowed / "folder", allowed / "inside"):
        fd = detached.open_source(str(good), below=paths)
        assert os.fstat(fd).st_ino == good.stat().st_ino
        os.close(fd)
    for bad in (outside, allowed / "link", allowed / "up", allowed / "../outside", f"{allowed}-2"):
        with pytest.raises(OSError, match="not below|cross-device"):
            detached.open_source(str(bad), below=paths)
    os.close(detached.open_source(str(allowed / "link")))
