"""`/1.0/instances/{name}/metadata`: image metadata and templates of instances."""

from __future__ import annotations

from aiohttp import web

from utsuwa.api.http import BINARY, Empty, Raw, Request, Result, Route, Sync, about, inline
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.instance_metadata import InstanceMetadata, InstanceMetadataPatch

_METADATA = "/1.0/instances/{name}/metadata"
_TEMPLATES = f"{_METADATA}/templates"


async def get_metadata(request: Request) -> Result:
    found = await request.services.instance_metadata.get(request.instance)
    return Sync(found, etag=found)


async def put_metadata(request: Request) -> Result:
    change = replace(await request.body(InstanceMetadata))
    await request.services.instance_metadata.edit(request.instance, change, request.if_match)
    return Empty()


async def patch_metadata(request: Request) -> Result:
    change = merge(await request.body(InstanceMetadataPatch), empty_removes=False)
    await request.services.instance_metadata.edit(request.instance, change, request.if_match)
    return Empty()


async def get_templates(request: Request) -> Result:
    name = _name(request)
    if not name:
        return Sync(await request.services.instance_metadata.template_names(request.instance))
    data = await request.services.instance_metadata.template(request.instance, name)
    return Raw(web.Response(body=data, headers=inline(name), content_type=BINARY))


async def write_template(request: Request) -> Result:
    data = await request.data()
    await request.services.instance_metadata.write_template(request.instance, _name(request), data)
    return Empty()


async def delete_template(request: Request) -> Result:
    await request.services.instance_metadata.delete_template(request.instance, _name(request))
    return Empty()


def _name(request: Request) -> str:
    return request.query.get("path", "")


ROUTES: tuple[Route, ...] = about(
    Entity.INSTANCE,
    Route("GET", _METADATA, get_metadata, "Show an instance's metadata", reply=InstanceMetadata),
    Route(
        "PUT",
        _METADATA,
        put_metadata,
        "Replace an instance's metadata",
        Empty,
        InstanceMetadata,
    ),
    Route(
        "PATCH",
        _METADATA,
        patch_metadata,
        "Change parts of an instance's metadata",
        Empty,
        InstanceMetadataPatch,
    ),
    Route(
        "GET",
        _TEMPLATES,
        get_templates,
        "List an instance's templates, or show one",
        Raw,
        description="The names as JSON; with ?path=, the content of the template of that name.",
    ),
    Route(
        "POST",
        _TEMPLATES,
        write_template,
        "Create or replace a template",
        entitlement=Entitlement.CAN_EDIT,
        description="The body is the content of the template ?path=, in UTF-8.",
    ),
    Route(
        "DELETE",
        _TEMPLATES,
        delete_template,
        "Delete a template",
        entitlement=Entitlement.CAN_EDIT,
        description="The template is named by ?path=.",
    ),
)
