"""Members: who claims which row, and that each sees what is on its own host apart from what others have."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from tests.support.instances import instance_row
from tests.support.transactions import refused
from utsuwa.core.errors import AlreadyExists, HostError, InvalidName, NotFound
from utsuwa.db import (
    codes,
    config,
    images,
    instances,
    members,
    networks,
    schema,
    storage_pools,
    storage_volumes,
    upgrade,
)
from utsuwa.db.engine import Engine
from utsuwa.db.images import ImageRow
from utsuwa.db.networks import NetworkRow
from utsuwa.db.postgres import Postgres
from utsuwa.db.sqlite import Sqlite
from utsuwa.db.storage_pools import PoolRow
from utsuwa.db.storage_volumes import VolumeRow
from utsuwa.db.transaction import Transaction

NOON = datetime(2024, 5, 6, 12, 0, 0, tzinfo=UTC)
FINGERPRINT = "ab" * 32


@pytest.fixture
def other(tx: Transaction) -> Transaction:
    """The same transaction, as a second member's."""
    members.claim(tx, "uuid-1", "host1")
    return Transaction(tx.connection, members.claim(tx, "uuid-2", "host2").id)


def image() -> ImageRow:
    return ImageRow(0, "default", FINGERPRINT, "image.tar.xz", 1, "x86_64", None, None, NOON)


def volume(name: str, kind: int = codes.VOLUME_CONTAINER) -> VolumeRow:
    return VolumeRow(0, "default", "p", name, kind, "", NOON)


# ---- claiming


def test_the_first_daemon_takes_the_first_row(tx: Transaction) -> None:
    row = members.claim(tx, "uuid-1", None)
    assert (row.id, row.name) == (schema.FIRST_MEMBER, "none")
    assert members.claim(tx, "uuid-1", None) == row
    assert members.get_all(tx) == [row]


def test_a_member_keeps_its_row_under_another_name(tx: Transaction) -> None:
    members.claim(tx, "uuid-1", None)
    named = members.claim(tx, "uuid-1", "host1")
    assert (named.id, named.name) == (schema.FIRST_MEMBER, "host1")
    assert members.claim(tx, "uuid-1", None) == named


def test_a_second_daemon_needs_a_unique_name(tx: Transaction) -> None:
    members.claim(tx, "uuid-1", "host1")
    second = members.claim(tx, "uuid-2", "host2")
    assert [row.name for row in members.get_all(tx)] == ["host1", "host2"]
    with refused(tx, HostError, match="'host1' of the database is a daemon with another state directory"):
        members.claim(tx, "uuid-3", "host1")
    with refused(tx, HostError, match="'host1' of the database"):
        members.claim(tx, "uuid-2", "host1")
    with refused(tx, InvalidName, match="no slashes"):
        members.claim(tx, "uuid-4", "a/b")
    assert second.id != schema.FIRST_MEMBER


def test_a_nameless_second_daemon_is_refused(tx: Transaction) -> None:
    members.claim(tx, "uuid-1", None)
    with refused(tx, HostError, match="set a unique name"):
        members.claim(tx, "uuid-2", None)


def test_an_unclaimed_member_with_instances_is_not_renamed(tx: Transaction) -> None:
    """As after the upgrade of a database with instances."""
    instances.insert(tx, instance_row("c1"))
    with refused(tx, HostError, match="start that daemon first"):
        members.claim(tx, "uuid-2", "host2")
    members.claim(tx, "uuid-1", None)
    assert members.claim(tx, "uuid-2", "host2").id != schema.FIRST_MEMBER


# ---- rows that live on a host


def test_instances_are_listed_on_all_members(tx: Transaction, other: Transaction) -> None:
    instances.insert(tx, instance_row("c1"))
    instances.insert(other, instance_row("c2"))
    seen = [(row.ref.name, row.location, row.here) for row in instances.get_all(tx, None)]
    assert seen == [("c1", "host1", True), ("c2", "host2", False)]
    seen = [(row.ref.name, row.location, row.here) for row in instances.get_all(other, "default")]
    assert seen == [("c1", "host1", False), ("c2", "host2", True)]
    assert [row.ref.name for row in instances.get_here(other)] == ["c2"]
    with refused(other, AlreadyExists, match="'c1' already exists"):
        instances.insert(other, instance_row("c1"))


def test_volumes_of_one_name_can_be_on_several_members(tx: Transaction, other: Transaction) -> None:
    pool = PoolRow(0, "p", "dir", state="ready")
    pool = replace(pool, id=storage_pools.insert(tx, pool))
    storage_pools.insert(other, pool)
    storage_volumes.insert(tx, volume(FINGERPRINT, codes.VOLUME_IMAGE))
    own = storage_volumes.insert(other, volume(FINGERPRINT, codes.VOLUME_IMAGE))
    found = storage_volumes.get(other, "default", "p", codes.VOLUME_IMAGE, FINGERPRINT)
    assert (found.id, found.location, found.here) == (own, "host2", True)
    assert [row.location for row in storage_volumes.get_all(tx, None)] == ["host1", "host2"]
    assert [row.id for row in storage_volumes.get_here(other, "p", codes.VOLUME_IMAGE)] == [own]


def test_files_of_images_belong_to_each_member(tx: Transaction, other: Transaction) -> None:
    image_id = images.insert(tx, image())
    assert images.get(other, "default", FINGERPRINT).here is False
    assert images.projects_with(other, FINGERPRINT) == []
    images.add_files(other, image_id)
    found = images.get(other, "default", FINGERPRINT)
    assert (found.locations, found.here) == (("host1", "host2"), True)
    with refused(other, AlreadyExists, match="same fingerprint"):
        images.add_files(other, image_id)
    images.remove_files(tx, image_id)
    assert images.get(tx, "default", FINGERPRINT).locations == ("host2",)
    images.remove_files(other, image_id)
    with refused(tx, NotFound, match="Image not found"):
        images.get(tx, "default", FINGERPRINT)


def test_a_pool_has_a_part_on_each_member(tx: Transaction, other: Transaction) -> None:
    first = PoolRow(0, "p", "dir", "fast", {"source": "/one", "user.a": "1"}, "ready")
    storage_pools.insert(tx, first)
    pending = storage_pools.get(other, "p")
    assert (pending.state, pending.config, pending.locations) == ("pending", {"user.a": "1"}, ("host1",))
    storage_pools.insert(other, replace(pending, state="creating", config={"source": "/two"}))
    found = storage_pools.get(other, "p")
    assert found.config == {"source": "/two", "user.a": "1"}
    assert (found.state, found.locations) == ("creating", ("host1", "host2"))
    storage_pools.update(other, replace(found, config={"source": "/two", "user.b": "2"}))
    assert storage_pools.get(tx, "p").config == {"source": "/one", "user.b": "2"}
    assert storage_pools.get(tx, "p").state == "ready"
    with refused(other, AlreadyExists, match="'p' already exists"):
        storage_pools.insert(other, found)
    with refused(other, AlreadyExists, match="'p' already exists"):
        storage_pools.insert(other, first)


def test_a_pool_is_deleted_with_its_last_part(tx: Transaction, other: Transaction) -> None:
    pool_id = storage_pools.insert(tx, PoolRow(0, "p", "dir"))
    storage_pools.insert(other, PoolRow(pool_id, "p", "dir"))
    storage_volumes.insert(tx, volume("c1"))
    storage_volumes.insert(other, volume("c2"))
    storage_pools.delete(other, pool_id)
    assert storage_pools.get(other, "p").locations == ("host1",)
    assert [row.name for row in storage_volumes.get_all(tx, None)] == ["c1"]
    with refused(other, NotFound, match="not found"):
        storage_pools.set_state(other, pool_id, "ready")
    storage_pools.delete(tx, pool_id)
    assert storage_pools.get_all(tx) == []


def test_a_network_has_a_part_on_each_member(tx: Transaction, other: Transaction) -> None:
    keys = {"bridge.external_interfaces": "eth1", "ipv4.address": "10.0.0.1/24"}
    network_id = networks.insert(tx, NetworkRow(0, "default", "br0", config=keys, state="ready"))
    row = networks.get(other, "default", "br0")
    assert (row.state, row.config) == ("pending", {"ipv4.address": "10.0.0.1/24"})
    networks.insert(other, replace(row, state="creating"))
    networks.set_ready(other, network_id)
    assert networks.get(other, "default", "br0").locations == ("host1", "host2")
    networks.delete(tx, network_id)
    assert networks.get(tx, "default", "br0").state == "pending"
    networks.delete(other, network_id)
    assert networks.get_all(tx, None) == []


def test_local_keys_of_the_server_config_are_set_for_each_member(tx: Transaction, other: Transaction) -> None:
    config.replace(tx, {"core.https_address": ":8443", "images.auto_update_interval": "5"})
    assert config.load(other) == {"images.auto_update_interval": "5"}
    config.replace(other, {"core.https_address": ":9443", "images.auto_update_interval": "6"})
    assert config.load(tx) == {"core.https_address": ":8443", "images.auto_update_interval": "6"}
    config.replace(tx, {})
    assert config.load(other) == {"core.https_address": ":9443"}


def test_a_shared_key_exists_once(tx: Transaction) -> None:
    config.replace(tx, {"user.a": "1"})
    with refused(tx, sa.exc.IntegrityError, match="(?i)unique"):
        tx.execute(schema.config.insert().values(key="user.a", value="2"))


# ---- the upgrade


def _to(connection: sa.Connection, revision: str) -> None:
    settings = Config()
    settings.set_main_option("script_location", str(Path(upgrade.__file__).parent / "migrations"))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)


@pytest.fixture(params=("sqlite", "postgres"))
def empty_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """A database without tables."""
    if request.param == "sqlite":
        (tmp_path / "database").mkdir()
        return Sqlite(tmp_path / "database" / "utsuwa.db")
    return Postgres(request.getfixturevalue("postgres").new_database())


_OLD_ROWS = (
    "INSERT INTO instances (name, architecture, creation_date, description, project_id)"
    " VALUES ('c1', 2, '2024-05-06 12:00:00', '', 1)",
    "INSERT INTO images (fingerprint, filename, size, architecture, upload_date, project_id, state)"
    f" VALUES ('{FINGERPRINT}', 'f', 1, 2, '2024-05-06 12:00:00', 1, 1)",
    "INSERT INTO storage_pools (name, driver, description, state)"
    " VALUES ('p', 'dir', '', 1), ('q', 'dir', '', 0)",
    "INSERT INTO storage_pools_config (storage_pool_id, key, value)"
    " VALUES (1, 'source', '/x'), (1, 'rsync.bwlimit', '1'), (2, 'source', '/y')",
    "INSERT INTO storage_volumes (name, storage_pool_id, type, description, project_id, creation_date)"
    " VALUES ('c1', 1, 0, '', 1, '2024-05-06 12:00:00'), ('gone', 1, 0, '', 1, '2024-05-06 12:00:00')",
    "INSERT INTO storage_volumes_config (storage_volume_id, key, value) VALUES (1, 'size', '1GiB')",
    "DELETE FROM storage_volumes WHERE name = 'gone'",
    "INSERT INTO config (key, value) VALUES ('core.https_address', ':8443'), ('user.a', '1')",
    "INSERT INTO networks (project_id, name, description, state) VALUES (1, 'br0', '', 1)",
    "INSERT INTO networks_config (network_id, key, value)"
    " VALUES (1, 'bridge.external_interfaces', 'eth1'), (1, 'ipv4.address', '10.0.0.1/24')",
)


def test_rows_of_the_first_schema_belong_to_the_first_member(empty_engine: Engine) -> None:
    with closing(empty_engine.connect(read_only=False)) as connection:
        _to(connection, "0001")
        for statement in _OLD_ROWS:
            connection.exec_driver_sql(statement)
        connection.commit()
    assert empty_engine.prepare() is True
    with closing(empty_engine.connect(read_only=False)) as connection:
        empty_engine.begin(connection, read_only=False)
        tx = Transaction(connection)
        _check_upgraded(tx)
        connection.rollback()


def _check_upgraded(tx: Transaction) -> None:
    (row,) = instances.get_all(tx, None)
    assert (row.ref.name, row.location, row.here) == ("c1", "none", True)
    assert images.get(tx, "default", FINGERPRINT).here
    p, q = storage_pools.get_all(tx)
    assert (p.state, p.config, p.locations) == ("ready", {"rsync.bwlimit": "1", "source": "/x"}, ("none",))
    assert (q.state, q.config) == ("creating", {"source": "/y"})
    (kept,) = storage_volumes.get_all(tx, None)
    assert (kept.name, kept.config, kept.here) == ("c1", {"size": "1GiB"}, True)
    assert kept.new_name == ""
    (network,) = networks.get_all(tx, None)
    wanted = {"bridge.external_interfaces": "eth1", "ipv4.address": "10.0.0.1/24"}
    assert (network.state, network.config) == ("ready", wanted)
    assert members.claim(tx, "uuid-1", None).id == schema.FIRST_MEMBER
    assert config.load(tx) == {"core.https_address": ":8443", "user.a": "1"}
    other = Transaction(tx.connection, members.claim(tx, "uuid-2", "host2").id)
    assert config.load(other) == {"user.a": "1"}
    assert storage_volumes.insert(tx, volume("new")) > 2, "an id was given out twice"
