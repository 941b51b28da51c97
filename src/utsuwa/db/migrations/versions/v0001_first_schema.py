"""The first schema, with the project and the profile `default` that every server has."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from utsuwa.db.schema import TEXT, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _server()
    _projects()
    _profiles()
    _instances()
    _images()
    _storage()
    _networks()
    _warnings()
    _first_rows()


def _first_rows() -> None:
    """Leave the ids to the database, so that its sequences advance; they are all 1."""

    def table(name: str, *columns: str) -> sa.TableClause:
        return sa.table(name, *[sa.column(column) for column in columns])

    op.bulk_insert(
        table("nodes", "name", "description", "address"),
        [{"name": "none", "description": "", "address": "0.0.0.0"}],  # noqa: S104
    )
    op.bulk_insert(
        table("projects", "name", "description"),
        [{"name": "default", "description": "Default Utsuwa project"}],
    )
    features = ("images", "networks", "profiles", "storage.volumes")
    op.bulk_insert(
        table("projects_config", "project_id", "key", "value"),
        [{"project_id": 1, "key": f"features.{name}", "value": "true"} for name in features],
    )
    op.bulk_insert(
        table("profiles", "project_id", "name", "description"),
        [{"project_id": 1, "name": "default", "description": "Default Utsuwa profile"}],
    )


def _server() -> None:
    _table(
        "nodes",
        _id(),
        _text("name"),
        _text("description"),
        _text("address"),
        _integer("state", 0),
        sa.UniqueConstraint("name"),
        sa.UniqueConstraint("address"),
    )

    _table("config", _id(), _text("key"), sa.Column("value", TEXT), sa.UniqueConstraint("key"))


def _projects() -> None:
    _table("projects", _id(), _text("name"), _text("description"), sa.UniqueConstraint("name"))
    _config("projects_config", "project_id", "projects")

    _table(
        "certificates",
        _id(),
        _text("fingerprint"),
        _integer("type"),
        _text("name"),
        _text("certificate"),
        _flag("restricted"),
        sa.UniqueConstraint("fingerprint"),
    )

    _table(
        "certificates_projects",
        _owner("certificate_id", "certificates"),
        _owner("project_id", "projects"),
        sa.UniqueConstraint("certificate_id", "project_id"),
    )


def _profiles() -> None:
    _table(
        "profiles",
        _id(),
        _text("name"),
        _text("description"),
        _owner("project_id", "projects"),
        sa.UniqueConstraint("project_id", "name"),
    )
    _config("profiles_config", "profile_id", "profiles")
    _devices("profiles_devices", "profile_id", "profiles")
    _config("profiles_devices_config", "profile_device_id", "profiles_devices")


def _instances() -> None:
    _table(
        "instances",
        _id(),
        sa.Column(
            "node_id",
            sa.Integer,
            sa.ForeignKey("nodes.id", ondelete="CASCADE"),
            nullable=False,
            server_default=sa.text("1"),
        ),
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
        sa.Index(None, "node_id"),
    )
    _config("instances_config", "instance_id", "instances")
    _devices("instances_devices", "instance_id", "instances")
    _config("instances_devices_config", "instance_device_id", "instances_devices")

    _table(
        "instances_profiles",
        _id(),
        _owner("instance_id", "instances"),
        sa.Column("profile_id", sa.Integer, sa.ForeignKey("profiles.id"), nullable=False),
        _integer("apply_order", 0),
        sa.UniqueConstraint("instance_id", "profile_id"),
        sa.Index(None, "profile_id"),
    )

    _table(
        "instances_snapshots",
        _id(),
        _owner("instance_id", "instances"),
        _text("name"),
        _time("creation_date", nullable=False),
        _flag("stateful"),
        _text("description"),
        _time("expiry_date"),
        sa.UniqueConstraint("instance_id", "name"),
    )
    _config("instances_snapshots_config", "instance_snapshot_id", "instances_snapshots")
    _devices("instances_snapshots_devices", "instance_snapshot_id", "instances_snapshots")
    _config(
        "instances_snapshots_devices_config", "instance_snapshot_device_id", "instances_snapshots_devices"
    )


def _images() -> None:
    _table(
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

    _table(
        "images_aliases",
        _id(),
        _text("name"),
        _owner("image_id", "images"),
        _text("description"),
        _owner("project_id", "projects"),
        sa.UniqueConstraint("project_id", "name"),
        sa.Index(None, "image_id"),
    )

    _table(
        "images_properties",
        _id(),
        _owner("image_id", "images"),
        _integer("type", 0),
        _text("key"),
        sa.Column("value", TEXT),
        sa.UniqueConstraint("image_id", "key"),
    )

    _table(
        "images_source",
        _id(),
        _owner("image_id", "images"),
        _text("server"),
        _integer("protocol"),
        _text("certificate"),
        _text("alias"),
        sa.UniqueConstraint("image_id"),
    )

    _table(
        "images_profiles",
        _owner("image_id", "images"),
        _owner("profile_id", "profiles"),
        sa.UniqueConstraint("image_id", "profile_id"),
    )


def _storage() -> None:
    _table(
        "storage_pools",
        _id(),
        _text("name"),
        _text("driver"),
        _text("description"),
        _integer("state", 0),
        sa.UniqueConstraint("name"),
    )
    _config("storage_pools_config", "storage_pool_id", "storage_pools")

    _table(
        "storage_volumes",
        _id(),
        _text("name"),
        _owner("storage_pool_id", "storage_pools"),
        _integer("type"),
        _text("description"),
        _owner("project_id", "projects"),
        _integer("content_type", 0),
        _time("creation_date", nullable=False),
        sa.UniqueConstraint("storage_pool_id", "project_id", "name", "type"),
    )
    _config("storage_volumes_config", "storage_volume_id", "storage_volumes")

    _table(
        "storage_volumes_snapshots",
        _id(),
        _owner("storage_volume_id", "storage_volumes"),
        _text("name"),
        _text("description"),
        _time("creation_date", nullable=False),
        _time("expiry_date"),
        sa.UniqueConstraint("storage_volume_id", "name"),
    )
    _config("storage_volumes_snapshots_config", "storage_volume_snapshot_id", "storage_volumes_snapshots")


def _networks() -> None:
    _table(
        "networks",
        _id(),
        _owner("project_id", "projects"),
        _text("name"),
        _text("description"),
        _integer("state", 0),
        _integer("type", 0),
        sa.UniqueConstraint("project_id", "name"),
    )
    _config("networks_config", "network_id", "networks")


def _warnings() -> None:
    _table(
        "warnings",
        _id(),
        _owner("node_id", "nodes", nullable=True),
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


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True, autoincrement=True, nullable=False)


def _owner(column: str, table: str, *, nullable: bool = False) -> sa.Column[int]:
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
    return op.create_table(name, *parts, sqlite_autoincrement=True)


def _config(name: str, column: str, table: str) -> sa.Table:
    return _table(
        name,
        _id(),
        _owner(column, table),
        _text("key"),
        sa.Column("value", TEXT),
        sa.UniqueConstraint(column, "key"),
    )


def _devices(name: str, column: str, table: str) -> sa.Table:
    return _table(
        name,
        _id(),
        _owner(column, table),
        _text("name"),
        _integer("type", 0),
        sa.UniqueConstraint(column, "name"),
    )
