"""`/1.0/projects`."""

from __future__ import annotations

from utsuwa.api.http import Background, Created, Empty, Request, Result, Route, Sync, about
from utsuwa.core.entitlements import Entity
from utsuwa.core.urls import object_url
from utsuwa.projects.manager import editable
from utsuwa.wire.edits import merge, replace
from utsuwa.wire.projects import (
    Project,
    ProjectPatch,
    ProjectPost,
    ProjectPut,
    ProjectsPost,
    ProjectState,
)


async def list_projects(request: Request) -> Result:
    request.refuse_filter()
    manager = request.services.projects
    if request.recursion:
        return Sync(await manager.list(request.scope))
    return Sync([object_url("projects", name) for name in await manager.names(request.scope)])


async def create_project(request: Request) -> Result:
    return Created(await request.services.projects.create(await request.body(ProjectsPost)))


async def get_project(request: Request) -> Result:
    shown, row = await request.services.projects.get(request.params["name"])
    return Sync(shown, etag=editable(row))


async def put_project(request: Request) -> Result:
    body = await request.body(ProjectPut)
    await request.services.projects.edit(request.params["name"], replace(body), request.if_match)
    return Empty()


async def patch_project(request: Request) -> Result:
    body = await request.body(ProjectPatch)
    await request.services.projects.edit(request.params["name"], merge(body), request.if_match)
    return Empty()


async def rename_project(request: Request) -> Result:
    body = await request.body(ProjectPost)
    return Background(await request.services.projects.rename(request.params["name"], body.name))


async def delete_project(request: Request) -> Result:
    await request.services.projects.delete(request.params["name"])
    return Empty()


async def get_state(request: Request) -> Result:
    return Sync(await request.services.projects.state(request.params["name"]))


_ONE = "/1.0/projects/{name}"

ROUTES: tuple[Route, ...] = about(
    Entity.PROJECT,
    Route(
        "GET",
        "/1.0/projects",
        list_projects,
        "List the projects",
        list[str] | list[Project],
        entity=Entity.SERVER,
    ),
    Route(
        "POST",
        "/1.0/projects",
        create_project,
        "Add a project",
        Created,
        ProjectsPost,
        entity=Entity.SERVER,
    ),
    Route("GET", _ONE, get_project, "Show a project", Project),
    Route("PUT", _ONE, put_project, "Replace a project's content", Empty, ProjectPut),
    Route("PATCH", _ONE, patch_project, "Change a part of a project", Empty, ProjectPatch),
    Route("POST", _ONE, rename_project, "Rename a project", Background, ProjectPost),
    Route("DELETE", _ONE, delete_project, "Delete a project", Empty),
    Route("GET", f"{_ONE}/state", get_state, "Show what a project takes", ProjectState),
)
