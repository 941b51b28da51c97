"""Every entity module: what is stored comes back, constraints become typed errors, lists take few queries."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utsuwa.core.errors import (
    AlreadyExists,
    InUse,
    InvalidConfig,
    InvalidName,
    InvalidRequest,
    NotFound,
)
from utsuwa.db import (
    certificates,
    codes,
    config,
    image_aliases,
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
)
from utsuwa.db.certificates import CertificateRow
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.instances import InstanceRow
from utsuwa.db.networks import NetworkRow
from utsuwa.db.nics import NicsRow
from utsuwa.db.profiles import ProfileRow
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Answer, Prepared, Transaction, Values

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
FINGERPRINT = "ab" * 32


class CountedTransaction(Transaction):
    """Counts what the database is asked."""

    statements = 0

    def execute(self, statement: sa.Executable, values: Values | None = None) -> Answer:
        self.statements += 1
        return super().execute(statement, values)

    def fetch(self, query: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        self.statements += 1
        return super().fetch(query, **values)


@pytest.fixture
def tx(tx: Transaction) -> CountedTransaction:
    return CountedTransaction(tx.connection)


@contextmanager
def refused(tx: Transaction, error: type[Exception], match: str | None = None) -> Iterator[None]:
    """The block raises `error`; the transaction goes on as if it had not been."""
    with pytest.raises(error, match=match), tx.connection.begin_nested():
        yield


def instance(name: str = "c1", **fields: Any) -> InstanceRow:
    row = InstanceRow(
        id=0,
        project="default",
        name=name,
        architecture="x86_64",
        ephemeral=False,
        stateful=False,
        description="",
        created_at=NOON,
        last_used_at=None,
    )
    return replace(row, **fields)


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


def test_names_are_those_of_whole_instances(tx: Transaction) -> None:
    second_project(tx)
    instances.insert(tx, instance("b", state="ready"))
    instances.insert(tx, instance("a", state="ready"))
    instances.insert(tx, instance("half", state="creating"))
    instances.insert(tx, instance("c", project="other", state="ready"))
    assert instances.names(tx, "default") == [("default", "a"), ("default", "b")]
    assert instances.names(tx, None) == [("default", "a"), ("default", "b"), ("other", "c")]


def test_a_project_is_there_or_not(tx: Transaction) -> None:
    projects.check(tx, "default")
    with refused(tx, NotFound, match="Project 'other' not found"):
        projects.check(tx, "other")


def test_an_instance_comes_back_as_it_was(tx: Transaction) -> None:
    profiles.insert(tx, ProfileRow(0, "default", "a"))
    row = instance(
        ephemeral=True,
        stateful=True,
        description="täglich",
        last_used_at=NOON + timedelta(days=1),
        config={"user.x": "line\nline", "limits.cpu": "2"},
        devices={"root": {"type": "disk", "path": "/", "pool": "p"}, "n": {"type": "none"}},
        profiles=["default", "a"],
        state="ready",
    )
    row = replace(row, id=instances.insert(tx, row))
    stored = (instances.get_all(tx, None))[0]
    assert list(stored.config) == ["limits.cpu", "user.x"]
    assert list(stored.devices) == ["n", "root"]
    assert list(stored.devices["root"]) == ["type", "path", "pool"]
    assert instances.get(tx, "default", "c1") == row
    assert instances.get_all(tx, None) == [row]
    assert instances.get_all(tx, "other") == []


def test_what_is_empty_is_not_set(tx: Transaction) -> None:
    row = instance(config={"user.x": ""}, devices={"n": {"type": "nic", "name": ""}})
    instances.insert(tx, row)
    found = instances.get(tx, "default", "c1")
    assert (found.config, found.devices) == ({}, {"n": {"type": "nic"}})


def test_the_order_of_profiles_is_kept(tx: Transaction) -> None:
    for name in ("a", "b", "c"):
        profiles.insert(tx, ProfileRow(0, "default", name))
    row = instance(profiles=["c", "default", "a", "b"])
    row = replace(row, id=instances.insert(tx, row))
    assert (instances.get(tx, "default", "c1")).profiles == row.profiles
    row = replace(row, profiles=["b", "c"])
    instances.update(tx, row)
    assert (instances.get(tx, "default", "c1")).profiles == ["b", "c"]


def test_an_update_replaces_all_that_is_editable(tx: Transaction) -> None:
    row = instance(config={"user.a": "1", "user.b": "2"}, devices={"n": {"type": "nic", "mtu": "9"}})
    row = replace(row, id=instances.insert(tx, row))
    new = replace(
        row,
        architecture="aarch64",
        ephemeral=True,
        description="new",
        config={"user.b": "3"},
        devices={"d": {"type": "disk"}},
        profiles=["default"],
    )
    instances.update(tx, new)
    assert instances.get(tx, "default", "c1") == new


def test_a_patch_leaves_other_keys(tx: Transaction) -> None:
    row_id = instances.insert(tx, instance(config={"user.a": "1", "user.b": "2"}))
    instances.patch_config(tx, row_id, {"user.a": None, "user.b": "3", "user.c": "4", "user.d": ""})
    instances.patch_config(tx, row_id, {})
    assert (instances.get(tx, "default", "c1")).config == {"user.b": "3", "user.c": "4"}
    instances.patch_config(tx, row_id + 1, {"user.a": "1"})


def test_the_steps_of_an_instances_life(tx: Transaction) -> None:
    row_id = instances.insert(tx, instance())
    instances.set_ready(tx, row_id)
    instances.set_last_used(tx, row_id, NOON)
    instances.rename(tx, row_id, "c2")
    found = instances.get(tx, "default", "c2")
    assert (found.state, found.last_used_at) == ("ready", NOON)
    instances.set_deleting(tx, row_id)
    assert (instances.get(tx, "default", "c2")).state == "deleting"
    instances.delete(tx, row_id)
    instances.delete(tx, row_id)
    with refused(tx, NotFound):
        instances.get(tx, "default", "c2")
    for table in (schema.instances_config, schema.instances_devices, schema.instances_profiles):
        assert (tx.execute(sa.select(table))).all() == []


def test_a_name_is_taken_once_in_each_project(tx: Transaction) -> None:
    second_project(tx)
    instances.insert(tx, instance())
    instances.insert(tx, instance(project="other"))
    with refused(tx, AlreadyExists, match="'c1' already exists"):
        instances.insert(tx, instance())
    row_id = instances.insert(tx, instance("c2"))
    with refused(tx, AlreadyExists, match="'c1' already exists"):
        instances.rename(tx, row_id, "c1")


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
        instances.insert(tx, instance(**fields))
    assert instances.get_all(tx, None) == []


def test_instances_that_are_not_there(tx: Transaction) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: instances.get(tx, "default", "c1"),
        lambda: instances.update(tx, instance(id=7)),
        lambda: instances.rename(tx, 7, "x"),
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
        image_aliases.get_all(tx, None)
        storage_pools.get_all(tx)
        storage_pools.used_by(tx)
        storage_volumes.get_all(tx, None)
        certificates.get_all(tx)

    def add(n: int) -> None:
        profiles.insert(tx, ProfileRow(0, "default", f"p{n}", config={"user.x": "1"}))
        instances.insert(tx, instance(f"c{n}", config={"user.x": "1"}, profiles=[f"p{n}"]))
        images.insert(tx, image(f"{n:064x}", properties={"os": "x"}))
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


# ---- nics

_DEVICE = st.sampled_from(("nic", "none", "disk")).map(lambda kind: {"type": kind})
_DEVICES = st.dictionaries(st.sampled_from(("eth0", "eth1", "x")), _DEVICE, max_size=3)


def test_the_nics_of_an_instance(tx: Transaction) -> None:
    profiles.insert(tx, ProfileRow(0, "default", "lan", devices={"eth0": {"type": "nic", "network": "br0"}}))
    profiles.insert(tx, ProfileRow(0, "default", "disks", devices={"x": {"type": "disk", "path": "/x"}}))
    config = {"volatile.eth0.hwaddr": "00:16:3e:00:00:01", "volatile.eth0.host_name": "veth1", "user.x": "1"}
    instances.insert(tx, instance("b", profiles=["lan", "disks"], config=config))
    instances.insert(tx, instance("a", profiles=["lan"], devices={"eth0": {"type": "none"}}))
    instances.insert(tx, instance("c", devices={"p": {"type": "nic", "nictype": "p2p"}}, state="deleting"))
    instances.insert(tx, instance("d", profiles=["disks"]))
    del config["user.x"]
    assert nics.get_all(tx) == [
        NicsRow("default", "b", {"eth0": {"type": "nic", "network": "br0"}}, config),
        NicsRow("default", "c", {"p": {"type": "nic", "nictype": "p2p"}}, {}),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_DEVICES, max_size=3), _DEVICES)
def test_a_nic_is_there_unless_something_above_it_has_its_name(
    tx: Transaction, layers: list[dict[str, dict[str, str]]], own: dict[str, dict[str, str]]
) -> None:
    undone = tx.connection.begin_nested()
    names = [f"p{number}" for number in range(len(layers))]
    for name, devices in zip(names, layers, strict=True):
        profiles.insert(tx, ProfileRow(0, "default", name, devices=devices))
    instances.insert(tx, instance(profiles=names, devices=own))
    merged = dict(ChainMap(own, *reversed(layers)))
    wanted = {name: device for name, device in merged.items() if device["type"] == "nic"}
    assert [row.devices for row in nics.get_all(tx)] == ([wanted] if wanted else [])
    undone.rollback()


# ---- profiles


def test_a_profile_comes_back_as_it_was(tx: Transaction) -> None:
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


def test_who_uses_a_profile(tx: Transaction) -> None:
    row_id = profiles.insert(tx, ProfileRow(0, "default", "p"))
    for name in ("c2", "c1"):
        instances.insert(tx, instance(name, profiles=["p", "default"]))
    users = [("default", "c1"), ("default", "c2")]
    assert profiles.used_by(tx, "default", None) == {"p": users, "default": users}
    assert profiles.used_by(tx, "default", ("p", "nope")) == {"p": users}
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


def test_what_is_in_a_project(tx: Transaction) -> None:
    second_project(tx)
    storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    instances.insert(tx, instance())
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


def test_what_a_project_lacks_is_that_of_the_default_one(tx: Transaction) -> None:
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
        instances.insert(tx, instance(project=project, profiles=["default"]))
        images.insert(tx, image(project=project, profiles=["default"]))
    ids = {row.project: row.id for row in profiles.get_all(tx, None)}
    assert instances.get(tx, "other", "c1").profile_ids == (ids["default"],)
    assert instances.get(tx, "own", "c1").profile_ids == (ids["own"],)
    assert profiles.used_by(tx, "default", None) == {"default": [("other", "c1")]}
    with refused(tx, NotFound, match="Requested profile 'extra'"):
        instances.insert(tx, instance("c2", project="other", profiles=["extra"]))


def test_deleting_a_project_takes_all_that_is_in_it(tx: Transaction) -> None:
    second_project(tx)
    storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    profiles.insert(tx, ProfileRow(0, "other", "a", "", {"user.x": "1"}, {"n": {"type": "nic"}}))
    instances.insert(tx, instance(project="other", profiles=["a"], config={"user.x": "1"}))
    images.insert(tx, image(project="other", properties={"os": "x"}, profiles=["a"]))
    image_aliases.insert(tx, AliasRow("other", "al", "", FINGERPRINT))
    storage_volumes.insert(tx, volume("v", project="other", config={"size": "1"}))
    certificates.insert(tx, CertificateRow(0, "cd" * 32, "client", "n", "PEM", True, ["other"]))
    instances.delete(tx, instances.get(tx, "other", "c1").id)
    tx.execute(schema.projects.delete().where(schema.projects.c.name == "other"))
    left = {"members", "projects", "projects_config", "profiles", "certificates"}
    left |= {"storage_pools", "storage_pools_members"}
    for table in schema.metadata.sorted_tables:
        rows = (tx.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
        assert (rows > 0) == (table.name in left), table.name


def test_the_servers_config_is_replaced_whole(tx: Transaction) -> None:
    config.replace(tx, {"core.https_address": ":8443", "user.a": ""})
    assert config.load(tx) == {"core.https_address": ":8443"}
    config.replace(tx, {})
    assert config.load(tx) == {}


# ---- images


def test_an_image_comes_back_as_it_was(tx: Transaction) -> None:
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


def test_a_pool_comes_back_as_it_was(tx: Transaction) -> None:
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


def test_who_uses_a_pool(tx: Transaction) -> None:
    second_project(tx)
    for name in ("p", "empty"):
        storage_pools.insert(tx, PoolRow(0, name, "dir"))
    for project in ("default", "other"):
        images.insert(tx, image(project=project))
    storage_volumes.insert(tx, volume(FINGERPRINT, codes.VOLUME_IMAGE))
    storage_volumes.insert(tx, volume("c1", project="other"))
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
        profiles=[("default", "a")],
        here=[codes.VOLUME_CONTAINER, codes.VOLUME_IMAGE, codes.VOLUME_IMAGE],
    )


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
    storage_volumes.rename(tx, row.id, "c2")
    found = storage_volumes.get(tx, "default", "p", codes.VOLUME_CONTAINER, "c2")
    assert found == replace(new, name="c2")
    other = storage_volumes.insert(tx, volume("c3"))
    with refused(tx, AlreadyExists):
        storage_volumes.rename(tx, other, "c2")
    storage_volumes.delete(tx, other)
    storage_volumes.delete(tx, other)
    for call in (
        lambda: storage_volumes.get(tx, "default", "p", codes.VOLUME_CONTAINER, "c3"),
        lambda: storage_volumes.update(tx, volume("c3", id=99)),
        lambda: storage_volumes.rename(tx, 99, "c4"),
        lambda: storage_volumes.set_new_name(tx, 99, "c4"),
    ):
        with refused(tx, NotFound, match="Storage volume"):
            call()


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
    row_id = instances.insert(tx, instance())
    instances.set_last_used(tx, row_id, east)
    found = instances.get(tx, "default", "c1")
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
def test_a_number_without_a_word_is_not_taken_for_another(table: codes.Codes) -> None:
    for word, number in table.items():
        assert codes.word(table, number) == word
    assert sorted(table.values()) == list(range(min(table.values()), max(table.values()) + 1))
    for number in (99, -1):
        with pytest.raises(codes.UnknownCode, match=f"{number} is no {table.kind}"):
            codes.word(table, number)


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
    instances.insert(tx, instance(name, state="ready", devices=devices, config={"user.x": "1"}))
    set_number(tx, table, column)
    (found,) = instances.get_all(tx, None)
    assert (found.name, found.state, found.config) == (name, codes.UNKNOWN, {"user.x": "1"})
    assert instances.names(tx, None) == []
    with refused(tx, codes.UnknownCode, match=f"Instance '{name}' cannot be used"):
        instances.get(tx, "default", name)
    instances.get_all(tx, None)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"Instance '{name}' of project 'default' is left alone: 99 is no " in told[0]


def test_a_profile_that_cannot_be_read_is_told_from_others(tx: Transaction) -> None:
    profiles.insert(tx, ProfileRow(0, "default", "odd", devices={"eth0": {"type": "nic"}}))
    profiles.insert(tx, ProfileRow(0, "default", "fine"))
    instances.insert(tx, instance("uses", state="ready", profiles=["odd"]))
    instances.insert(tx, instance("other", state="ready", profiles=["fine"]))
    set_number(tx, "profiles_devices", "type")
    readable = {row.name: row.readable for row in profiles.get_all(tx, "default")}
    assert readable == {"default": True, "fine": True, "odd": False}
    with refused(tx, codes.UnknownCode, match="Profile 'odd' cannot be used"):
        profiles.get(tx, "default", "odd")
    assert instances.names(tx, None) == [("default", "other")]


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
