"""Snapshots of instances in the database: they keep the data of their instance, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support.instances import C1, NOON, instance_row, ref
from tests.support.transactions import CountedTransaction, refused
from utsuwa.core.errors import AlreadyExists, InvalidConfig, NotFound
from utsuwa.core.refs import InstanceRef, SnapshotRef
from utsuwa.db import codes, instances, members, profiles, schema, snapshots
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.snapshots import SnapshotRow
from utsuwa.db.transaction import Transaction

DATA = InstanceData(
    architecture="aarch64",
    ephemeral=True,
    stateful=True,
    description="before the upgrade",
    config={"limits.cpu": "2", "user.x": "line\nline"},
    devices={"n": {"type": "none"}, "root": {"type": "disk", "path": "/", "pool": "p"}},
    profiles=["default", "web"],
)


@pytest.fixture
def tx(tx: Transaction) -> CountedTransaction:
    profiles.insert(tx, ProfileRow(0, "default", "web"))
    return CountedTransaction(tx.connection)


def take(
    tx: Transaction, name: str, instance: InstanceRef = C1, *, days: int = 0, **fields: Any
) -> SnapshotRow:
    """Store a snapshot of an instance, which is created if necessary."""
    found = [row for row in instances.get_all(tx, None) if row.ref == instance]
    if not found:
        instances.insert(tx, instance_row(instance.name, instance.project, state="ready"))
        found = [instances.get(tx, instance)]
    created = NOON + timedelta(days=days)
    row = SnapshotRow(0, found[0].id, SnapshotRef(instance, name), DATA, created, state="ready")
    row = replace(row, **fields)
    return replace(row, id=snapshots.insert(tx, row))


def names_of(found: list[SnapshotRow]) -> list[str]:
    return [f"{row.ref.instance.name}/{row.ref.name}" for row in found]


def test_snapshot_round_trip(tx: Transaction) -> None:
    row = take(tx, "snap0", expires_at=NOON + timedelta(days=1))
    assert snapshots.get(tx, row.ref) == row
    assert snapshots.get_of(tx, C1) == snapshots.get_all(tx, "default") == snapshots.get_here(tx) == [row]
    ids = {profile.name: profile.id for profile in profiles.get_all(tx, "default")}
    assert snapshots.get(tx, row.ref).data.profile_ids == (ids["default"], ids["web"])


def test_changes_of_the_instance_do_not_reach_its_snapshots(tx: Transaction) -> None:
    row = take(tx, "snap0")
    instance = instances.get(tx, C1)
    instances.update(tx, replace(instance, data=replace(DATA, architecture="x86_64", config={}, profiles=[])))
    assert snapshots.get(tx, row.ref).data == DATA
    instances.rename(tx, instance.id, replace(instance.ref, name="c2"))
    assert snapshots.get(tx, SnapshotRef(ref("c2"), "snap0")).data == DATA


def test_an_instance_can_take_over_the_data_of_a_snapshot(tx: Transaction) -> None:
    data = snapshots.get(tx, take(tx, "snap0").ref).data
    instances.update(tx, replace(instances.get(tx, C1), data=data))
    assert instances.get(tx, C1).data == DATA


def test_snapshots_keep_no_profile_in_use_and_remember_deleted_ones(tx: Transaction) -> None:
    row = take(tx, "snap0")
    by_name = {profile.name: profile.id for profile in profiles.get_all(tx, "default")}
    profiles.rename(tx, by_name["web"], "www")
    assert snapshots.get(tx, row.ref).data.profiles == ["default", "www"]
    profiles.delete(tx, by_name["web"])
    data = snapshots.get(tx, row.ref).data
    assert (data.profiles, data.profile_ids) == (["default", "web"], (by_name["default"],))
    copy = take(tx, "snap0", ref("c2"), data=data)
    assert snapshots.get(tx, copy.ref).data == data


def test_lists_are_in_order_of_instance_and_time(tx: Transaction) -> None:
    tx.insert(schema.projects, {"name": "other", "description": ""})
    take(tx, "b", days=1)
    take(tx, "a", days=2)
    take(tx, "old", days=0)
    take(tx, "first", ref("b"))
    take(tx, "theirs", ref("c1", "other"))
    assert names_of(snapshots.get_of(tx, C1)) == ["c1/old", "c1/b", "c1/a"]
    assert names_of(snapshots.get_all(tx, "default")) == ["b/first", "c1/old", "c1/b", "c1/a"]
    assert names_of(snapshots.get_all(tx, None)) == ["b/first", "c1/old", "c1/b", "c1/a", "c1/theirs"]
    assert snapshots.names(tx, C1) == ["old", "b", "a"]
    assert snapshots.names(tx, ref("nope")) == []


def test_lists_take_a_constant_number_of_queries(tx: CountedTransaction) -> None:
    def statements() -> int:
        tx.statements = 0
        snapshots.get_all(tx, None)
        snapshots.get_of(tx, C1)
        snapshots.get_here(tx)
        return tx.statements

    take(tx, "snap0")
    before = statements()
    for number in range(1, 10):
        take(tx, f"snap{number}")
        take(tx, "snap", ref(f"x{number}"))
    assert statements() == before == 12


def test_only_description_and_expiry_can_be_changed(tx: Transaction) -> None:
    row = take(tx, "snap0")
    snapshots.update(tx, row.id, "new", NOON)
    changed = replace(row, data=replace(DATA, description="new"), expires_at=NOON)
    assert snapshots.get(tx, row.ref) == changed
    snapshots.update(tx, row.id, "", None)
    assert snapshots.get(tx, row.ref).expires_at is None


def test_names_are_unique_for_each_instance(tx: Transaction) -> None:
    take(tx, "snap0")
    take(tx, "snap0", ref("c2"))
    with refused(tx, AlreadyExists, match="'snap0' of instance 'c1' already exists"):
        take(tx, "snap0")
    other = take(tx, "snap1", state="deleting")
    with refused(tx, AlreadyExists, match="'snap0' already exists"):
        snapshots.rename(tx, other.id, "snap0")
    snapshots.rename(tx, other.id, "snap2")
    assert snapshots.names(tx, C1) == ["snap0", "snap2"]


def test_the_states_of_a_snapshot(tx: Transaction) -> None:
    row = take(tx, "snap0", state="creating")
    assert snapshots.get(tx, row.ref).state == "creating"
    snapshots.set_ready(tx, row.id)
    assert snapshots.get(tx, row.ref).state == "ready"
    snapshots.set_deleting(tx, row.id)
    assert snapshots.get(tx, row.ref).state == "deleting"


@pytest.mark.parametrize("deleted", ["snapshot", "instance"])
def test_a_deletion_leaves_no_rows(tx: Transaction, deleted: str) -> None:
    row = take(tx, "snap0")
    if deleted == "snapshot":
        snapshots.delete(tx, row.id)
        snapshots.delete(tx, row.id)
    else:
        instances.delete(tx, row.instance_id)
    for table in schema.metadata.sorted_tables:
        if table.name.startswith("instances_snapshots"):
            assert tx.execute(sa.select(table)).all() == [], table.name


def test_expired_snapshots(tx: Transaction) -> None:
    take(tx, "never")
    take(tx, "later", expires_at=NOON + timedelta(seconds=1))
    take(tx, "now", expires_at=NOON)
    take(tx, "before", expires_at=NOON - timedelta(days=400))
    take(tx, "incomplete", expires_at=NOON, state="creating")
    assert snapshots.expired(tx, NOON) == [SnapshotRef(C1, "before"), SnapshotRef(C1, "now")]


def test_snapshots_are_on_the_member_of_their_instance(tx: Transaction) -> None:
    members.claim(tx, "uuid-1", "host1")
    other = Transaction(tx.connection, members.claim(tx, "uuid-2", "host2").id)
    row = take(tx, "snap0", expires_at=NOON)
    (seen,) = snapshots.get_all(other, None)
    assert (seen.ref, seen.location, seen.here) == (row.ref, "host1", False)
    assert snapshots.get_here(other) == []
    assert snapshots.expired(other, NOON) == []


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"instance_id": 99}, NotFound),
        ({"data": replace(DATA, architecture="pdp11")}, InvalidConfig),
        ({"data": replace(DATA, devices={"d": {"type": "floppy"}})}, InvalidConfig),
    ],
)
def test_an_invalid_snapshot(tx: Transaction, fields: dict[str, Any], error: type[Exception]) -> None:
    with refused(tx, error):
        take(tx, "snap0", **fields)
    assert snapshots.get_all(tx, None) == []


def test_snapshots_that_do_not_exist(tx: Transaction) -> None:
    take(tx, "snap0")
    calls: list[Callable[[], Any]] = [
        lambda: snapshots.get(tx, SnapshotRef(C1, "snap1")),
        lambda: snapshots.update(tx, 99, "", None),
        lambda: snapshots.rename(tx, 99, "x"),
        lambda: snapshots.set_ready(tx, 99),
        lambda: snapshots.set_deleting(tx, 99),
    ]
    for call in calls:
        with refused(tx, NotFound, match="Snapshot .*not found"):
            call()
    with refused(tx, NotFound, match="Instance not found"):
        snapshots.get(tx, SnapshotRef(ref("none"), "snap0"))


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("instances_snapshots", "state"),
        ("instances_snapshots", "architecture"),
        ("instances_snapshots_devices", "type"),
    ],
)
def test_a_snapshot_with_an_unknown_code(tx: Transaction, table: str, column: str) -> None:
    row = take(tx, f"odd-{table}-{column}")
    tx.execute_sql(f"UPDATE {table} SET {column} = 99")
    assert [found.state for found in snapshots.get_all(tx, None)] == [codes.UNKNOWN]
    with refused(tx, codes.UnknownCode, match="of instance 'c1' cannot be used"):
        snapshots.get(tx, row.ref)
