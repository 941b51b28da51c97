"""Every entity module: what is stored comes back, constraints become typed errors, lists take few queries."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.instances import C1, NOON, instance_row, ref
from tests.support.transactions import CountedTransaction, refused
from utsuwa.core import clock
from utsuwa.core.errors import (
    AlreadyExists,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
)
from utsuwa.core.image_source import ImageOrigin
from utsuwa.db import (
    certificates,
    codes,
    config,
    idmaps,
    image_aliases,
    image_lists,
    images,
    instances,
    networks,
    nics,
    profiles,
    projects,
    rows,
    schema,
    storage_pools,
    storage_volumes,
    volume_snapshots,
)
from utsuwa.db.certificates import CertificateRow
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.networks import NetworkRow
from utsuwa.db.nics import NicsRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction

FINGERPRINT = "ab" * 32


@pytest.fixture
def tx(tx: Transaction) -> CountedTransaction:
    return CountedTransaction(tx.connection)


def image(fingerprint: str = FINGERPRINT, **fields: Any) -> ImageRow:
    row = ImageRow(
        id=0,
        project="default",
        fingerprint=fingerprint,
        filename="image.tar.xz",
        size=2**40,
        architecture="x86_64",
        created_at=NOON,
        expires_at=None,
        uploaded_at=NOON,
    )
    return replace(row, **fields)


def volume(name: str, type: int = codes.VOLUME_CONTAINER, **fields: Any) -> VolumeRow:
    row = VolumeRow(id=0, project="default", pool="p", name=name, type=type, description="", created_at=NOON)
    return replace(row, **fields)


def second_project(
    tx: Transaction, name: str = "other", own: Sequence[projects.Kind] = ("images", "networks", "profiles")
) -> None:
    """A project that has the kinds of `own` itself."""
    project_id = tx.insert(schema.projects, {"name": name, "description": ""})
    for kind in own:
        row = {"project_id": project_id, "key": f"features.{kind}", "value": "true"}
        tx.execute(schema.projects_config.insert().values(row))


# ---- instances


def test_names_are_those_of_complete_instances(tx: Transaction) -> None:
    second_project(tx)
    instances.insert(tx, instance_row("b", state="ready"))
    instances.insert(tx, instance_row("a", state="ready"))
    instances.insert(tx, instance_row("half", state="creating"))
    instances.insert(tx, instance_row("c", project="other", state="ready"))
    assert instances.names(tx, "default") == [ref("a"), ref("b")]
    assert instances.names(tx, None) == [ref("a"), ref("b"), ref("c", "other")]


def test_existence_of_a_project(tx: Transaction) -> None:
    projects.check(tx, "default")
    with refused(tx, NotFound, match="Project 'other' not found"):
        projects.check(tx, "other")


def test_instance_round_trip(tx: Transaction) -> None:
    profiles.insert(tx, ProfileRow(0, "default", "a"))
    row = instance_row(
        ephemeral=True,
        stateful=True,
        description="täglich",
        config={"user.x": "line\nline", "limits.cpu": "2"},
        devices={"root": {"type": "disk", "path": "/", "pool": "p"}, "n": {"type": "none"}},
        profiles=["default", "a"],
        state="ready",
    )
    row = replace(row, last_used_at=NOON + timedelta(days=1))
    row = replace(row, id=instances.insert(tx, row))
    stored = (instances.get_all(tx, None))[0]
    assert list(stored.data.config) == ["limits.cpu", "user.x"]
    assert list(stored.data.devices) == ["n", "root"]
    assert list(stored.data.devices["root"]) == ["type", "path", "pool"]
    assert instances.get(tx, C1) == row
    assert instances.get_all(tx, None) == [row]
    assert instances.get_all(tx, "other") == []


def test_empty_values_are_not_stored(tx: Transaction) -> None:
    row = instance_row(config={"user.x": ""}, devices={"n": {"type": "nic", "name": ""}})
    instances.insert(tx, row)
    found = instances.get(tx, C1)
    assert (found.data.config, found.data.devices) == ({}, {"n": {"type": "nic"}})


def test_the_order_of_profiles_is_kept(tx: Transaction) -> None:
    for name in ("a", "b", "c"):
        profiles.insert(tx, ProfileRow(0, "default", name))
    row = instance_row(profiles=["c", "default", "a", "b"])
    row = replace(row, id=instances.insert(tx, row))
    assert instances.get(tx, C1).data.profiles == row.data.profiles
    row = replace(row, data=replace(row.data, profiles=["b", "c"]))
    instances.update(tx, row)
    assert instances.get(tx, C1).data.profiles == ["b", "c"]


def test_an_update_replaces_all_that_is_editable(tx: Transaction) -> None:
    row = instance_row(config={"user.a": "1", "user.b": "2"}, devices={"n": {"type": "nic", "mtu": "9"}})
    row = replace(row, id=instances.insert(tx, row))
    data = InstanceData(
        architecture="aarch64",
        ephemeral=True,
        description="new",
        config={"user.b": "3"},
        devices={"d": {"type": "disk"}},
        profiles=["default"],
    )
    new = replace(row, data=data)
    instances.update(tx, new)
    assert instances.get(tx, C1) == new


_DATA = st.builds(
    InstanceData,
    architecture=st.sampled_from(("x86_64", "aarch64")),
    ephemeral=st.booleans(),
    description=st.sampled_from(("", "new")),
    config=st.dictionaries(st.sampled_from(("user.a", "user.b")), st.sampled_from(("1", "2")), max_size=2),
    devices=st.dictionaries(
        st.sampled_from(("a", "b")),
        st.fixed_dictionaries(
            {"type": st.sampled_from(("nic", "disk"))}, optional={"path": st.sampled_from(("/a", "/b"))}
        ),
    ),
    profiles=st.lists(st.sampled_from(("default", "p")), unique=True),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_DATA, _DATA)
def test_after_an_update_exactly_the_new_data_is_stored(
    tx: Transaction, old: InstanceData, new: InstanceData
) -> None:
    undone = tx.connection.begin_nested()
    profiles.insert(tx, ProfileRow(0, "default", "p"))
    row = replace(instance_row(), data=old)
    row = replace(row, id=instances.insert(tx, row))
    instances.update(tx, replace(row, data=new))
    assert instances.get(tx, C1) == replace(row, data=new)
    undone.rollback()


def test_an_update_writes_only_what_differs(tx: CountedTransaction) -> None:
    row = instance_row(config={"user.a": "1"}, devices={"n": {"type": "nic"}}, profiles=["default"])
    row = replace(row, id=instances.insert(tx, row))
    query = sa.select(schema.instances_devices.c.id)
    device = tx.execute(query).scalars()
    before = tx.statements
    instances.update(tx, row)
    reads = tx.statements - before
    instances.update(tx, replace(row, data=replace(row.data, config={"user.a": "2"})))
    assert tx.statements - before == 2 * reads + 2
    assert tx.execute(query).scalars() == device


def test_an_instance_that_is_gone_is_not_updated(tx: Transaction) -> None:
    row = instance_row()
    with refused(tx, NotFound):
        instances.update(tx, replace(row, id=instances.insert(tx, row) + 1))


def test_a_patch_leaves_other_keys(tx: Transaction) -> None:
    row_id = instances.insert(tx, instance_row(config={"user.a": "1", "user.b": "2"}))
    instances.patch_config(tx, row_id, {"user.a": None, "user.b": "3", "user.c": "4", "user.d": ""})
    instances.patch_config(tx, row_id, {})
    assert instances.get(tx, C1).data.config == {"user.b": "3", "user.c": "4"}
    instances.patch_config(tx, row_id + 1, {"user.a": "1"})


def test_the_steps_of_an_instances_life(tx: Transaction) -> None:
    row_id = instances.insert(tx, instance_row())
    instances.set_ready(tx, row_id)
    instances.set_last_used(tx, row_id, NOON)
    instances.rename(tx, row_id, ref("c2"))
    found = instances.get(tx, ref("c2"))
    assert (found.state, found.last_used_at) == ("ready", NOON)
    instances.set_deleting(tx, row_id)
    assert instances.get(tx, ref("c2")).state == "deleting"
    instances.delete(tx, row_id)
    instances.delete(tx, row_id)
    with refused(tx, NotFound):
        instances.get(tx, ref("c2"))
    for table in (schema.instances_config, schema.instances_devices, schema.instances_profiles):
        assert (tx.execute(sa.select(table))).all() == []


def test_names_are_unique_within_a_project(tx: Transaction) -> None:
    second_project(tx)
    instances.insert(tx, instance_row())
    assert instances.is_taken(tx, C1)
    assert not instances.is_taken(tx, ref("c1", "other"))
    instances.insert(tx, instance_row(project="other"))
    with refused(tx, AlreadyExists, match="'c1' already exists"):
        instances.insert(tx, instance_row())
    row_id = instances.insert(tx, instance_row("c2"))
    with refused(tx, AlreadyExists, match="'c1' already exists"):
        instances.rename(tx, row_id, C1)
    with refused(tx, AlreadyExists, match="'c1' already exists"):
        instances.rename(tx, row_id, ref("c1", "other"))
    instances.rename(tx, row_id, ref("c3", "other"))
    assert instances.get(tx, ref("c3", "other")).id == row_id


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"project": "nope"}, NotFound),
        ({"profiles": ["nope"]}, NotFound),
        ({"profiles": ["default", "default"]}, AlreadyExists),
        ({"architecture": "pdp11"}, InvalidConfig),
        ({"devices": {"d": {"type": "floppy"}}}, InvalidConfig),
        ({"devices": {"d": {"path": "/"}}}, InvalidConfig),
    ],
)
def test_an_instance_that_cannot_be(tx: Transaction, fields: dict[str, Any], error: type[Exception]) -> None:
    with refused(tx, error):
        instances.insert(tx, instance_row(**fields))
    assert instances.get_all(tx, None) == []


def test_missing_instances(tx: Transaction) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: instances.get(tx, C1),
        lambda: instances.update(tx, instance_row(id=7)),
        lambda: instances.rename(tx, 7, ref("x")),
        lambda: instances.set_ready(tx, 7),
        lambda: instances.set_last_used(tx, 7, NOON),
    ]
    for call in calls:
        with refused(tx, NotFound, match="Instance not found"):
            call()


def test_lists_take_a_constant_number_of_queries(tx: CountedTransaction) -> None:
    def load_everything() -> None:
        instances.get_all(tx, None)
        nics.get_all(tx)
        profiles.get_all(tx, "default")
        profiles.used_by(tx, "default", None)
        projects.get_all(tx)
        projects.contents(tx)
        images.get_all(tx, None)
        image_lists.fetch(tx, None)
        image_aliases.get_all(tx, None)
        storage_pools.get_all(tx)
        storage_pools.used_by(tx)
        storage_volumes.get_all(tx, None)
        certificates.get_all(tx)

    def add(n: int) -> None:
        profiles.insert(tx, ProfileRow(0, "default", f"p{n}", config={"user.x": "1"}))
        instances.insert(tx, instance_row(f"c{n}", config={"user.x": "1"}, profiles=[f"p{n}"]))
        images.insert(tx, image(f"{n:064x}", properties={"os": "x"}, state="ready", profiles=["default"]))
        image_aliases.insert(tx, AliasRow("default", f"a{n}", "", f"{n:064x}"))
        storage_volumes.insert(tx, volume(f"c{n}"))
        certificates.insert(tx, CertificateRow(0, f"{n:064x}", "client", "n", "PEM"))

    storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    add(0)
    tx.statements = 0
    load_everything()
    before = tx.statements
    for n in range(1, 30):
        add(n)
    tx.statements = 0
    load_everything()
    assert tx.statements == before > 0


def test_listed_images_have_what_belongs_to_them(tx: Transaction) -> None:
    second_project(tx, own=("images",))
    source = ImageOrigin("https://x", "simplestreams", "", "debian/12")
    properties = {"os": 'quoted "text"', "release": "12"}
    images.insert(
        tx, image(state="ready", public=True, properties=properties, profiles=["default"], source=source)
    )
    images.insert(tx, image("cd" * 32))
    images.insert(tx, image("ef" * 32, project="other", state="ready"))
    for name in ("b", "a"):
        image_aliases.insert(tx, AliasRow("default", name, f"of {name}", FINGERPRINT))
    assert image_lists.names(tx, None) == [("default", FINGERPRINT, True), ("other", "ef" * 32, False)]
    assert image_lists.names(tx, "other") == [("other", "ef" * 32, False)]
    rows_of_all, applied = image_lists.fetch(tx, None)
    (listed,) = image_lists.fetch(tx, "default").rows
    assert [row.fingerprint for row in rows_of_all] == [FINGERPRINT, "ef" * 32]
    assert listed == rows_of_all[0]
    assert rows.read_config(listed.properties) == properties
    assert rows.read_config(listed.aliases) == {"a": "of a", "b": "of b"}
    assert (listed.server, listed.alias, listed.size) == ("https://x", "debian/12", 2**40)
    assert schema.time_text(listed.created_at) == clock.to_wire(NOON)
    assert (listed.expires_at, rows_of_all[1].server) == (None, None)
    assert rows.read_config(rows_of_all[1].aliases) == {}
    assert applied == {listed.id: ["default"]}


@given(moment=st.datetimes(timezones=st.just(UTC)), stored_as=st.sampled_from(["text", "offset", "datetime"]))
def test_stored_times_have_the_form_of_the_api(moment: datetime, stored_as: str) -> None:
    if stored_as == "text":
        stored: Any = moment.isoformat(sep=" ", timespec="microseconds")
    elif stored_as == "offset":
        stored = moment.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds") + "-00:00"
    else:
        stored = moment
    assert schema.time_text(stored) == clock.to_wire(moment)


# ---- nics

_DEVICE = st.sampled_from(("nic", "none", "disk")).map(lambda kind: {"type": kind})
_DEVICES = st.dictionaries(st.sampled_from(("eth0", "eth1", "x")), _DEVICE, max_size=3)


def test_the_nics_of_an_instance(tx: Transaction) -> None:
    profiles.insert(tx, ProfileRow(0, "default", "lan", devices={"eth0": {"type": "nic", "network": "br0"}}))
    profiles.insert(tx, ProfileRow(0, "default", "disks", devices={"x": {"type": "disk", "path": "/x"}}))
    config = {"volatile.eth0.hwaddr": "00:16:3e:00:00:01", "volatile.eth0.host_name": "veth1", "user.x": "1"}
    instances.insert(tx, instance_row("b", profiles=["lan", "disks"], config=config))
    instances.insert(tx, instance_row("a", profiles=["lan"], devices={"eth0": {"type": "none"}}))
    instances.insert(
        tx, instance_row("c", devices={"p": {"type": "nic", "nictype": "p2p"}}, state="deleting")
    )
    instances.insert(tx, instance_row("d", profiles=["disks"]))
    del config["user.x"]
    assert nics.get_all(tx) == [
        NicsRow(ref("b"), {"eth0": {"type": "nic", "network": "br0"}}, config),
        NicsRow(ref("c"), {"p": {"type": "nic", "nictype": "p2p"}}, {}),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_DEVICES, max_size=3), _DEVICES)
def test_a_nic_is_overridden_by_later_devices_of_its_name(
    tx: Transaction, layers: list[dict[str, dict[str, str]]], own: dict[str, dict[str, str]]
) -> None:
    undone = tx.connection.begin_nested()
    names = [f"p{number}" for number in range(len(layers))]
    for name, devices in zip(names, layers, strict=True):
        profiles.insert(tx, ProfileRow(0, "default", name, devices=devices))
    instances.insert(tx, instance_row(profiles=names, devices=own))
    merged = dict(ChainMap(own, *reversed(layers)))
    wanted = {name: device for name, device in merged.items() if device["type"] == "nic"}
    assert [row.devices for row in nics.get_all(tx)] == ([wanted] if wanted else [])
    undone.rollback()


# ---- profiles


def test_profile_round_trip(tx: Transaction) -> None:
    row = ProfileRow(
        0, "default", "p", "a profile", {"user.x": "1"}, {"eth0": {"type": "nic", "nictype": "p2p"}}
    )
    row = replace(row, id=profiles.insert(tx, row))
    assert profiles.get(tx, "default", "p") == row
    assert [p.name for p in profiles.get_all(tx, "default")] == ["default", "p"]
    new = replace(row, description="", config={"user.y": "2"}, devices={})
    profiles.update(tx, new)
    assert profiles.get(tx, "default", "p") == new
    profiles.rename(tx, row.id, "q")
    profiles.delete(tx, row.id)
    assert [p.name for p in profiles.get_all(tx, None)] == ["default"]


def test_users_of_a_profile(tx: Transaction) -> None:
    row_id = profiles.insert(tx, ProfileRow(0, "default", "p"))
    for name in ("c2", "c1"):
        instances.insert(tx, instance_row(name, profiles=["p", "default"]))
    users = [C1, ref("c2")]
    assert profiles.used_by(tx, "default", None) == {("default", "p"): users, ("default", "default"): users}
    assert profiles.used_by(tx, "default", ("p", "nope")) == {("default", "p"): users}
    assert profiles.used_by(tx, "other", None) == {}
    with refused(tx, InUse, match="Profile is currently in use"):
        profiles.delete(tx, row_id)


def test_profiles_that_cannot_be(tx: Transaction) -> None:
    with refused(tx, AlreadyExists):
        profiles.insert(tx, ProfileRow(0, "default", "default"))
    with refused(tx, NotFound, match="Project 'nope' not found"):
        profiles.insert(tx, ProfileRow(0, "nope", "p"))
    row_id = profiles.insert(tx, ProfileRow(0, "default", "p"))
    with refused(tx, AlreadyExists):
        profiles.rename(tx, row_id, "default")
    for call in (
        lambda: profiles.get(tx, "default", "nope"),
        lambda: profiles.update(tx, ProfileRow(99, "default", "nope")),
        lambda: profiles.rename(tx, 99, "x"),
        lambda: profiles.delete(tx, 99),
    ):
        with refused(tx, NotFound):
            call()


# ---- projects and the server


def test_projects(tx: Transaction) -> None:
    row = projects.get(tx, "default")
    assert row.config["features.profiles"] == "true"
    new = replace(row, description="x", config={**row.config, "user.a": "1"})
    projects.update(tx, new)
    assert projects.get_all(tx) == [new]
    with refused(tx, NotFound):
        projects.get(tx, "nope")
    with refused(tx, NotFound):
        projects.update(tx, replace(row, id=99))


def test_contents_of_a_project(tx: Transaction) -> None:
    second_project(tx)
    storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    instances.insert(tx, instance_row())
    images.insert(tx, image())
    storage_volumes.insert(tx, volume("c1"))
    storage_volumes.insert(tx, volume("data", codes.VOLUME_CUSTOM))
    tx.execute(schema.networks.insert().values(project_id=1, name="br0", description=""))
    found = projects.contents(tx)
    assert found["default"] == projects.Contents(
        instances=["c1"],
        images=[FINGERPRINT],
        profiles=["default"],
        volumes=[("p", "data")],
        networks=["br0"],
    )
    assert found["other"] == projects.Contents()


def test_objects_without_feature_belong_to_the_default_project(tx: Transaction) -> None:
    second_project(tx, own=("images",))
    assert projects.effective(tx, "other", "images") == "other"
    assert projects.effective(tx, "other", "profiles") == "default"
    assert projects.effective(tx, "default", "networks") == "default"
    with refused(tx, NotFound, match="Project 'nope' not found"):
        projects.effective(tx, "nope", "images")
    set_feature = schema.projects_config.update().values(value="false")
    tx.execute(set_feature.where(schema.projects_config.c.key == "features.images"))
    assert projects.effective(tx, "other", "images") == "default"


def test_profiles_come_from_the_project_that_holds_them(tx: Transaction) -> None:
    second_project(tx, own=())
    second_project(tx, "own")
    profiles.insert(tx, ProfileRow(0, "own", "default", "", {}, {}))
    for project in ("other", "own"):
        instances.insert(tx, instance_row(project=project, profiles=["default"]))
        images.insert(tx, image(project=project, profiles=["default"]))
    ids = {row.project: row.id for row in profiles.get_all(tx, None)}
    assert instances.get(tx, ref("c1", "other")).data.profile_ids == (ids["default"],)
    assert instances.get(tx, ref("c1", "own")).data.profile_ids == (ids["own"],)
    assert profiles.used_by(tx, "default", None) == {("default", "default"): [ref("c1", "other")]}
    with refused(tx, NotFound, match="Requested profile 'extra'"):
        instances.insert(tx, instance_row("c2", project="other", profiles=["extra"]))


def test_deleting_a_project_deletes_its_objects(tx: Transaction) -> None:
    second_project(tx)
    storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    profiles.insert(tx, ProfileRow(0, "other", "a", "", {"user.x": "1"}, {"n": {"type": "nic"}}))
    instances.insert(tx, instance_row(project="other", profiles=["a"], config={"user.x": "1"}))
    images.insert(tx, image(project="other", properties={"os": "x"}, profiles=["a"]))
    image_aliases.insert(tx, AliasRow("other", "al", "", FINGERPRINT))
    storage_volumes.insert(tx, volume("v", project="other", config={"size": "1"}))
    certificates.insert(tx, CertificateRow(0, "cd" * 32, "client", "n", "PEM", True, ["other"]))
    instances.delete(tx, instances.get(tx, ref("c1", "other")).id)
    tx.execute(schema.projects.delete().where(schema.projects.c.name == "other"))
    left = {"members", "projects", "projects_config", "profiles", "certificates"}
    left |= {"storage_pools", "storage_pools_members"}
    for table in schema.metadata.sorted_tables:
        rows = (tx.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
        assert (rows > 0) == (table.name in left), table.name


def test_the_server_config_is_replaced_completely(tx: Transaction) -> None:
    config.replace(tx, {"core.https_address": ":8443", "user.a": ""})
    assert config.load(tx) == {"core.https_address": ":8443"}
    config.replace(tx, {})
    assert config.load(tx) == {}


# ---- images


def test_image_round_trip(tx: Transaction) -> None:
    row = image(
        expires_at=NOON + timedelta(days=9),
        last_used_at=NOON,
        public=True,
        auto_update=True,
        cached=True,
        properties={"os": "Debian", "description": "x"},
        state="ready",
        split=True,
        trusted=True,
        profiles=["default"],
    )
    row = replace(row, id=images.insert(tx, row))
    assert images.get(tx, "default", FINGERPRINT) == row
    assert images.get_all(tx, "default") == [row]
    new = replace(row, public=False, properties={"os": "x"}, profiles=[], expires_at=None, filename="y")
    images.update(tx, new)
    assert images.get(tx, "default", FINGERPRINT) == new


def test_images_are_found_by_the_beginning_of_their_fingerprint(tx: Transaction) -> None:
    images.insert(tx, image("ab" * 32))
    images.insert(tx, image("ac" + "0" * 62))
    assert (images.find_by_prefix(tx, "default", "ab")).fingerprint == "ab" * 32
    assert (images.find_by_prefix(tx, "default", "ab" * 32)).fingerprint == "ab" * 32
    with refused(tx, InvalidRequest, match="More than one image"):
        images.find_by_prefix(tx, "default", "a")
    with refused(tx, NotFound):
        images.find_by_prefix(tx, "default", "f")
    for odd in ("", "AB", "a%", "a_", "a" * 65):
        with refused(tx, InvalidName):
            images.find_by_prefix(tx, "default", odd)


def test_the_steps_of_an_images_life(tx: Transaction) -> None:
    second_project(tx)
    row_id = images.insert(tx, image())
    images.insert(tx, image(project="other"))
    assert images.projects_with(tx, FINGERPRINT) == ["default", "other"]
    images.set_ready(tx, row_id)
    images.set_last_used(tx, row_id, NOON)
    found = images.get(tx, "default", FINGERPRINT)
    assert (found.state, found.last_used_at) == ("ready", NOON)
    image_aliases.insert(tx, AliasRow("default", "a", "", FINGERPRINT))
    images.delete(tx, row_id)
    images.delete(tx, row_id)
    assert images.projects_with(tx, FINGERPRINT) == ["other"]
    assert image_aliases.get_all(tx, None) == []


def test_images_that_cannot_be(tx: Transaction) -> None:
    images.insert(tx, image())
    with refused(tx, AlreadyExists):
        images.insert(tx, image())
    for fields, error in (
        ({"project": "nope"}, NotFound),
        ({"profiles": ["nope"]}, NotFound),
        ({"profiles": ["default", "default"]}, AlreadyExists),
        ({"architecture": "pdp11"}, InvalidConfig),
        ({"type": "disk"}, InvalidConfig),
    ):
        with refused(tx, error):
            images.insert(tx, image("cd" * 32, **fields))
        tx.execute(schema.images.delete().where(schema.images.c.fingerprint == "cd" * 32))
    for call in (
        lambda: images.get(tx, "other", FINGERPRINT),
        lambda: images.update(tx, image(id=99)),
        lambda: images.set_ready(tx, 99),
        lambda: images.set_last_used(tx, 99, NOON),
    ):
        with refused(tx, NotFound, match="Image not found"):
            call()


def test_aliases_in_lists_are_those_of_images_that_are_ready(tx: Transaction) -> None:
    for fingerprint, public in (("ab" * 32, False), ("cd" * 32, True), ("ef" * 32, True)):
        row_id = images.insert(tx, image(fingerprint, public=public))
        if fingerprint != "ef" * 32:
            images.set_ready(tx, row_id)
        image_aliases.insert(tx, AliasRow("default", fingerprint[:2], "", fingerprint))
    image_aliases.insert(tx, AliasRow("default", "a", "first", "cd" * 32))
    assert [row.name for row in image_aliases.get_ready(tx, "default")] == ["a", "ab", "cd"]
    found = image_aliases.get_ready(tx, "default", public=True)
    assert found == image_aliases.of_image(tx, "default", "cd" * 32)
    assert found[0] == AliasRow("default", "a", "first", "cd" * 32)
    assert image_aliases.get_ready(tx, "other") == []


def test_aliases(tx: Transaction) -> None:
    images.insert(tx, image())
    images.insert(tx, image("cd" * 32))
    row = AliasRow("default", "a/b", "text", FINGERPRINT)
    image_aliases.insert(tx, row)
    assert image_aliases.get(tx, "default", "a/b") == row
    with refused(tx, AlreadyExists, match="'a/b' already exists"):
        image_aliases.insert(tx, replace(row, fingerprint="cd" * 32))
    new = replace(row, description="new", fingerprint="cd" * 32)
    image_aliases.update(tx, new)
    assert image_aliases.get_all(tx, "default") == [new]
    image_aliases.insert(tx, replace(row, name="z"))
    with refused(tx, AlreadyExists):
        image_aliases.rename(tx, "default", "z", "a/b")
    image_aliases.rename(tx, "default", "z", "y")
    image_aliases.delete(tx, "default", "y")
    with refused(tx, NotFound, match="Image 'efefefefefef' not found"):
        image_aliases.update(tx, replace(row, fingerprint="ef" * 32))
    for call in (
        lambda: image_aliases.get(tx, "default", "y"),
        lambda: image_aliases.update(tx, replace(row, name="y")),
        lambda: image_aliases.rename(tx, "default", "y", "x"),
        lambda: image_aliases.delete(tx, "default", "y"),
        lambda: image_aliases.delete(tx, "nope", "a/b"),
    ):
        with refused(tx, NotFound, match="Image alias 'a?/?[by]' not found"):
            call()


# ---- storage


def test_pool_round_trip(tx: Transaction) -> None:
    row = PoolRow(0, "p", "overlay", "fast", {"source": "/x"})
    row = replace(row, id=storage_pools.insert(tx, row))
    assert storage_pools.get(tx, "p") == row
    storage_pools.set_state(tx, row.id, "ready")
    new = replace(row, description="slow", config={"user.a": "1"}, state="ready")
    storage_pools.update(tx, new)
    assert storage_pools.get_all(tx) == [new]
    with refused(tx, AlreadyExists, match="'p' already exists"):
        storage_pools.insert(tx, row)
    storage_volumes.insert(tx, volume("c1", config={"size": "1"}))
    storage_pools.delete(tx, row.id)
    assert storage_volumes.get_all(tx, None) == []
    for call in (
        lambda: storage_pools.get(tx, "p"),
        lambda: storage_pools.update(tx, row),
        lambda: storage_pools.set_state(tx, row.id, "ready"),
    ):
        with refused(tx, NotFound, match="Storage pool"):
            call()


def test_users_of_a_pool(tx: Transaction) -> None:
    second_project(tx)
    for name in ("p", "empty"):
        storage_pools.insert(tx, PoolRow(0, name, "dir"))
    for project in ("default", "other"):
        images.insert(tx, image(project=project))
    storage_volumes.insert(tx, volume(FINGERPRINT, codes.VOLUME_IMAGE))
    c1 = volume("c1", project="other")
    c1 = replace(c1, id=storage_volumes.insert(tx, c1))
    for name, minutes in (("late", 2), ("early", 1)):
        volume_snapshots.take(tx, c1, name, NOON + timedelta(minutes=minutes), None)
    disk = {"type": "disk", "path": "/", "pool": "p"}
    profiles.insert(tx, ProfileRow(0, "default", "a", devices={"root": disk, "again": disk}))
    profiles.insert(tx, ProfileRow(0, "default", "b", devices={"n": {"type": "nic", "pool": "p"}}))
    found = storage_pools.used_by(tx)
    assert found["empty"] == storage_pools.PoolUse()
    assert found["p"] == storage_pools.PoolUse(
        volumes=[
            (codes.VOLUME_CONTAINER, "other", "c1"),
            (codes.VOLUME_IMAGE, "default", FINGERPRINT),
            (codes.VOLUME_IMAGE, "other", FINGERPRINT),
        ],
        snapshots={(codes.VOLUME_CONTAINER, "other", "c1"): ["early", "late"]},
        profiles=[("default", "a")],
        here=[codes.VOLUME_CONTAINER, codes.VOLUME_IMAGE, codes.VOLUME_IMAGE],
    )


def test_snapshots_of_the_volumes_on_a_pool(tx: Transaction) -> None:
    rows = []
    for pool in ("p", "q"):
        storage_pools.insert(tx, PoolRow(0, pool, "dir"))
        row = volume("c1", pool=pool, description=f"on {pool}", config={"user.on": pool})
        rows.append(replace(row, id=storage_volumes.insert(tx, row)))
    for row in rows:
        for name, minutes in (("late", 2), ("early", 1)):
            volume_snapshots.take(tx, row, name, NOON + timedelta(minutes=minutes), None)
    found = volume_snapshots.get_on(tx, "q")
    assert found == {rows[1].id: volume_snapshots.get_of(tx, rows[1].id)}
    assert [(s.name, s.description, s.config) for s in found[rows[1].id]] == [
        ("early", "on q", {"user.on": "q"}),
        ("late", "on q", {"user.on": "q"}),
    ]


def test_volumes(tx: Transaction) -> None:
    with refused(tx, NotFound, match="Storage pool 'p' not found"):
        storage_volumes.insert(tx, volume("c1"))
    storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    with refused(tx, NotFound, match="Project"):
        storage_volumes.insert(tx, volume("c1", project="nope"))
    row = volume("c1", description="x", config={"size": "1GiB"})
    row = replace(row, id=storage_volumes.insert(tx, row))
    with refused(tx, AlreadyExists):
        storage_volumes.insert(tx, volume("c1"))
    storage_volumes.insert(tx, volume("c1", codes.VOLUME_CUSTOM))
    assert storage_volumes.get(tx, "default", "p", codes.VOLUME_CONTAINER, "c1") == row
    assert storage_volumes.get_all(tx, "default", "p", codes.VOLUME_CONTAINER) == [row]
    assert len(storage_volumes.get_all(tx, None)) == 2
    assert storage_volumes.get_all(tx, None, "q") == []
    new = replace(row, description="", config={})
    storage_volumes.update(tx, new)
    storage_volumes.set_new_name(tx, row.id, "c9")
    storage_volumes.set_new_name(tx, row.id, "c2")
    assert storage_volumes.get_here(tx, "p", codes.VOLUME_CONTAINER) == [replace(new, new_name="c2")]
    storage_volumes.move(tx, row.id, "default", "p", "c2")
    found = storage_volumes.get(tx, "default", "p", codes.VOLUME_CONTAINER, "c2")
    assert found == replace(new, name="c2")
    other = storage_volumes.insert(tx, volume("c3"))
    with refused(tx, AlreadyExists):
        storage_volumes.move(tx, other, "default", "p", "c2")
    storage_volumes.delete(tx, other)
    storage_volumes.delete(tx, other)
    for call in (
        lambda: storage_volumes.get(tx, "default", "p", codes.VOLUME_CONTAINER, "c3"),
        lambda: storage_volumes.update(tx, volume("c3", id=99)),
        lambda: storage_volumes.move(tx, 99, "default", "p", "c4"),
        lambda: storage_volumes.set_new_name(tx, 99, "c4"),
    ):
        with refused(tx, NotFound, match="Storage volume"):
            call()


def test_a_volume_moves_to_another_project_and_pool(tx: Transaction) -> None:
    second_project(tx)
    for pool in ("p", "q"):
        storage_pools.insert(tx, PoolRow(0, pool, "dir"))
    row = volume("c1", description="x", config={"size": "1GiB"})
    row = replace(row, id=storage_volumes.insert(tx, replace(row, new_name="-")))
    storage_volumes.insert(tx, volume("c2", project="other"))
    storage_volumes.move(tx, row.id, "other", "q", "c2")
    moved = replace(row, project="other", pool="q", name="c2")
    assert storage_volumes.get_all(tx, None, "q") == [moved]
    with refused(tx, AlreadyExists, match="'c2' already exists on pool 'p'"):
        storage_volumes.move(tx, row.id, "other", "p", "c2")
    with refused(tx, NotFound, match="Storage pool 'none'"):
        storage_volumes.move(tx, row.id, "other", "none", "c2")
    with refused(tx, NotFound, match="Project 'none'"):
        storage_volumes.move(tx, row.id, "none", "p", "c2")


# ---- certificates


def test_certificates(tx: Transaction) -> None:
    row = CertificateRow(0, "ab" * 32, "client", "laptop", "PEM", True, ["default"])
    row = replace(row, id=certificates.insert(tx, row))
    assert certificates.get(tx, "ab") == row
    with refused(tx, AlreadyExists, match="already in trust store"):
        certificates.insert(tx, row)
    new = replace(row, type="metrics", name="m", restricted=False, projects=[])
    certificates.update(tx, new)
    assert certificates.get_all(tx) == [new]
    certificates.insert(tx, replace(row, fingerprint="ac" * 32))
    with refused(tx, InvalidRequest, match="More than one certificate"):
        certificates.get(tx, "a")
    with refused(tx, InvalidName):
        certificates.get(tx, "%")
    with refused(tx, InvalidConfig, match="certificate type 'boss'"):
        certificates.insert(tx, replace(row, fingerprint="ad" * 32, type="boss"))
    with refused(tx, NotFound, match="Project 'nope'"):
        certificates.update(tx, replace(row, projects=["nope"]))
    certificates.delete(tx, row.id)
    for call in (
        lambda: certificates.get(tx, "ab"),
        lambda: certificates.update(tx, row),
        lambda: certificates.delete(tx, row.id),
    ):
        with refused(tx, NotFound, match="Certificate not found"):
            call()


# ---- times and codes


@pytest.mark.parametrize(
    "text",
    ["2026-03-01 12:00:00+00:00", "2026-03-01 12:00:00", "2026-03-01T14:00:00+02:00"],
)
def test_times_that_hands_wrote_are_read(tx: Transaction, text: str) -> None:
    """LXD's suite writes `last_use_date` by hand in the form of `date --rfc-3339`."""
    images.insert(tx, image())
    tx.execute_sql(f"UPDATE images SET last_use_date = '{text}'")
    found = images.get(tx, "default", FINGERPRINT)
    assert found.last_used_at == datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_times_of_other_zones_are_stored_in_utc(tx: Transaction) -> None:
    east = datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    row_id = instances.insert(tx, instance_row())
    instances.set_last_used(tx, row_id, east)
    found = instances.get(tx, C1)
    assert found.last_used_at == east
    if tx.connection.dialect.name == "sqlite":
        stored = tx.execute_sql("SELECT last_use_date FROM instances").scalar_one()
        assert stored == "2026-03-01 12:00:00.000000+00:00"


def test_times_and_types_serve_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in schema.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=dialect))
        assert "DATETIME" not in text
    assert "TIMESTAMP WITH TIME ZONE" in str(CreateTable(schema.instances).compile(dialect=dialect))


def test_configs_are_gathered_in_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql

    query = rows.config_query(schema.instances_config, "instance_id", sa.select(schema.instances.c.id))
    text = str(query.compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert "json_object_agg(instances_config.key" in text


# ---- numbers without a word


def set_number(tx: Transaction, table: str, column: str) -> None:
    """As a newer version, or a hand, would have written it."""
    tx.execute_sql(f"UPDATE {table} SET {column} = 99")


@pytest.mark.parametrize(
    "table",
    [
        codes.STATES,
        codes.ARCHITECTURES,
        codes.DEVICE_TYPES,
        codes.INSTANCE_TYPES,
        codes.CERTIFICATE_TYPES,
        codes.NETWORK_TYPES,
        codes.VOLUME_TYPES,
    ],
    ids=lambda table: table.kind,
)
def test_unknown_codes_are_rejected(table: codes.Codes) -> None:
    for word, number in table.items():
        assert codes.word(table, number) == word
    assert sorted(table.values()) == list(range(min(table.values()), max(table.values()) + 1))
    for number in (99, -1):
        with pytest.raises(codes.UnknownCode, match=f"{number} is not a known {table.kind}"):
            codes.word(table, number)


def test_the_id_maps_of_others(tx: CountedTransaction) -> None:
    first = instances.insert(tx, instance_row("a", config={"volatile.idmap.next": "1", "user.x": "y"}))
    running = {
        "volatile.idmap.next": "2",
        "volatile.idmap.current": "1",
        "volatile.last_state.power": "RUNNING",
    }
    for name in ("b", "c", "d"):
        instances.insert(tx, instance_row(name, config=running))
    tx.statements = 0
    assert idmaps.of_others(tx, first) == {("2", "1", "RUNNING")}
    assert tx.statements == 1
    instances.insert(tx, instance_row("e"))
    assert idmaps.of_others(tx, 0) == {("2", "1", "RUNNING"), ("1", "", ""), ("", "", "")}


@pytest.mark.parametrize(
    ("table", "column"),
    [("instances", "state"), ("instances", "architecture"), ("instances_devices", "type")],
)
def test_an_instance_that_cannot_be_read_is_in_no_list(
    tx: Transaction, table: str, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is there for those who look for taken names, ids and addresses; its state keeps it from all else."""
    # Of another name on each engine, for it is told once in the life of a process.
    name = f"odd-{tx.connection.dialect.name}-{table}-{column}".replace("_", "-")
    devices = {"eth0": {"type": "nic"}}
    instances.insert(tx, instance_row(name, state="ready", devices=devices, config={"user.x": "1"}))
    set_number(tx, table, column)
    (found,) = instances.get_all(tx, None)
    assert (found.ref.name, found.state, found.data.config) == (name, codes.UNKNOWN, {"user.x": "1"})
    assert instances.names(tx, None) == []
    with refused(tx, codes.UnknownCode, match=f"Instance '{name}' cannot be used"):
        instances.get(tx, ref(name))
    instances.get_all(tx, None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"Instance '{name}' of project 'default' is ignored: 99 is not a known " in told[0]


def test_an_unreadable_profile_is_distinguished_from_others(tx: Transaction) -> None:
    profiles.insert(tx, ProfileRow(0, "default", "odd", devices={"eth0": {"type": "nic"}}))
    profiles.insert(tx, ProfileRow(0, "default", "fine"))
    instances.insert(tx, instance_row("uses", state="ready", profiles=["odd"]))
    instances.insert(tx, instance_row("other", state="ready", profiles=["fine"]))
    set_number(tx, "profiles_devices", "type")
    readable = {row.name: row.readable for row in profiles.get_all(tx, "default")}
    assert readable == {"default": True, "fine": True, "odd": False}
    with refused(tx, codes.UnknownCode, match="Profile 'odd' cannot be used"):
        profiles.get(tx, "default", "odd")
    assert instances.names(tx, None) == [ref("other")]


@pytest.mark.parametrize("column", ["state", "architecture", "type"])
def test_an_image_that_cannot_be_read_has_no_state(tx: Transaction, column: str) -> None:
    images.insert(tx, image(state="ready"))
    image_aliases.insert(tx, AliasRow("default", "name", "", FINGERPRINT))
    set_number(tx, "images", column)
    (found,) = images.get_all(tx, None)
    assert found.state == codes.UNKNOWN
    for get, text in ((images.get, FINGERPRINT), (images.find_by_prefix, "abab")):
        with refused(tx, codes.UnknownCode, match="Image abababababab cannot be used"):
            get(tx, "default", text)
    if column == "type":
        assert image_aliases.get_all(tx, None) == []
        with refused(tx, codes.UnknownCode, match="Image alias 'name'"):
            image_aliases.get(tx, "default", "name")


def test_a_certificate_of_an_unknown_type_is_not_trusted(tx: Transaction) -> None:
    certificates.insert(tx, CertificateRow(0, FINGERPRINT, "client", "laptop", "PEM"))
    set_number(tx, "certificates", "type")
    assert certificates.get_all(tx) == []
    with refused(tx, codes.UnknownCode, match="Certificate abababababab"):
        certificates.get(tx, FINGERPRINT)
    with refused(tx, AlreadyExists):
        certificates.insert(tx, CertificateRow(0, FINGERPRINT, "client", "again", "PEM"))


def test_pools_networks_and_volumes_that_cannot_be_read(tx: Transaction) -> None:
    storage_pools.insert(tx, PoolRow(0, "p", "dir", state="ready"))
    storage_volumes.insert(tx, volume("data"))
    networks.insert(tx, NetworkRow(0, "default", "br0", state="ready"))
    set_number(tx, "storage_pools_members", "state")
    set_number(tx, "storage_volumes", "type")
    set_number(tx, "networks", "type")
    assert [row.state for row in storage_pools.get_all(tx)] == [codes.UNKNOWN]
    assert [row.state for row in networks.get_all(tx, None)] == [codes.UNKNOWN]
    assert storage_volumes.get_all(tx, None) == []
    with refused(tx, codes.UnknownCode, match="Storage pool 'p'"):
        storage_pools.get(tx, "p")
    with refused(tx, codes.UnknownCode, match="Network 'br0'"):
        networks.get(tx, "default", "br0")


def test_projects_that_share_images_have_their_own_profiles_for_them(tx: Transaction) -> None:
    def seen_by(project: str) -> list[str]:
        return images.get(tx, "default", FINGERPRINT, viewer=project).profiles

    images.insert(tx, image(profiles=["default"]))
    second_project(tx, own=("profiles",))
    profiles.insert(tx, ProfileRow(0, "other", "default"))
    profiles.insert(tx, ProfileRow(0, "other", "web"))
    assert seen_by("other") == []
    for _ in range(2):
        images.share_with(tx, "other")
        assert (seen_by("other"), seen_by("default")) == (["default"], ["default"])
    row = images.get(tx, "default", FINGERPRINT, viewer="other")
    images.update(tx, replace(row, profiles=["web", "default"]))
    assert (seen_by("other"), seen_by("default")) == (["default", "web"], ["default"])
    images.update(tx, replace(images.get(tx, "default", FINGERPRINT), profiles=[]))
    assert (seen_by("other"), seen_by("default")) == (["default", "web"], [])
    images.insert(tx, image("cd" * 32, profiles=["web"], profiles_of="other"))
    found = {viewer: images.get_all(tx, "default", viewer=viewer) for viewer in ("default", "other")}
    assert {viewer: rows[1].profiles for viewer, rows in found.items()} == {
        "default": ["default"],
        "other": ["web"],
    }


def test_projects_are_renamed_and_deleted(tx: Transaction) -> None:
    row = projects.ProjectRow(0, "web", "mine", {"features.profiles": "true", "user.x": "1"})
    row = replace(row, id=projects.insert(tx, row))
    assert projects.get(tx, "web") == row
    assert projects.get_configs(tx) == {one.name: one.config for one in projects.get_all(tx)}
    assert projects.all_effective(tx, "profiles") == {"default": "default", "web": "web"}
    assert projects.all_effective(tx, "images") == {"default": "default", "web": "default"}
    with refused(tx, AlreadyExists, match="Project 'web' already exists"):
        projects.insert(tx, row)
    with refused(tx, AlreadyExists, match="Project 'default' already exists"):
        projects.rename(tx, row.id, "default")
    projects.rename(tx, row.id, "net")
    profiles.insert(tx, ProfileRow(0, "net", "default"))
    projects.delete(tx, row.id)
    assert [one.name for one in projects.get_all(tx)] == ["default"]
    assert [one.project for one in profiles.get_all(tx, None)] == ["default"]
    for change in (projects.rename, projects.delete):
        with refused(tx, NotFound, match="Project not found"):
            change(tx, row.id, *(["x"] if change is projects.rename else []))
