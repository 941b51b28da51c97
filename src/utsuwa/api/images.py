"""`/1.0/images` and `/1.0/images/aliases`."""

from __future__ import annotations

import dataclasses
import secrets

from utsuwa.api import image_transfer
from utsuwa.api.http import Background, Created, Empty, Raw, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.core.urls import object_url
from utsuwa.db.image_aliases import AliasRow
from utsuwa.db.images import ImageRow
from utsuwa.images import records
from utsuwa.images.new import NewImage
from utsuwa.instances.publish import INSTANCES, SNAPSHOT
from utsuwa.security.authorization import Access, authorize
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.images import (
    Image,
    ImageAliasesEntry,
    ImageAliasesEntryPatch,
    ImageAliasesEntryPost,
    ImageAliasesEntryPut,
    ImageAliasesPost,
    ImageExportPost,
    ImagePatch,
    ImagePut,
    ImagesPost,
)

_PUBLISHED = (*INSTANCES, SNAPSHOT)
"""The types of sources that are published."""
_SOURCES = {
    "virtual-machine": "This server runs containers only",
}


async def _image(request: Request) -> ImageRow:
    return await request.services.images.get(request.scope, request.project, request.params["fingerprint"])


async def _image_or_private(request: Request, *, last: bool = False) -> ImageRow:
    """Return an image that is visible, or for which the caller has a secret, whose `last` use this may be."""
    secret = request.query.get("secret", "")
    if not secret or request.scope.sees(request.project):
        return await _image(request)
    images, prefix = request.services.images, request.params["fingerprint"]
    return await images.get_by_secret(request.project, prefix, secret, last=last)


async def _alias(request: Request) -> AliasRow:
    return await request.services.images.aliases.get(request.scope, request.project, request.params["name"])


async def list_images(request: Request) -> Result:
    images, project, wanted = request.services.images, request.listed_project, request.filter
    if request.recursion:
        return Sync(await images.records(request.scope, project, wanted))
    if wanted is None:
        names = await images.names(request.scope, project)
    else:
        found = await images.records(request.scope, project, wanted)
        names = [(record.project, record.fingerprint) for record in found]
    return Sync([request.listed_url("images", fingerprint, owner) for owner, fingerprint in names])


async def create_image(request: Request) -> Result:
    if not image_transfer.secret_of(request):
        authorize(request.caller, Access.TRUSTED)
    if not image_transfer.is_upload(request):
        return await _create_from_source(request)
    new, secret = _new_upload(request)
    upload = request.services.images.upload()
    try:
        filename = await image_transfer.receive(request, upload)
        new = dataclasses.replace(new, filename=filename or new.filename)
        return Background(request.services.images.create(request.project, upload, new, secret))
    except BaseException:
        await upload.discard()
        raise


def _new_upload(request: Request) -> tuple[NewImage, str]:
    """Return the settings of an upload, and a secret to wait for its end with.

    A server that pushes an image has the secret that was agreed on, and may not be trusted otherwise. Raises
    Forbidden.
    """
    secret = image_transfer.secret_of(request)
    if secret:
        new = image_transfer.new_image(request)
        agreed = request.services.remote_images.pushed.take(request.project, new.fingerprint, secret)
        if agreed is not None:
            return image_transfer.pushed_image(request, agreed), secrets.token_hex(32)
    authorize(request.caller, Access.TRUSTED)
    return image_transfer.new_image(request), ""


async def _create_from_source(request: Request) -> Result:
    authorize(request.caller, Access.TRUSTED)
    body = await request.body(ImagesPost)
    if body.source.mode == "push":
        return Background(await request.services.remote_images.expect_push(request.project, body))
    kind = body.source.type
    if kind in _PUBLISHED:
        return Background(await request.services.instances.publish(request.scope, request.project, body))
    if kind in ("image", "url"):
        return Background(
            await request.services.remote_images.start_import(
                request.project, body, trusted=request.scope.root
            )
        )
    if kind in _SOURCES:
        raise NotSupportedYet(_SOURCES[kind])
    raise InvalidRequest(f"Unknown image source type {kind[:40]!r}")


async def get_image(request: Request) -> Result:
    row = await _image_or_private(request)
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
    row = await _image_or_private(request, last=True)
    files = await request.services.images.files(row)
    return Raw(await image_transfer.send(request.raw, files))


async def push_image(request: Request) -> Result:
    body = await request.body(ImageExportPost)
    row = await _image(request)
    return Background(await request.services.remote_images.push(request.project, row, body))


async def refresh_image(request: Request) -> Result:
    fingerprint = request.params["fingerprint"]
    return Background(await request.services.remote_images.start_refresh(request.project, fingerprint))


async def make_secret(request: Request) -> Result:
    fingerprint = request.params["fingerprint"]
    return Background(await request.services.images.make_secret(request.project, fingerprint))


async def list_aliases(request: Request) -> Result:
    rows = await request.services.images.aliases.all(request.scope, request.project)
    if request.recursion:
        return Sync([records.alias_record(row) for row in rows])
    return Sync([object_url("images", "aliases", row.name) for row in rows])


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
    Route(
        "GET",
        "/1.0/images",
        list_images,
        "List images",
        list[str] | list[Image],
        access=_PUBLIC,
        lists_projects=True,
    ),
    Route(
        "POST",
        "/1.0/images",
        create_image,
        "Import an image",
        Background,
        access=Access.SECRET,
        description="Untrusted callers need the secret of an image that is to be pushed.",
    ),
    Route("GET", _ONE, get_image, "Show an image", Image, access=_PUBLIC),
    Route("PUT", _ONE, put_image, "Replace an image's editable part", body=ImagePut),
    Route("PATCH", _ONE, patch_image, "Change an image", body=ImagePatch),
    Route("DELETE", _ONE, delete_image, "Delete an image", Background),
    Route("GET", f"{_ONE}/export", export_image, "Export an image's files", Raw, access=_PUBLIC),
    Route(
        "POST",
        f"{_ONE}/export",
        push_image,
        "Push an image to another server",
        Background,
        ImageExportPost,
    ),
    Route("POST", f"{_ONE}/refresh", refresh_image, "Refresh an image", Background),
    Route("POST", f"{_ONE}/secret", make_secret, "Create a secret for a private image", Background),
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
