"""Names of volumes on their pool."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from utsuwa.core.volumes import Volume, image_volume


@pytest.mark.parametrize(
    ("volume", "name", "path"),
    [
        (Volume("container", "default", "c1"), "c1", "containers/c1"),
        (Volume("container", "web", "c1"), "web_c1", "containers/web_c1"),
        (Volume("container", "web", "c1", "s0"), "web_c1", "containers-snapshots/web_c1/s0"),
        (Volume("custom", "default", "v"), "default_v", "custom/default_v"),
        (Volume("custom", "web", "v", "s0"), "web_v", "custom-snapshots/web_v/s0"),
        (image_volume("ab" * 32), "ab" * 32, f"images/{'ab' * 32}"),
    ],
)
def test_names_of_a_volume(volume: Volume, name: str, path: str) -> None:
    assert volume.storage_name == name
    assert volume.path == PurePath(path)
