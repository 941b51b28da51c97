"""The daemon's side of the helper (see the package): asyncio, no threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import tty
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.helper import protocol
from utsuwa.host.helper.messages import (
    AttachRequest,
    CommandRequest,
    ConfinedAttachRequest,
    Confinement,
    TerminalSize,
)
from utsuwa.host.helper.mounting import Mounting
from utsuwa.host.helper.replies import HelperGone, judge, receive
from utsuwa.host.helper.sandbox import Sandbox
from utsuwa.host.helper.session import FileSession
from utsuwa.host.processes import pipes
from utsuwa.host.processes.pidfds import Process
from utsuwa.host.processes.run import Spawned, spawn
from utsuwa.wire.instances import StateNetwork

log = logging.getLogger(__name__)

_decode_networks = msgspec.json.Decoder(dict[str, list[dict[str, StateNetwork]] | str]).decode
"""Decodes a reply, megabytes for thousands of containers, into records without making plain objects first."""

_MANY = 100
"""Number of containers from which on their interfaces are read by more than one worker."""

_MAIN = Path(__file__).with_name("__main__.py")
_END_GRACE = 2.0
_KILL_GRACE = 5.0
_SHORT_LIFE = 5.0
_RESTART_DELAY = 1.0
"""Delay in seconds before restarting a helper that died early, for lack of memory or a problem of liblxc."""
_ANSWER_TIMEOUT = 30.0


@dataclass(frozen=True)
class Terminal:
    """A pty for a command: its size, and the host ids of the slave's owner."""

    width: int
    height: int
    uid: int
    gid: int

    def request(self) -> TerminalSize:
        return {"width": self.width, "height": self.height, "uid": self.uid, "gid": self.gid}


class AttachCache:
    """The cached confinement of commands in one container, valid as long as it runs.

    The confinement read back from the first command is applied to later ones (see `confinement`); without a
    cache, liblxc attaches every command.
    """

    def __init__(self, init: Process) -> None:
        self.init = init
        self.confinement: Confinement | None = None
        self.untried = True


@dataclass(frozen=True)
class AttachSpec:
    """A command to run inside a container. `uid` and `gid` are ids in the container."""

    name: str
    lxcpath: Path
    argv: Sequence[str]
    env: Mapping[str, str]
    """The complete environment; liblxc adds `container=lxc`."""
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    terminal: Terminal | None = None
    rlimits: Sequence[tuple[int, int, int]] = ()
    """Resource limits as (kernel's number, soft, hard), -1 for unlimited; others are the daemon's."""
    oom_score: int | None = None
    """The adjustment of its OOM score; None for that of the daemon."""
    cache: AttachCache | None = None


class Console:
    """A container's console, reserved for this client until `close`."""

    def __init__(self, held: int, master: int) -> None:
        self._held = held
        self.master = master
        """The pty's master, connected to the container's console."""
        os.set_blocking(master, False)
        tty.setraw(master)  # the container's own terminal already does line processing

    def close(self) -> None:
        for fd in (self.master, self._held):
            os.close(fd)


class Attached:
    """A command that runs inside a container. Always `close` it, which kills the command if it still runs."""

    def __init__(self, reply: socket.socket, pid: int, master: int | None) -> None:
        self.pid = pid
        """The pid on the host."""
        self.master = master
        """The pty's master if a terminal was requested; closed with this object."""
        self.failure: int | None = None
        """The errno if the command could not be executed, set once it has ended."""
        self._reply = reply
        self._closed = False
        self._ended = asyncio.get_running_loop().create_task(self._follow())
        self._ended.add_done_callback(_retrieve)

    @property
    def ended(self) -> bool:
        return self._ended.done()

    @property
    def end(self) -> asyncio.Future[int]:
        """A future that is done when the command has ended; pass it to `asyncio.wait`, do not await it."""
        return self._ended

    async def wait(self) -> int:
        """Wait for the command and return its exit code: 128+N if killed by signal N, 127 if not found, 126
        if not executable.

        Raises HelperGone if the helper was killed, which kills the command as well.
        """
        return await asyncio.shield(self._ended)

    async def signal(self, number: int) -> None:
        """Send a signal to the command's first process; does nothing if it has ended."""
        await self._send({"signal": number})

    async def kill(self) -> None:
        """Kill the command and its session, and wait until it has ended."""
        await self._send({"kill": True})
        with contextlib.suppress(TimeoutError, HelperGone):
            await asyncio.wait_for(self.wait(), _KILL_GRACE)

    def close(self) -> None:
        """Release the command; its session is killed if it still runs."""
        if not self._closed:
            self._closed = True
            if self._ended.done():
                self._reply.close()
            else:
                # The descriptor number may be reused at once, so nothing may be waiting for it by then.
                self._ended.cancel()
                self._ended.add_done_callback(lambda _task: self._reply.close())
        if self.master is not None:
            os.close(self.master)
            self.master = None

    async def _send(self, message: dict[str, object]) -> None:
        if not self.ended and not self._closed:
            with contextlib.suppress(OSError):
                protocol.send(self._reply, message)

    async def _follow(self) -> int:
        ended, _fds = await receive(self._reply)
        self.failure = ended["errno"]
        code = int(ended["code"])
        return code if code >= 0 else 128 - code


class Helper:
    """The helper process, restarted if it dies."""

    def __init__(self, *, always_by_liblxc: bool = False) -> None:
        """With `always_by_liblxc`, no confinement is read back: liblxc attaches every command."""
        self._always_by_liblxc = always_by_liblxc
        self._process: Spawned | None = None
        self._shared: socket.socket | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        """Held while sending a request, and while starting or closing the process."""
        self._closed = False
        self.mounting = Mounting(partial(self._send, "mounts", {}))

    async def start(self) -> None:
        """Start the process, without waiting until it has loaded liblxc; requests are queued until then."""
        async with self._lock:
            self._start()

    async def close(self) -> None:
        """Stop the process and its idle workers; running commands continue until they are closed."""
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self.mounting.close()
        async with self._lock:
            process, self._process = self._process, None
            self._drop_socket()
        if process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_GRACE)
            process.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-S", "-E", "-I", str(_MAIN), str(theirs.fileno())]
            try:
                self._process = spawn(argv, pass_fds=(theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._shared = ours
        self._watcher = asyncio.create_task(self._watch(self._process), name="container helper")

    def _drop_socket(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    async def _watch(self, process: Spawned) -> None:
        """Restart the helper if it ends unexpectedly; requests wait meanwhile."""
        began = asyncio.get_running_loop().time()
        code = await process.wait()
        log.error("the container helper ended with status %d: restarting it", code)
        async with self._lock:
            self._process = None
            self._drop_socket()
            process.close()
            if asyncio.get_running_loop().time() - began < _SHORT_LIFE:
                await asyncio.sleep(_RESTART_DELAY)
            self._start()

    async def init_pid(self, name: str, lxcpath: Path, conf: Path | None = None) -> int | None:
        """Return the pid of a container's init; None if the container is not running.

        liblxc asks the monitor over its socket, so `conf` is ignored.
        """
        pid: int | None = await self._ask("init_pid", name=name, lxcpath=str(lxcpath))
        return pid

    async def state(self, name: str, lxcpath: Path) -> str:
        """Return liblxc's state: `RUNNING`, `FROZEN`, `STOPPED`, `STARTING` etc."""
        state: str = await self._ask("state", name=name, lxcpath=str(lxcpath))
        return state

    async def console(self, name: str, lxcpath: Path) -> Console:
        """Open a running container's console, for one client at a time. Raises HostError on failure."""
        answer, fds = await self._answer("console", {"name": name, "lxcpath": str(lxcpath)})
        judge(answer)
        return Console(*fds)

    async def check_config(self, conf: Path) -> None:
        """Have liblxc parse a config file. Raises InvalidConfig with its reason."""
        try:
            await self._ask("check_config", conf=str(conf))
        except HelperGone:
            raise
        except HostError as error:
            raise InvalidConfig(f"liblxc refuses it: {error.message}") from error

    async def config(self, conf: Path, keys: Sequence[str]) -> list[str]:
        """Return the values of keys of a config file, as normalized by liblxc."""
        values: list[str] = await self._ask("config", conf=str(conf), keys=list(keys))
        return values

    async def freeze(self, name: str, lxcpath: Path, conf: Path | None = None) -> None:
        await self._freeze(name, lxcpath, conf, frozen=True)

    async def unfreeze(self, name: str, lxcpath: Path, conf: Path | None = None) -> None:
        await self._freeze(name, lxcpath, conf, frozen=False)

    async def network_states(self, init_pids: Sequence[int]) -> dict[int, dict[str, StateNetwork]]:
        """Return the interfaces of containers by the pid of their init, without those that have ended.

        Those of many containers are read by two workers in parallel.
        """
        half = len(init_pids) // 2 if len(init_pids) >= _MANY else 0
        parts = [list(part) for part in (init_pids[:half], init_pids[half:]) if part]
        replies = await asyncio.gather(
            *(self._answer("network", {"pids": part}, decode=_decode_networks) for part in parts)
        )
        found = [links for answer, _ in replies for links in judge(answer)]
        return {pid: links for pid, links in zip(init_pids, found, strict=True) if links}

    async def files(self, root: int, user_namespace: int | None) -> FileSession:
        """Begin a session for the files below a directory, of which a descriptor is passed.

        Its worker is root of the user namespace, None for a privileged container's.
        """
        return await FileSession.begin(partial(self._send, "files", {}), root, user_namespace)

    async def sandbox(self) -> Sandbox:
        """Have a sandbox built for one job on a tree, of which it is told later."""
        return await Sandbox.begin(partial(self._send, "sandbox", {}))

    async def allow_device(self, name: str, lxcpath: Path, rule: str, *, allow: bool) -> None:
        """Let the cgroup of a running container use a device (`c 10:200 rwm`), or not any more."""
        await self._ask("allow_device", name=name, lxcpath=str(lxcpath), rule=rule, allow=allow)

    async def intercept(self, connection: int) -> None:
        """Have a worker serve the connection of a container's monitor (see `host.interception`)."""
        await self._ask("intercept", (connection,))

    async def attach(self, spec: AttachSpec, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> Attached:
        """Run a command inside a container. The three descriptors still belong to the caller; with a terminal
        they are ignored and the result has `master`. Raises HostError if liblxc refuses.
        """
        request: CommandRequest = {
            "name": spec.name,
            "lxcpath": str(spec.lxcpath),
            "argv": list(spec.argv),
            "env": dict(spec.env),
            "cwd": spec.cwd,
            "uid": spec.uid,
            "gid": spec.gid,
            "terminal": None if spec.terminal is None else spec.terminal.request(),
            "rlimits": list(spec.rlimits),
            "oom_score": spec.oom_score,
        }
        if spec.terminal is not None:
            return await self._attach(request, ())
        cache, streams = spec.cache, (stdin, stdout, stderr)
        if cache is None or self._always_by_liblxc:
            return await self._attach(request, streams)
        if cache.confinement is not None:
            try:
                return await self._attach_confined(request, streams, cache.confinement, cache.init)
            except (HostError, ProcessLookupError) as error:
                log.info(
                    "container %s: cannot reuse the confinement, attaching with liblxc: %s", spec.name, error
                )
                cache.confinement = None
        return await self._attach(request, streams, cache)

    async def _attach(
        self, command: CommandRequest, fds: Sequence[int], cache: AttachCache | None = None
    ) -> Attached:
        read_back = cache is not None and cache.untried
        request: AttachRequest = {**command, "read_back": read_back}
        answer, attached = await self._attached(await self._send("attach", request, fds))
        if cache is not None and read_back:
            cache.untried = False
            cache.confinement = answer["confinement"]
        return attached

    async def _attach_confined(
        self, command: CommandRequest, fds: Sequence[int], confinement: Confinement, init: Process
    ) -> Attached:
        request: ConfinedAttachRequest = {**command, "confinement": confinement}
        reply = await self._send("attach_confined", request, (*fds, init.fileno()))
        return (await self._attached(reply))[1]

    async def _attached(self, reply: socket.socket) -> tuple[Mapping[str, Any], Attached]:
        """Wait for the reply to a command; closes `reply` on failure."""
        try:
            answer, fds = await receive(reply)
            pid = judge(answer)
        except BaseException:
            reply.close()
            raise
        cgroup_moves.moved()
        return answer, Attached(reply, pid, fds[0] if fds else None)

    async def _freeze(self, name: str, lxcpath: Path, conf: Path | None, *, frozen: bool) -> None:
        await self._ask(
            "freeze", name=name, lxcpath=str(lxcpath), conf=str(conf) if conf else None, frozen=frozen
        )

    async def _ask(self, operation: str, fds: Sequence[int] = (), **request: object) -> Any:
        return judge((await self._answer(operation, request, fds))[0])

    async def _answer(
        self,
        operation: str,
        request: Mapping[str, object],
        fds: Sequence[int] = (),
        decode: Callable[[bytes], dict[str, Any]] = json.loads,
    ) -> tuple[dict[str, Any], list[int]]:
        reply = await self._send(operation, request, fds)
        with reply:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    return await receive(reply, decode)
            except TimeoutError:
                raise HostError(
                    f"The container did not respond within {_ANSWER_TIMEOUT:g} seconds ({operation})"
                ) from None

    async def _send(self, operation: str, request: Mapping[str, object], fds: Sequence[int]) -> socket.socket:
        """Send a request to the next idle worker; return the socket for its replies."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                async with self._lock:
                    await self._send_when_possible({"op": operation, **request}, [theirs.fileno(), *fds])
        except BaseException:
            ours.close()
            raise
        return ours

    async def _send_when_possible(self, message: dict[str, object], fds: list[int]) -> None:
        if self._closed:
            raise HostError("The container helper has been stopped: the daemon is shutting down")
        if self._shared is None:
            self._start()
            assert self._shared is not None
        while True:
            try:
                protocol.send(self._shared, message, fds)
            except BlockingIOError:
                await pipes.writable(self._shared.fileno())
            except OSError as error:
                raise HelperGone from error
            else:
                return


def _retrieve(task: asyncio.Task[int]) -> None:
    """Retrieve the result of a command that nobody awaited, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
