"""`/1.0/images` and `/1.0/images/aliases`."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import msgspec

from utsuwa.api import image_transfer
from utsuwa.api.http import Background, Created, Empty, Raw, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.core.urls import object_url
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.images import records
from utsuwa.security.authorization import Access
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.images import (
    Image,
    ImageAliasesEntry,
    ImageAliasesEntryPatch,
    ImageAliasesEntryPost,
    ImageAliasesEntryPut,
    ImageAliasesPost,
    ImagePatch,
    ImagePut,
    ImagesPost,
)

_SOURCES = {
    "image": "Copying images from other servers is not supported yet: export the image there and import it",
    "url": "Downloading images by URL is not supported yet: download the files and import them",
    "instance": "Publishing instances is not supported yet",
    "container": "Publishing instances is not supported yet",
    "virtual-machine": "This server runs containers only",
    "snapshot": "Publishing snapshots is not supported yet",
}


async def _image(request: Request) -> ImageRow:
    return await request.services.images.get(request.scope, request.project, request.params["fingerprint"])


async def _alias(request: Request) -> AliasRow:
    return await request.services.images.aliases.get(request.scope, request.project, request.params["name"])


async def list_images(request: Request) -> Result:
    wanted = request.filter
    found = await request.services.images.records(request.scope, request.project)
    if wanted is not None:
        found = [record for record in found if wanted.matches(msgspec.to_builtins(record))]
    if request.recursion:
        return Sync(found)
    return Sync([object_url("images", record.fingerprint, project=record.project) for record in found])


async def create_image(request: Request) -> Result:
    if not image_transfer.is_upload(request):
        _refuse_source((await request.body(ImagesPost)).source.type)
    new = image_transfer.new_image(request)
    upload = request.services.images.upload()
    try:
        filename = await image_transfer.receive(request, upload)
        new = dataclasses.replace(new, filename=new.filename or filename)
        return Background(request.services.images.create(request.project, upload, new))
    except BaseException:
        await upload.discard()
        raise


def _refuse_source(kind: str) -> NoReturn:
    if kind in _SOURCES:
        raise NotSupportedYet(_SOURCES[kind])
    raise InvalidRequest(f"Unknown image source type {kind[:40]!r}")


async def get_image(request: Request) -> Result:
    row = await _image(request)
    return Sync(await request.services.images.record(row), etag=records.editable(row))


async def put_image(request: Request) -> Result:
    body = await request.body(ImagePut)
    await request.services.images.edit(
        request.project, request.params["fingerprint"], replace(body), request.if_match
    )
    return Empty()


async def patch_image(request: Request) -> Result:
    body = await request.body(ImagePatch)
    await request.services.images.edit(
        request.project, request.params["fingerprint"], merge(body), request.if_match
    )
    return Empty()


async def delete_image(request: Request) -> Result:
    return Background(await request.services.images.delete(request.project, request.params["fingerprint"]))


async def export_image(request: Request) -> Result:
    row = await _image(request)
    files = await request.services.images.files(row)
    return Raw(await image_transfer.send(request, files))


async def push_image(request: Request) -> Result:
    await _image(request)
    raise NotSupportedYet("Pushing images to other servers is not supported yet: export the image")


async def refresh_image(request: Request) -> Result:
    await _image(request)
    raise NotSupportedYet("Refreshing images from their servers is not supported yet: import the new one")


async def make_secret(request: Request) -> Result:
    await _image(request)
    raise NotSupportedYet("Secrets for private images are not supported yet: make the image public")


async def list_aliases(request: Request) -> Result:
    rows = await request.services.images.aliases.all(request.scope, request.project)
    if request.recursion:
        return Sync([records.alias_record(row) for row in rows])
    return Sync([records.alias_url(row) for row in rows])


async def create_alias(request: Request) -> Result:
    body = await request.body(ImageAliasesPost)
    row = await request.services.images.aliases.create(request.project, body)
    return Created(records.alias_url(row))


async def get_alias(request: Request) -> Result:
    row = await _alias(request)
    return Sync(records.alias_record(row), etag=records.editable_alias(row))


async def put_alias(request: Request) -> Result:
    body = await request.body(ImageAliasesEntryPut)
    await request.services.images.aliases.edit(
        request.project, request.params["name"], replace(body), request.if_match
    )
    return Empty()


async def patch_alias(request: Request) -> Result:
    body = await request.body(ImageAliasesEntryPatch)
    await request.services.images.aliases.edit(
        request.project, request.params["name"], merge(body), request.if_match
    )
    return Empty()


async def rename_alias(request: Request) -> Result:
    body = await request.body(ImageAliasesEntryPost)
    renamed = await request.services.images.aliases.rename(request.project, request.params["name"], body.name)
    return Created(records.alias_url(renamed))


async def delete_alias(request: Request) -> Result:
    await request.services.images.aliases.delete(request.project, request.params["name"])
    return Empty()


_ONE = "/1.0/images/{fingerprint}"
_ALIASES = "/1.0/images/aliases"
_ALIAS = "/1.0/images/aliases/{name:path}"
_PUBLIC = Access.PUBLIC

ROUTES: tuple[Route, ...] = about(
    Entity.IMAGE,
    Route("GET", "/1.0/images", list_images, "List images", list[str] | list[Image], access=_PUBLIC),
    Route("POST", "/1.0/images", create_image, "Import an image", Background),
    Route("GET", _ONE, get_image, "Show an image", Image, access=_PUBLIC),
    Route("PUT", _ONE, put_image, "Replace an image's editable part", body=ImagePut),
    Route("PATCH", _ONE, patch_image, "Change an image", body=ImagePatch),
    Route("DELETE", _ONE, delete_image, "Delete an image", Background),
    Route("GET", f"{_ONE}/export", export_image, "Export an image's files", Raw, access=_PUBLIC),
    Route("POST", f"{_ONE}/export", push_image, "Push an image to another server", Background),
    Route("POST", f"{_ONE}/refresh", refresh_image, "Refresh an image", Background),
    Route("POST", f"{_ONE}/secret", make_secret, "Make a secret for a private image", Background),
    Route(
        "GET",
        _ALIASES,
        list_aliases,
        "List image aliases",
        list[str] | list[ImageAliasesEntry],
        access=_PUBLIC,
    ),
    Route("POST", _ALIASES, create_alias, "Create an image alias", Created, ImageAliasesPost),
    Route("GET", _ALIAS, get_alias, "Show an image alias", ImageAliasesEntry, access=_PUBLIC),
    Route("PUT", _ALIAS, put_alias, "Replace an image alias", body=ImageAliasesEntryPut),
    Route("PATCH", _ALIAS, patch_alias, "Change an image alias", body=ImageAliasesEntryPatch),
    Route("POST", _ALIAS, rename_alias, "Rename an image alias", Created, ImageAliasesEntryPost),
    Route("DELETE", _ALIAS, delete_alias, "Delete an image alias"),
)
