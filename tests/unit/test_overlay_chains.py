"""Which frozen layers are merged, and when layers are removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.layers import Layers
from utsuwa.storage.drivers.overlay_chains import run_to_merge
from utsuwa.storage.drivers.records import VolumeRecord


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12), st.integers(1, 8))
def test_few_enough_layers_are_left(sizes: list[int], most: int) -> None:
    merged = run_to_merge(sizes, most)
    assert 1 <= merged <= len(sizes)
    assert len(sizes) - merged + 1 <= max(most, 1)


def test_each_change_is_copied_a_few_times_only() -> None:
    """The work of merging 500 layers of one size, four of which may be left each time."""
    sizes: list[int] = []
    copied = 0
    for _ in range(500):
        sizes.insert(0, 1)
        if len(sizes) > 4:
            count = run_to_merge(sizes, 4)
            sizes[:count] = [sum(sizes[:count])]
            copied += sizes[0]
    assert sum(sizes) == 500
    assert copied < 500 * 10


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    (tmp_path / "layers").mkdir()
    return Layers(tmp_path / "layers")


def there(layers: Layers) -> list[str]:
    return sorted(path.name for path in layers.folder("x").parent.iterdir())


def test_a_layer_is_removed_with_its_last_user(layers: Layers) -> None:
    with layers.claim() as claim:
        kept, dropped = claim.new(), claim.new()
        layers.hold([kept])
        claim.hold([kept])
        claim.hand_over([kept])
    assert there(layers) == [kept]
    assert not layers.folder(dropped).exists()
    layers.release([kept])
    layers.release([kept])
    assert there(layers) == []


def test_users_are_counted_from_the_records(layers: Layers, tmp_path: Path) -> None:
    with layers.claim() as claim:
        names = [claim.new() for _ in range(3)]
        for name in names:
            (layers.folder(name) / "work").mkdir()
        volume = tmp_path / "volume"
        volume.mkdir()
        records.store_volume(volume, VolumeRecord(top=names[0], layers=(names[1],)))
        found = Layers(layers.folder("x").parent)
        found.count([volume])
        assert there(found) == sorted(names[:2])
        assert (found.folder(names[0]) / "work").exists()
        assert not (found.folder(names[1]) / "work").exists(), "it is frozen"


def test_no_layer_is_removed_while_a_record_cannot_be_read(
    layers: Layers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "0123"
    layers.folder(name).mkdir()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/volume.json").write_text("{")
    layers.count([tmp_path / "volume"])
    layers.hold([name])
    layers.release([name])
    assert there(layers) == [name]
    assert "no layers are removed" in caplog.text
