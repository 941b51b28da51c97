"""Aliases of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from utsuwa.core.errors import InvalidRequest, NotFound
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.db import image_aliases as alias_rows
from utsuwa.db import images as image_rows
from utsuwa.db.database import Database
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.projects import effective
from utsuwa.db.transaction import Transaction
from utsuwa.images.records import alias_url, check_alias_name, editable_alias
from utsuwa.operations.events import EventHub
from utsuwa.wire import images as wire
from utsuwa.wire.edits import Change, IfMatch, edited


class ImageAliases:
    """The aliases of all projects, each of which refers to an image in the same project."""

    def __init__(self, database: Database, events: EventHub) -> None:
        self._database = database
        self._events = events

    async def all(self, scope: Scope, project: str) -> list[AliasRow]:
        """Return the aliases by name; outside the scope, only those of public images."""

        seen = scope.sees(project)

        def fetch(tx: Transaction) -> list[AliasRow]:
            return alias_rows.get_ready(tx, effective(tx, project, "images"), public=not seen)

        try:
            return await self._database.read("image aliases", fetch)
        except NotFound:
            if seen:
                raise
            return []  # do not reveal whether the project exists

    async def get(self, scope: Scope, project: str, name: str) -> AliasRow:
        """Return an alias. Raises NotFound, also if its image is not visible to the caller."""
        return await self._database.read("image alias", _ready, scope, project, name)

    async def create(self, project: str, request: wire.ImageAliasesPost) -> AliasRow:
        """Create an alias. Raises InvalidName, InvalidRequest, NotFound, AlreadyExists."""
        name = check_alias_name(request.name)
        if request.type not in ("", "container"):
            raise InvalidRequest("Only images of the type container are supported, and their aliases")

        def insert(tx: Transaction) -> AliasRow:
            holder = effective(tx, project, "images")
            row = AliasRow(holder, name, request.description, _target(tx, holder, request.target))
            alias_rows.insert(tx, row)
            return row

        row = await self._database.write("create image alias", insert)
        self._publish("created", row, {"target": row.fingerprint})
        return row

    async def edit(
        self, project: str, name: str, change: Change[wire.ImageAliasesEntryPut], if_match: IfMatch
    ) -> None:
        """Change the description or the target.

        Raises InvalidRequest, NotFound, PreconditionFailed.
        """

        def update(tx: Transaction) -> AliasRow:
            row = _ready(tx, EVERYTHING, project, name)
            wanted = edited(editable_alias(row), change, if_match)
            fingerprint = _target(tx, row.project, wanted.target)
            new = replace(row, description=wanted.description, fingerprint=fingerprint)
            alias_rows.update(tx, new)
            return new

        row = await self._database.write("update image alias", update)
        self._publish("updated", row, {"target": row.fingerprint})

    async def rename(self, project: str, name: str, new: str) -> AliasRow:
        """Rename an alias. Raises InvalidName, AlreadyExists, NotFound."""

        def rename(tx: Transaction) -> AliasRow:
            row = _ready(tx, EVERYTHING, project, name)
            alias_rows.rename(tx, row.project, name, check_alias_name(new))
            return replace(row, name=new)

        row = await self._database.write("rename image alias", rename)
        self._publish("renamed", row, {"old_name": name})
        return row

    async def delete(self, project: str, name: str) -> None:
        """Delete an alias. Raises NotFound."""

        def delete(tx: Transaction) -> AliasRow:
            row = _ready(tx, EVERYTHING, project, name)
            alias_rows.delete(tx, row.project, name)
            return row

        self._publish("deleted", await self._database.write("delete image alias", delete))

    def _publish(
        self,
        action: str,
        row: AliasRow,
        context: Mapping[str, object] | None = None,
    ) -> None:
        url = alias_url(row)
        self._events.publish_lifecycle(f"image-alias-{action}", url, row.project, context)


def _ready(tx: Transaction, scope: Scope, project: str, name: str) -> AliasRow:
    """Return an alias whose image is ready and visible. Raises NotFound."""
    holder = effective(tx, project, "images")
    alias = alias_rows.get(tx, holder, name)
    image = image_rows.get(tx, holder, alias.fingerprint)
    if image.state != "ready" or not (image.public or scope.sees(project)):
        raise NotFound(alias_rows.missing(name))
    return alias


def _target(tx: Transaction, project: str, target: str) -> str:
    """Return the full fingerprint of an existing image."""
    if not target:
        raise InvalidRequest("The alias needs a target: the fingerprint of an image")
    row = image_rows.find_by_prefix(tx, project, target)
    if row.state != "ready":
        raise NotFound("Image not found")
    return row.fingerprint
