"""`/1.0/profiles`."""

from __future__ import annotations

from utsuwa.api.http import Created, Empty, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entity
from utsuwa.core.urls import object_url
from utsuwa.profiles.manager import editable
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.profiles import Profile, ProfilePatch, ProfilePost, ProfilePut, ProfilesPost


async def list_profiles(request: Request) -> Result:
    request.refuse_filter()
    found = await request.services.profiles.list(request.scope, request.listed_project)
    if request.recursion:
        return Sync(found)
    project = request.listed_project
    return Sync([object_url("profiles", one.name, project=project or one.project) for one in found])


async def create_profile(request: Request) -> Result:
    body = await request.body(ProfilesPost)
    return Created(await request.services.profiles.create(request.scope.policy, request.project, body))


async def get_profile(request: Request) -> Result:
    shown, row = await request.services.profiles.get(request.scope, request.project, request.params["name"])
    return Sync(shown, etag=editable(row))


async def put_profile(request: Request) -> Result:
    body = await request.body(ProfilePut)
    await request.services.profiles.edit(
        request.scope.policy, request.project, request.params["name"], replace(body), request.if_match
    )
    return Empty()


async def patch_profile(request: Request) -> Result:
    body = await request.body(ProfilePatch)
    await request.services.profiles.edit(
        request.scope.policy, request.project, request.params["name"], merge(body), request.if_match
    )
    return Empty()


async def rename_profile(request: Request) -> Result:
    body = await request.body(ProfilePost)
    return Created(await request.services.profiles.rename(request.project, request.params["name"], body.name))


async def delete_profile(request: Request) -> Result:
    await request.services.profiles.delete(request.project, request.params["name"])
    return Empty()


_ONE = "/1.0/profiles/{name}"

ROUTES: tuple[Route, ...] = about(
    Entity.PROFILE,
    Route(
        "GET",
        "/1.0/profiles",
        list_profiles,
        "List the profiles",
        list[str] | list[Profile],
        lists_projects=True,
    ),
    Route("POST", "/1.0/profiles", create_profile, "Create a profile", Created, ProfilesPost),
    Route("GET", _ONE, get_profile, "Show a profile", Profile),
    Route("PUT", _ONE, put_profile, "Replace a profile's editable part", Empty, ProfilePut),
    Route("PATCH", _ONE, patch_profile, "Change a profile", Empty, ProfilePatch),
    Route("POST", _ONE, rename_profile, "Rename a profile", Created, ProfilePost),
    Route("DELETE", _ONE, delete_profile, "Delete a profile", Empty),
)
