"""The config keys of storage pools."""

from __future__ import annotations

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.storage.drivers import DRIVERS
from utsuwa.storage.drivers.overlay_options import DEFAULT_OPTIONS, parse_options


@pytest.mark.parametrize("driver", ["dir", "overlay"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "/srv/pool"),
        ("rsync.bwlimit", "100"),
        ("rsync.bwlimit", "10MB"),
        ("rsync.compression", "false"),
        ("volume.size", "10GiB"),
        ("user.note", "anything\nat all"),
    ],
)
def test_good_values(driver: str, key: str, value: str) -> None:
    DRIVERS[driver].pool_keys.check({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "relative"),
        ("source", "/a/../b"),
        ("source", "/a\nb"),
        ("rsync.bwlimit", "fast"),
        ("rsync.compression", "perhaps"),
        ("volume.size", "-1"),
        ("overlay.mount_options", "lowerdir=/etc"),
        ("overlay.mount_options", "index=perhaps"),
        ("overlay.mount_options", "index=on,upperdir=/"),
        ("zfs.pool_name", "tank"),
        ("size", "10GiB"),
    ],
)
def test_bad_values(key: str, value: str) -> None:
    with pytest.raises(InvalidConfig, match=key.replace(".", r"\.")):
        DRIVERS["overlay"].pool_keys.check({key: value})


def test_overlay_options_belong_to_overlay_alone() -> None:
    with pytest.raises(InvalidConfig):
        DRIVERS["dir"].pool_keys.check({"overlay.mount_options": DEFAULT_OPTIONS})


def test_the_default_options() -> None:
    assert parse_options(DEFAULT_OPTIONS) == {
        "redirect_dir": "on",
        "index": "on",
        "nfs_export": "on",
        "metacopy": "off",
    }
