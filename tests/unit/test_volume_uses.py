"""Which running instances use custom volumes, and which id maps go together."""

from __future__ import annotations

import pytest

from utsuwa.core.errors import Busy, InUse, InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.refs import InstanceRef
from utsuwa.core.volumes import Volume
from utsuwa.storage.custom.uses import Uses

C1, C2 = InstanceRef("default", "c1"), InstanceRef("default", "c2")
PLACE = ("p", Volume("custom", "default", "v1"))
OTHER = ("q", Volume("custom", "default", "v1"))
ROOT = IdMap()
MAPPED = IdMap((IdRange(0, 100_000, 65_536),), (IdRange(0, 100_000, 65_536),))


def test_instances_with_other_maps_are_refused_unless_all_may_differ() -> None:
    uses = Uses()
    uses.add(C1, "a", PLACE, MAPPED, alike=True)
    uses.add(C2, "a", PLACE, MAPPED, alike=True)
    with pytest.raises(InvalidConfig, match="in use by the instance 'c1'.*security.shifted=true"):
        uses.add(C2, "b", PLACE, ROOT, alike=True)
    uses.add(C2, "b", PLACE, ROOT, alike=False)
    uses.add(C2, "c", OTHER, ROOT, alike=True)
    assert uses.instances(PLACE) == [C1, C2]
    assert uses.instances(OTHER) == [C2]


def test_an_instance_may_change_its_own_map() -> None:
    """As it has been stopped meanwhile, however that was missed."""
    uses = Uses()
    uses.add(C1, "a", PLACE, MAPPED, alike=True)
    uses.add(C1, "a", PLACE, ROOT, alike=True)
    assert uses.idmap(PLACE) == ROOT


def test_the_end_of_a_use() -> None:
    uses = Uses()
    uses.add(C1, "a", PLACE, MAPPED, alike=True)
    uses.add(C1, "b", PLACE, MAPPED, alike=True)
    uses.remove(C1, "a")
    assert uses.instances(PLACE) == [C1]
    uses.remove(C1, "b")
    uses.remove(C1, "b")
    assert (uses.instances(PLACE), uses.idmap(PLACE)) == ([], None)


def test_a_volume_in_use_cannot_be_changed_nor_used_while_it_is() -> None:
    uses = Uses()
    uses.add(C1, "a", PLACE, MAPPED, alike=True)
    with (
        pytest.raises(InUse, match="cannot be renamed while running.*stop 'c1'"),
        uses.excluded(PLACE, "renamed"),
    ):
        raise AssertionError
    uses.remove(C1, "a")
    with uses.excluded(PLACE, "renamed"):
        uses.add(C1, "a", OTHER, MAPPED, alike=True)
        with pytest.raises(Busy, match="is being renamed: try again"):
            uses.add(C1, "b", PLACE, MAPPED, alike=True)
        with pytest.raises(Busy, match="is being renamed"), uses.excluded(PLACE, "deleted"):
            raise AssertionError
    uses.add(C1, "b", PLACE, MAPPED, alike=True)
