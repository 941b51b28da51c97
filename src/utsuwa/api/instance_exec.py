"""`/1.0/instances/{name}/exec`, `logs` and `console`: commands, their recorded output, and consoles."""

from __future__ import annotations

import io
from collections.abc import Sequence

from aiohttp import web

from utsuwa.api.http import BINARY, Background, Empty, Raw, Request, Result, Route, Sync, about, inline
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.instances import logs
from utsuwa.instances.commands import console
from utsuwa.instances.commands.exec import ExecTarget
from utsuwa.wire.exec import InstanceConsolePost, InstanceExecPost

_BASE = "/1.0/instances/{name}"


async def _target(request: Request) -> ExecTarget:
    return await request.services.instances.exec_target(request.instance)


def _urls(target: ExecTarget, folder: Sequence[str], names: list[str]) -> Sync:
    return Sync([target.instance.url(*folder, name) for name in names])


def _file(name: str, file: io.BufferedReader) -> Raw:
    return Raw(web.Response(body=file, headers=inline(name), content_type=BINARY))


async def run_command(request: Request) -> Result:
    body = await request.body(InstanceExecPost)
    target = await _target(request)
    return Background(request.services.exec.start(target, body))


async def list_logs(request: Request) -> Result:
    target = await _target(request)
    return _urls(target, ["logs"], await logs.names(target.logs))


async def get_log(request: Request) -> Result:
    name = request.params["filename"]
    return _file(name, await logs.open_log((await _target(request)).logs, name))


async def delete_log(request: Request) -> Result:
    await logs.delete_log((await _target(request)).logs, request.params["filename"])
    return Empty()


async def list_outputs(request: Request) -> Result:
    target = await _target(request)
    return _urls(target, ["logs", "exec-output"], await logs.output_names(target.logs))


async def get_output(request: Request) -> Result:
    name = request.params["filename"]
    return _file(name, await logs.open_output((await _target(request)).logs, name))


async def delete_output(request: Request) -> Result:
    await logs.delete_output((await _target(request)).logs, request.params["filename"])
    return Empty()


async def get_console_log(request: Request) -> Result:
    data = await console.read(await _target(request))
    return Raw(web.Response(body=data, content_type="application/octet-stream"))


async def clear_console_log(request: Request) -> Result:
    await console.clear(await _target(request))
    return Empty()


async def attach_console(request: Request) -> Result:
    body = await request.body(InstanceConsolePost)
    target = await _target(request)
    return Background(request.services.console.start(target, body))


ROUTES: tuple[Route, ...] = about(
    Entity.INSTANCE,
    Route(
        "POST",
        f"{_BASE}/exec",
        run_command,
        "Run a command",
        Background,
        InstanceExecPost,
        entitlement=Entitlement.CAN_EXEC,
        description="The operation's metadata has the exit code as `return`, and `output` if recorded.",
    ),
    Route("GET", f"{_BASE}/logs", list_logs, "List the log files", list[str]),
    Route("GET", f"{_BASE}/logs/{{filename}}", get_log, "Get a log file", Raw),
    Route("DELETE", f"{_BASE}/logs/{{filename}}", delete_log, "Delete an old log file"),
    Route("GET", f"{_BASE}/logs/exec-output", list_outputs, "List the recorded outputs", list[str]),
    Route("GET", f"{_BASE}/logs/exec-output/{{filename}}", get_output, "Get a recorded output", Raw),
    Route("DELETE", f"{_BASE}/logs/exec-output/{{filename}}", delete_output, "Delete a recorded output"),
    Route("GET", f"{_BASE}/console", get_console_log, "Get the console log", Raw),
    Route("DELETE", f"{_BASE}/console", clear_console_log, "Clear the console log"),
    Route(
        "POST",
        f"{_BASE}/console",
        attach_console,
        "Attach to the console",
        Background,
        InstanceConsolePost,
        entitlement=Entitlement.CAN_ACCESS_CONSOLE,
    ),
)
