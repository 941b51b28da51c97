"""The tables, named as in LXD's database where it has them, for tools that query it.

Neither this module nor the entity modules use features of SQLite only: the same metadata is used for
PostgreSQL. Every change of this file needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from utsuwa.core import clock


class _SqliteDateTime(UserDefinedType[str]):
    """A DATETIME column of SQLite, which holds text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "DATETIME"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware times in UTC. In SQLite, text of fixed width, so that it sorts; other forms can be read, too."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(_SqliteDateTime())
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if dialect.name == "sqlite":
            return moment.isoformat(sep=" ", timespec="microseconds")
        return moment

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return read_time(value)


def read_time(value: Any) -> datetime | None:
    """Parse a stored time as returned by the driver."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if moment.tzinfo is UTC:
        return moment
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def time_text(value: Any) -> str:
    """Return a stored time, as returned by the driver, as `clock.to_wire` formats it."""
    if isinstance(value, str) and len(value) == _FIXED_WIDTH and value.endswith(_UTC_OFFSET):
        fraction = "" if value[19:26] == ".000000" else value[19:26]
        return f"{value[:10]}T{value[11:19]}{fraction}Z"  # as SQLite stores nearly all: no need to parse it
    return clock.to_wire(read_time(value))


_UTC_OFFSET = "+00:00"
_FIXED_WIDTH = len("2026-01-01 00:00:00.000000+00:00")

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Text that is sorted by its bytes on every engine, whatever the database's collation."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True, autoincrement=True, nullable=False)


def _owner(column: str, table: str, *, nullable: bool = False) -> sa.Column[int]:
    """A reference with cascading deletes."""
    return sa.Column(column, sa.Integer, sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=nullable)


def _text(name: str, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, TEXT, nullable=False, server_default=default)


def _integer(name: str, default: int | None = None) -> sa.Column[int]:
    shown = None if default is None else sa.text(str(default))
    return sa.Column(name, sa.Integer, nullable=False, server_default=shown)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())


def _time(name: str, *, nullable: bool = True) -> sa.Column[datetime]:
    return sa.Column(name, UtcDateTime, nullable=nullable)


def _table(name: str, *parts: sa.Column[Any] | sa.UniqueConstraint | sa.Index) -> sa.Table:
    # AUTOINCREMENT: ids are never reused, so a stale one cannot refer to another row.
    return sa.Table(name, metadata, *parts, sqlite_autoincrement=True)


def _config(name: str, column: str, table: str) -> sa.Table:
    """The config table of another table's rows."""
    return _table(
        name,
        _id(),
        _owner(column, table),
        _text("key"),
        sa.Column("value", TEXT),
        sa.UniqueConstraint(column, "key"),
    )


def _devices(name: str, column: str, table: str) -> sa.Table:
    """The devices table of another table's rows; `type` is one of `codes.DEVICE_TYPES`."""
    return _table(
        name,
        _id(),
        _owner(column, table),
        _text("name"),
        _integer("type", 0),
        sa.UniqueConstraint(column, "name"),
    )


def _partial_index(
    name: str, column: sa.ColumnElement[Any], *, where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    """Define an index of the rows in which `where` is true.

    The migrations create it. Here the condition is a note only: for an option of an engine, such as
    `postgresql_where`, SQLAlchemy imports all drivers of that engine, which takes 2 MiB.
    """
    sa.Index(name, column, unique=unique, info={"where": where})


def _member() -> sa.Column[int]:
    """The member of a row. The default is for rows inserted by hand on a single host."""
    return sa.Column(
        "member_id",
        sa.Integer,
        sa.ForeignKey("members.id", ondelete="CASCADE"),
        nullable=False,
        server_default=sa.text(str(FIRST_MEMBER)),
    )


def _members_of(table: str, column: str) -> sa.Table:
    """The state of an object that members share, for each member that has it."""
    return _table(
        f"{table}_members",
        _id(),
        _owner(column, table),
        _owner("member_id", "members"),
        _integer("state", 0),
        sa.UniqueConstraint(column, "member_id"),
    )


# Members: the daemons that share this database.

FIRST_MEMBER = 1
"""The id of the member that every new database has."""

members = _table(
    "members",
    _id(),
    _text("name"),
    _text("description"),
    _text("address"),
    _integer("state", 0),
    _text("uuid", ""),
    sa.UniqueConstraint("name"),
    sa.UniqueConstraint("uuid"),
)

config = _table(
    "config",
    _id(),
    _owner("member_id", "members", nullable=True),
    _text("key"),
    sa.Column("value", TEXT),
    sa.UniqueConstraint("member_id", "key"),
)
IS_SHARED = config.c.member_id.is_(None)
"""Rows for all members; others are for one (`core.server_keys.LOCAL_KEYS`)."""
_partial_index("config_shared_key_idx", config.c.key, where=IS_SHARED, unique=True)

# Projects, and the certificates restricted to them.

projects = _table("projects", _id(), _text("name"), _text("description"), sa.UniqueConstraint("name"))
projects_config = _config("projects_config", "project_id", "projects")

certificates = _table(
    "certificates",
    _id(),
    _text("fingerprint"),
    _integer("type"),
    _text("name"),
    _text("certificate"),
    _flag("restricted"),
    sa.UniqueConstraint("fingerprint"),
)

certificates_projects = _table(
    "certificates_projects",
    _owner("certificate_id", "certificates"),
    _owner("project_id", "projects"),
    sa.UniqueConstraint("certificate_id", "project_id"),
)

# Profiles.

profiles = _table(
    "profiles",
    _id(),
    _text("name"),
    _text("description"),
    _owner("project_id", "projects"),
    sa.UniqueConstraint("project_id", "name"),
)
profiles_config = _config("profiles_config", "profile_id", "profiles")
profiles_devices = _devices("profiles_devices", "profile_id", "profiles")
profiles_devices_config = _config("profiles_devices_config", "profile_device_id", "profiles_devices")

# Instances and their snapshots.

instances = _table(
    "instances",
    _id(),
    _member(),
    _text("name"),
    _integer("architecture"),
    _integer("type", 0),
    _flag("ephemeral"),
    _time("creation_date", nullable=False),
    _flag("stateful"),
    _time("last_use_date"),
    _text("description"),
    _owner("project_id", "projects"),
    _time("expiry_date"),
    _integer("state", 0),
    sa.UniqueConstraint("project_id", "name"),
    sa.Index(None, "member_id"),
)
instances_config = _config("instances_config", "instance_id", "instances")
IS_GIVEN_MAC = instances_config.c.key.like(sa.literal_column("'volatile.%.hwaddr'"))
"""Rows with the generated MAC address of a nic, which must be unique."""
_partial_index("instances_config_hwaddr_idx", sa.func.lower(instances_config.c.value), where=IS_GIVEN_MAC)
IS_CHANGE = instances_config.c.key == sa.literal_column("'volatile.last_state.change'")
"""Rows with a pending change of devices."""
_partial_index("instances_config_change_idx", instances_config.c.instance_id, where=IS_CHANGE)
instances_devices = _devices("instances_devices", "instance_id", "instances")
instances_devices_config = _config("instances_devices_config", "instance_device_id", "instances_devices")
sa.Index(None, instances_devices_config.c.key)

instances_profiles = _table(
    "instances_profiles",
    _id(),
    _owner("instance_id", "instances"),
    # No cascade: a profile in use cannot be deleted, even if two requests race.
    sa.Column("profile_id", sa.Integer, sa.ForeignKey("profiles.id"), nullable=False),
    _integer("apply_order", 0),
    sa.UniqueConstraint("instance_id", "profile_id"),
    sa.Index(None, "profile_id"),
)

instances_snapshots = _table(
    "instances_snapshots",
    _id(),
    _owner("instance_id", "instances"),
    _text("name"),
    _time("creation_date", nullable=False),
    _flag("stateful"),
    _text("description"),
    _time("expiry_date"),
    _integer("architecture", 0),
    _flag("ephemeral"),
    _integer("state", 0),
    sa.UniqueConstraint("instance_id", "name"),
    sa.Index(None, "expiry_date"),
)
instances_snapshots_config = _config(
    "instances_snapshots_config", "instance_snapshot_id", "instances_snapshots"
)
instances_snapshots_devices = _devices(
    "instances_snapshots_devices", "instance_snapshot_id", "instances_snapshots"
)
instances_snapshots_devices_config = _config(
    "instances_snapshots_devices_config", "instance_snapshot_device_id", "instances_snapshots_devices"
)

instances_snapshots_profiles = _table(
    "instances_snapshots_profiles",
    _id(),
    _owner("instance_snapshot_id", "instances_snapshots"),
    # Snapshots do not keep profiles in use: the id becomes NULL when the profile is deleted.
    sa.Column("profile_id", sa.Integer, sa.ForeignKey("profiles.id", ondelete="SET NULL")),
    _text("name"),
    _integer("apply_order", 0),
    sa.UniqueConstraint("instance_snapshot_id", "apply_order"),
    sa.Index(None, "profile_id"),
)

# Images.

images = _table(
    "images",
    _id(),
    _text("fingerprint"),
    _text("filename"),
    sa.Column("size", sa.BigInteger, nullable=False),
    _flag("public"),
    _integer("architecture"),
    _time("creation_date"),
    _time("expiry_date"),
    _time("upload_date", nullable=False),
    _flag("cached"),
    _time("last_use_date"),
    _flag("auto_update"),
    _owner("project_id", "projects"),
    _integer("type", 0),
    _integer("state", 0),
    _flag("split"),
    _flag("trusted"),
    sa.UniqueConstraint("project_id", "fingerprint"),
)

# The members that have each image's files.
images_members = _table(
    "images_members",
    _id(),
    _owner("image_id", "images"),
    _owner("member_id", "members"),
    sa.UniqueConstraint("image_id", "member_id"),
)

images_aliases = _table(
    "images_aliases",
    _id(),
    _text("name"),
    _owner("image_id", "images"),
    _text("description"),
    _owner("project_id", "projects"),
    sa.UniqueConstraint("project_id", "name"),
    sa.Index(None, "image_id"),
)

images_properties = _table(
    "images_properties",
    _id(),
    _owner("image_id", "images"),
    _integer("type", 0),
    _text("key"),
    sa.Column("value", TEXT),
    sa.UniqueConstraint("image_id", "key"),
)

images_source = _table(
    "images_source",
    _id(),
    _owner("image_id", "images"),
    _text("server"),
    _integer("protocol"),
    _text("certificate"),
    _text("alias"),
    sa.UniqueConstraint("image_id"),
)

images_profiles = _table(
    "images_profiles",
    _owner("image_id", "images"),
    _owner("profile_id", "profiles"),
    sa.UniqueConstraint("image_id", "profile_id"),
)

# Storage.

storage_pools = _table(
    "storage_pools",
    _id(),
    _text("name"),
    _text("driver"),
    _text("description"),
    sa.UniqueConstraint("name"),
)
storage_pools_config = _config("storage_pools_config", "storage_pool_id", "storage_pools")
storage_pools_members = _members_of("storage_pools", "storage_pool_id")
storage_pools_members_config = _config(
    "storage_pools_members_config", "storage_pool_member_id", "storage_pools_members"
)

storage_volumes = _table(
    "storage_volumes",
    _id(),
    _text("name"),
    _owner("storage_pool_id", "storage_pools"),
    _integer("type"),
    _text("description"),
    _owner("project_id", "projects"),
    _integer("content_type", 0),
    _time("creation_date", nullable=False),
    _member(),
    _text("new_name", ""),
    sa.UniqueConstraint(
        *("storage_pool_id", "member_id", "project_id", "name", "type"),
        name="storage_volumes_name_key",  # the convention's is too long for PostgreSQL
    ),
)
storage_volumes_config = _config("storage_volumes_config", "storage_volume_id", "storage_volumes")

storage_volumes_snapshots = _table(
    "storage_volumes_snapshots",
    _id(),
    _owner("storage_volume_id", "storage_volumes"),
    _text("name"),
    _text("description"),
    _time("creation_date", nullable=False),
    _time("expiry_date"),
    sa.UniqueConstraint("storage_volume_id", "name"),
)
storage_volumes_snapshots_config = _config(
    "storage_volumes_snapshots_config", "storage_volume_snapshot_id", "storage_volumes_snapshots"
)

# Networks.

networks = _table(
    "networks",
    _id(),
    _owner("project_id", "projects"),
    _text("name"),
    _text("description"),
    _integer("type", 0),
    sa.UniqueConstraint("project_id", "name"),
)
networks_config = _config("networks_config", "network_id", "networks")
networks_members = _members_of("networks", "network_id")
networks_members_config = _config("networks_members_config", "network_member_id", "networks_members")

# Running background operations, if several members share the database.

operations = _table(
    "operations",
    _id(),
    _owner("member_id", "members"),
    _owner("project_id", "projects", nullable=True),
    _text("uuid"),
    _text("kind"),
    _time("created_at", nullable=False),
    sa.UniqueConstraint("uuid"),
)

# Warnings.

warnings = _table(
    "warnings",
    _id(),
    _owner("member_id", "members", nullable=True),
    _owner("project_id", "projects", nullable=True),
    sa.Column("entity_type_code", sa.Integer),
    sa.Column("entity_id", sa.Integer),
    _text("uuid"),
    _integer("type_code"),
    _integer("status"),
    _time("first_seen_date", nullable=False),
    _time("last_seen_date", nullable=False),
    _time("updated_date"),
    _text("last_message"),
    _integer("count"),
    sa.UniqueConstraint("uuid"),
)
