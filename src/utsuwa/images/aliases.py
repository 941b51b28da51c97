"""Names of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from msgspec import UnsetType

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db.database import Database
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.db.transaction import Transaction
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

        def fetch(tx: Transaction) -> tuple[list[AliasRow], list[ImageRow]]:
            return alias_rows.get_all(tx, project), image_rows.get_all(tx, project)

        aliases, images = await self._database.read("image aliases", fetch)
        visible = {
            row.fingerprint for row in images if row.state == "ready" and (row.public or not public_only)
        }
        return [alias for alias in aliases if alias.fingerprint in visible]

    async def get(self, project: str, name: str, *, public_only: bool = False) -> AliasRow:
        """Raises NotFound, also for the alias of an image that the caller may not see."""

        def fetch(tx: Transaction) -> tuple[AliasRow, ImageRow]:
            alias = alias_rows.get(tx, project, name)
            return alias, image_rows.get(tx, project, alias.fingerprint)

        alias, image = await self._database.read("image alias", fetch)
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

        def insert(tx: Transaction) -> AliasRow:
            row = AliasRow(project, name, request.description, _target(tx, project, request.target))
            alias_rows.insert(tx, row)
            return row

        row = await self._database.write("create image alias", insert)
        self._tell("created", row, requestor, {"target": row.fingerprint})
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
        def update(tx: Transaction) -> str:
            fingerprint = _target(tx, row.project, target)
            alias_rows.update(tx, replace(row, description=description, fingerprint=fingerprint))
            return fingerprint

        fingerprint = await self._database.write("update image alias", update)
        self._tell("updated", row, requestor, {"target": fingerprint})

    async def rename(self, row: AliasRow, new: str, requestor: Requestor | None = None) -> AliasRow:
        """Raises InvalidName, AlreadyExists, NotFound."""
        check_alias_name(new)
        await self._database.write("rename image alias", alias_rows.rename, row.project, row.name, new)
        renamed = replace(row, name=new)
        self._tell("renamed", renamed, requestor, {"old_name": row.name})
        return renamed

    async def delete(self, row: AliasRow, requestor: Requestor | None = None) -> None:
        """Raises NotFound."""
        await self._database.write("delete image alias", alias_rows.delete, row.project, row.name)
        self._tell("deleted", row, requestor)

    def _tell(
        self,
        action: str,
        row: AliasRow,
        requestor: Requestor | None,
        context: Mapping[str, object] | None = None,
    ) -> None:
        url = alias_url(row.project, row.name)
        self._events.publish_lifecycle(f"image-alias-{action}", url, row.project, context, requestor)


def _target(tx: Transaction, project: str, target: str) -> str:
    """The whole fingerprint of an image that is there."""
    if not target:
        raise InvalidRequest("The alias needs a target: the fingerprint of an image")
    row = image_rows.find_by_prefix(tx, project, target)
    if row.state != "ready":
        raise NotFound("Image not found")
    return row.fingerprint
