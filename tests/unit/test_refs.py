"""References to instances and snapshots: their names on disk, volumes and URLs."""

from __future__ import annotations

from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.core.volumes import Volume


def test_names_of_an_instance() -> None:
    ref = InstanceRef("web", "c1")
    assert ref.volume == Volume("container", "web", "c1")
    assert ref.storage_name == "web_c1"
    assert InstanceRef("default", "c1").storage_name == "c1"
    assert ref.url() == "/1.0/instances/c1?project=web"
    assert ref.url("logs", "a b") == "/1.0/instances/c1/logs/a%20b?project=web"


def test_instances_sort_by_project_and_name() -> None:
    refs = [InstanceRef("b", "a"), InstanceRef("a", "b"), InstanceRef("a", "a")]
    assert sorted(refs) == [InstanceRef("a", "a"), InstanceRef("a", "b"), InstanceRef("b", "a")]


def test_the_volume_of_a_snapshot() -> None:
    snapshot = SnapshotRef(InstanceRef("web", "c1"), "snap0")
    assert snapshot.volume == Volume("container", "web", "c1", snapshot="snap0")
