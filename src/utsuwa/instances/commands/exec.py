"""Running commands in containers: the request is validated, then executed in an operation."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.helper.client import AttachCache, Attached, AttachSpec, Helper, Terminal
from utsuwa.host.processes import oom_scores, pipes
from utsuwa.instances import logs
from utsuwa.instances.commands.exec_streams import Conversation, Sockets
from utsuwa.instances.commands.lasting import LastingTerminal
from utsuwa.instances.confinement import limits
from utsuwa.operations import kinds
from utsuwa.operations.operations import Operation, Operations
from utsuwa.wire.exec import InstanceExecPost

CONNECT_TIMEOUT = 30.0
"""Seconds to wait for the client to connect all websockets."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_ID = 2**32 - 2
_MAX_SIZE = 2**16 - 1
_USUAL_SIZE = (80, 25)
_MAX_LINGER = 3600
_NO_DESCRIPTOR = -1


@dataclass(frozen=True)
class ExecTarget:
    """The current state of the instance, provided by the instance manager."""

    instance: InstanceRef
    lxcpath: Path
    logs: Path
    """The instance's log directory."""
    config: Mapping[str, str]
    """Expanded, for `environment.*`."""
    idmap: IdMap
    """The id map of the running container."""
    running: bool
    frozen: bool = False
    cache: AttachCache | None = None


class ExecManager:
    """Starts commands as operations."""

    def __init__(self, operations: Operations, helper: Helper) -> None:
        self._operations = operations
        self._helper = helper

    def start(self, target: ExecTarget, request: InstanceExecPost) -> Operation:
        """Run a command in the background; with websockets once the client has connected them.

        Raises InvalidRequest if the container is not running or the command is invalid.
        """
        _check_running(target)
        spec = _spec(target, request)
        lasting = _lasting(request)
        cgroup_moves.warm_soon()
        wanted = request.wait_for_websocket
        names = ["0", "control"] if request.interactive else ["0", "1", "2", "control"]
        operation = self._operations.start(
            kinds.COMMAND_EXEC,
            target.instance.project,
            _Command(self._helper, target, spec, request, lasting).run,
            names=[target.instance.name],
            metadata=_metadata(spec, request) if wanted else None,
            websockets=names if wanted else (),
            lasting=lasting,
        )
        self._operations.events.publish_lifecycle(
            "instance-exec", target.instance.url(), target.instance.project, {"command": request.command}
        )
        return operation


class _Command:
    """One command, for the duration of its operation."""

    def __init__(
        self,
        helper: Helper,
        target: ExecTarget,
        spec: AttachSpec,
        request: InstanceExecPost,
        lasting: LastingTerminal | None,
    ) -> None:
        self._helper = helper
        self._target = target
        self._spec = spec
        self._request = request
        self._lasting = lasting

    async def run(self, operation: Operation) -> None:
        if self._lasting is not None:
            await self._on_lasting_terminal(operation, self._lasting)
        elif self._request.wait_for_websocket:
            await self._with_websockets(operation)
        elif self._request.record_output:
            await self._recorded(operation)
        else:
            await self._unheard(operation)

    async def _on_lasting_terminal(self, operation: Operation, terminal: LastingTerminal) -> None:
        attached = None
        try:
            await terminal.wait_for_client(CONNECT_TIMEOUT)
            attached = await self._helper.attach(self._spec)
            code = await terminal.run(attached)
            _report(operation, attached, code, self._spec.argv[0])
        finally:
            await terminal.close()
            if attached is not None:
                attached.close()

    async def _with_websockets(self, operation: Operation) -> None:
        sockets = await Sockets.connected(operation, CONNECT_TIMEOUT)
        if self._spec.terminal is not None:
            attached = await self._helper.attach(self._spec)
            conversation = Conversation.on_terminal(attached, sockets)
        else:
            attached, conversation = await self._attach_to_pipes(sockets)
        try:
            code = await conversation.run()
            _report(operation, attached, code, self._spec.argv[0])
        finally:
            conversation.close()
            attached.close()

    async def _attach_to_pipes(self, sockets: Sockets) -> tuple[Attached, Conversation]:
        stdin, stdout, stderr = pipes.pipe(), pipes.pipe(), pipes.pipe()
        ours = (stdin[1], stdout[0], stderr[0])
        try:
            attached = await self._helper.attach(self._spec, stdin[0], stdout[1], stderr[1])
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in (stdin[0], stdout[1], stderr[1]):
                os.close(fd)
        return attached, Conversation.on_pipes(attached, sockets, ours)

    async def _recorded(self, operation: Operation) -> None:
        """Write output directly to files, whose URLs are in the operation's metadata."""
        outputs = await logs.create_outputs(self._target.logs, operation.id)
        try:
            await self._run_to_end(operation, outputs[0].fd, outputs[1].fd)
        finally:
            await logs.finish_outputs(outputs)
            urls = {
                str(number): self._target.instance.url("logs", "exec-output", output.name)
                for number, output in enumerate(outputs, 1)
            }
            operation.update_metadata({"output": urls})

    async def _unheard(self, operation: Operation) -> None:
        await self._run_to_end(operation, _NO_DESCRIPTOR, _NO_DESCRIPTOR)

    async def _run_to_end(self, operation: Operation, stdout: int, stderr: int) -> None:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            attached = await self._helper.attach(
                self._spec,
                null,
                null if stdout == _NO_DESCRIPTOR else stdout,
                null if stderr == _NO_DESCRIPTOR else stderr,
            )
        finally:
            os.close(null)
        try:
            _report(operation, attached, await attached.wait(), self._spec.argv[0])
        finally:
            attached.close()


def _report(operation: Operation, attached: Attached, code: int, name: str) -> None:
    """Put the exit code into the metadata. Raises InvalidRequest if the command could not be executed."""
    operation.update_metadata({"return": code})
    match attached.failure:
        case None:
            return
        case errno.ENOENT | errno.ENOTDIR:
            raise InvalidRequest(
                f"Command not found: {name[:100]!r} is neither a path in the container nor in its PATH"
            )
        case errno.EACCES | errno.ENOEXEC:
            raise InvalidRequest(
                f"Command not executable: {name[:100]!r} lacks the permission, or is not a program"
            )
        case number:
            raise InvalidRequest(f"Command {name[:100]!r} cannot be executed: {os.strerror(number)}")


def _metadata(spec: AttachSpec, request: InstanceExecPost) -> dict[str, object]:
    return {
        "command": request.command,
        "environment": dict(spec.env),
        "interactive": request.interactive,
    }


def _check_running(target: ExecTarget) -> None:
    if not target.running:
        raise InvalidRequest(f"Instance is not running: start it with `utsuwa start {target.instance.name}`")
    if target.frozen:
        raise InvalidRequest(f"Instance is frozen: `utsuwa start {target.instance.name}` resumes it")


def _spec(target: ExecTarget, request: InstanceExecPost) -> AttachSpec:
    """Return the validated command for the helper."""
    if not request.command or not request.command[0]:
        raise InvalidRequest("No command given: name the program to run, and its arguments")
    env = environment(target.config, request)
    for word in (*request.command, request.cwd, *env, *env.values()):
        if "\0" in word:
            raise InvalidRequest("Commands, environment and working directory cannot hold a NUL character")
    for name in env:
        if not name or "=" in name:
            raise InvalidRequest(f"Invalid name of an environment variable: {name[:40]!r}")
    if request.cwd and not request.cwd.startswith("/"):
        raise InvalidRequest(f"The working directory {request.cwd[:100]!r} must be an absolute path")
    _check_ids(target.idmap, request)
    return AttachSpec(
        name=target.instance.storage_name,
        lxcpath=target.lxcpath,
        argv=request.command,
        env=env,
        cwd=request.cwd or env.get("HOME") or "/",
        uid=request.user,
        gid=request.group,
        terminal=_terminal(target.idmap, request),
        rlimits=cgroup_limits.numbered(limits.rlimits(target.config)),
        oom_score=limits.oom_priority(target.config) if target.config.get(oom_scores.KEY) else None,
        cache=target.cache,
    )


def environment(config: Mapping[str, str], request: InstanceExecPost) -> dict[str, str]:
    """Return the complete environment: defaults, overridden by `environment.*`, overridden by the request."""
    prefix = "environment."
    env = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    env.update(request.environment)
    env.setdefault("PATH", _PATH)
    env.setdefault("LANG", "C.UTF-8")
    if request.user == 0:
        env.setdefault("HOME", "/root")
        env.setdefault("USER", "root")
    if request.interactive and request.wait_for_websocket:
        env.setdefault("TERM", "xterm")
    return env


def _check_ids(idmap: IdMap, request: InstanceExecPost) -> None:
    for kind, number, lookup in (
        ("user", request.user, idmap.host_uid),
        ("group", request.group, idmap.host_gid),
    ):
        if not 0 <= number <= _MAX_ID:
            raise InvalidRequest(f"Invalid {kind} {number}: use a number from 0 to {_MAX_ID}")
        try:
            lookup(number)
        except ValueError:
            raise InvalidRequest(f"The {kind} {number} is not mapped into the container") from None


def _lasting(request: InstanceExecPost) -> LastingTerminal | None:
    """Return what keeps the command's terminal while its websockets are lost, if that was asked for."""
    if request.linger == 0:
        return None
    if not 0 < request.linger <= _MAX_LINGER:
        raise InvalidRequest(f"Invalid linger {request.linger}: use a number of seconds up to {_MAX_LINGER}")
    if not (request.interactive and request.wait_for_websocket):
        raise InvalidRequest("Only a command on a terminal with websockets can linger: set `interactive`")
    return LastingTerminal(request.linger)


def _terminal(idmap: IdMap, request: InstanceExecPost) -> Terminal | None:
    """Return a pty owned by the container's root, for interactive commands."""
    if not (request.interactive and request.wait_for_websocket):
        return None
    for size in (request.width, request.height):
        if not 0 <= size <= _MAX_SIZE:
            raise InvalidRequest(f"Invalid terminal size {size}")
    width, height = request.width, request.height
    if not (width and height):
        width, height = _USUAL_SIZE
    return Terminal(width, height, idmap.host_uid(0), idmap.host_gid(0))
