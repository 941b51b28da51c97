"""Names of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from msgspec import UnsetType

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db.connection import Connection
from utsuwa.db.engine import Database
from utsuwa.db.image_aliases import AliasRow
from utsuwa.images.records import alias_url, check_alias_name
from utsuwa.operations.events import EventHub
from utsuwa.wire import images as wire
from utsuwa.wire.events import Requestor


class ImageAliases:
    """The aliases of all projects. One project's images and aliases refer to each other only."""

    def __init__(self, database: Database, events: EventHub) -> None:
        self._database = database
        self._events = events

    async def all(self, project: str, *, public_only: bool = False) -> list[AliasRow]:
        """By name; with `public_only` those of public images."""
        async with self._database.read() as conn:
            aliases = await alias_rows.get_all(conn, project)
            images = await image_rows.get_all(conn, project)
        visible = {
            row.fingerprint for row in images if row.state == "ready" and (row.public or not public_only)
        }
        return [alias for alias in aliases if alias.fingerprint in visible]

    async def get(self, project: str, name: str, *, public_only: bool = False) -> AliasRow:
        """Raises NotFound, also for the alias of an image that the caller may not see."""
        async with self._database.read() as conn:
            alias = await alias_rows.get(conn, project, name)
            image = await image_rows.get(conn, project, alias.fingerprint)
        if image.state != "ready" or (public_only and not image.public):
            raise NotFound(f"Image alias {name!r} not found")
        return alias

    async def create(
        self, project: str, request: wire.ImageAliasesPost, requestor: Requestor | None = None
    ) -> AliasRow:
        """Raises InvalidName, InvalidRequest, NotFound, AlreadyExists."""
        name = check_alias_name(request.name)
        if request.type not in ("", "container"):
            raise InvalidRequest("Only images of the type container are supported, and their aliases")
        async with self._database.write("create image alias") as conn:
            target = await self._target(conn, project, request.target)
            row = AliasRow(project, name, request.description, target)
            await alias_rows.insert(conn, row)
        self._tell("created", row, requestor, {"target": target})
        return row

    async def put(
        self, row: AliasRow, request: wire.ImageAliasesEntryPut, requestor: Requestor | None = None
    ) -> None:
        """Raises InvalidRequest, NotFound."""
        await self._update(row, request.description, request.target, requestor)

    async def patch(
        self, row: AliasRow, request: wire.ImageAliasesEntryPatch, requestor: Requestor | None = None
    ) -> None:
        """Raises InvalidRequest, NotFound."""
        description = row.description if isinstance(request.description, UnsetType) else request.description
        target = row.fingerprint if isinstance(request.target, UnsetType) else request.target
        await self._update(row, description, target, requestor)

    async def _update(
        self, row: AliasRow, description: str, target: str, requestor: Requestor | None
    ) -> None:
        async with self._database.write("update image alias") as conn:
            fingerprint = await self._target(conn, row.project, target)
            await alias_rows.update(conn, replace(row, description=description, fingerprint=fingerprint))
        self._tell("updated", row, requestor, {"target": fingerprint})

    async def rename(self, row: AliasRow, new: str, requestor: Requestor | None = None) -> AliasRow:
        """Raises InvalidName, AlreadyExists, NotFound."""
        check_alias_name(new)
        async with self._database.write("rename image alias") as conn:
            await alias_rows.rename(conn, row.project, row.name, new)
        renamed = replace(row, name=new)
        self._tell("renamed", renamed, requestor, {"old_name": row.name})
        return renamed

    async def delete(self, row: AliasRow, requestor: Requestor | None = None) -> None:
        """Raises NotFound."""
        async with self._database.write("delete image alias") as conn:
            await alias_rows.delete(conn, row.project, row.name)
        self._tell("deleted", row, requestor)

    async def _target(self, conn: Connection, project: str, target: str) -> str:
        """The whole fingerprint of an image that is there."""
        if not target:
            raise InvalidRequest("The alias needs a target: the fingerprint of an image")
        row = await image_rows.find_by_prefix(conn, project, target)
        if row.state != "ready":
            raise NotFound("Image not found")
        return row.fingerprint

    def _tell(
        self,
        action: str,
        row: AliasRow,
        requestor: Requestor | None,
        context: Mapping[str, object] | None = None,
    ) -> None:
        url = alias_url(row.project, row.name)
        self._events.publish_lifecycle(f"image-alias-{action}", url, row.project, context, requestor)
