"""What tests of storage drivers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pools
from tests.support.disks import loop_ext4
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.userns import close_user_namespaces


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives of a small image: see `pools.make_files`."""
    return pools.make_files(tmp_path_factory.mktemp("image"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for pools, below which nothing is mounted at the end."""
    tmp_path.chmod(0o711)
    yield tmp_path
    mounts.unmount_below(tmp_path)
    close_user_namespaces()


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """12 MB of ext4, which can be filled up."""
    with loop_ext4(place / "small", 12 << 20, "-O", "^has_journal") as folder:
        yield folder
