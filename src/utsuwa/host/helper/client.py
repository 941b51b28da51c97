"""The daemon's side of the helper (see the package): asyncio, no threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import tty
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.helper import protocol
from utsuwa.host.helper.messages import (
    AttachAgainRequest,
    AttachRequest,
    CommandRequest,
    Confinement,
    TerminalSize,
)
from utsuwa.host.lxc import reasons
from utsuwa.host.processes import pipes
from utsuwa.host.processes.pidfds import Process
from utsuwa.host.processes.run import Spawned, spawn
from utsuwa.wire.instances import StateNetwork

log = logging.getLogger(__name__)

_Networks = list[dict[str, StateNetwork]]

_MAIN = Path(__file__).with_name("__main__.py")
_END_GRACE = 2.0
_KILL_GRACE = 5.0
_SHORT_LIFE = 5.0
_RESTART_DELAY = 1.0
"""Seconds to wait where the helper did not live long: something is wrong with liblxc or memory."""
_ANSWER_TIMEOUT = 30.0


class HelperGone(HostError):
    """The helper or its worker ended before it answered."""

    key = "helper-gone"

    def __init__(self) -> None:
        super().__init__("The container helper ended unexpectedly: try again")


@dataclass(frozen=True)
class Terminal:
    """A pty for the command: its size, and the host ids that own its slave."""

    width: int
    height: int
    uid: int
    gid: int

    def request(self) -> TerminalSize:
        return {"width": self.width, "height": self.height, "uid": self.uid, "gid": self.gid}


class AttachCache:
    """The confinement of one running container's commands, for as long as that runs.

    What is read back of the first command is applied to the later ones (see `confinement`); without a cache
    each is attached by liblxc.
    """

    def __init__(self, init: Process) -> None:
        self.init = init
        self.confinement: Confinement | None = None
        self.untried = True


@dataclass(frozen=True)
class AttachSpec:
    """A command to run inside a container. `uid` and `gid` are the container's own ids."""

    name: str
    lxcpath: Path
    argv: Sequence[str]
    env: Mapping[str, str]
    """The whole environment; liblxc adds `container=lxc`."""
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    terminal: Terminal | None = None
    rlimits: Sequence[tuple[int, int, int]] = ()
    """Resource limits by the kernel's number: soft and hard, -1 for none. The others are the daemon's."""
    cache: AttachCache | None = None


class Console:
    """A container's console, kept for this holder until `close`."""

    def __init__(self, held: int, master: int) -> None:
        self._held = held
        self.master = master
        """A pty's master: what the container says can be read there, and what is written it hears."""
        os.set_blocking(master, False)
        tty.setraw(master)  # the container's own terminal has treated every line already

    def close(self) -> None:
        for fd in (self.master, self._held):
            os.close(fd)


class Attached:
    """A command that runs inside a container. `close` it in any case: what still runs then is killed."""

    def __init__(self, reply: socket.socket, pid: int, master: int | None) -> None:
        self.pid = pid
        """As the host sees it."""
        self.master = master
        """The pty's master where a terminal was asked for; closed with this object."""
        self.failure: int | None = None
        """The errno where the command could not be executed, set once it has ended."""
        self._reply = reply
        self._closed = False
        self._ended = asyncio.get_running_loop().create_task(self._follow())
        self._ended.add_done_callback(_retrieve)

    @property
    def ended(self) -> bool:
        return self._ended.done()

    @property
    def end(self) -> asyncio.Future[int]:
        """Done when the command has ended; to be waited for beside other things, not awaited itself."""
        return self._ended

    async def wait(self) -> int:
        """The exit code: 128+N where signal N ended it, 127 for not found, 126 for not executable.

        Raises HelperGone where the helper was killed; the command is dead then too.
        """
        return await asyncio.shield(self._ended)

    async def signal(self, number: int) -> None:
        """Send a signal to the command's first process; nothing happens where it has ended."""
        await self._send({"signal": number})

    async def kill(self) -> None:
        """Kill the command and all of its session, and wait for its end."""
        await self._send({"kill": True})
        with contextlib.suppress(TimeoutError, HelperGone):
            await asyncio.wait_for(self.wait(), _KILL_GRACE)

    def close(self) -> None:
        """Give the command up: its session is killed where it still runs."""
        if not self._closed:
            self._closed = True
            if self._ended.done():
                self._reply.close()
            else:
                # The descriptor may be given out anew at once, so nothing may be waiting for it by then.
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
        ended, _fds = await _receive(self._reply)
        self.failure = ended["errno"]
        code = int(ended["code"])
        return code if code >= 0 else 128 - code


class Helper:
    """The helper process, started again where it dies."""

    def __init__(self, *, always_by_liblxc: bool = False) -> None:
        """With `always_by_liblxc` no confinement is read back: liblxc attaches every command."""
        self._always_by_liblxc = always_by_liblxc
        self._process: Spawned | None = None
        self._shared: socket.socket | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        """Held while a request is sent, and while the process is started or given up."""
        self._closed = False

    async def start(self) -> None:
        """Start the process; it loads liblxc meanwhile and takes requests as soon as it can."""
        async with self._lock:
            self._start()

    async def close(self) -> None:
        """End the process and its idle workers; commands that run go on until they are closed."""
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
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
        """Start the helper again when it has ended by itself; requests wait meanwhile."""
        began = asyncio.get_running_loop().time()
        code = await process.wait()
        log.error("the container helper ended with status %d: it is started again", code)
        async with self._lock:
            self._process = None
            self._drop_socket()
            process.close()
            if asyncio.get_running_loop().time() - began < _SHORT_LIFE:
                await asyncio.sleep(_RESTART_DELAY)
            self._start()

    async def init_pid(self, name: str, lxcpath: Path, conf: Path | None = None) -> int | None:
        """The pid of a container's init; None where the container does not run.

        liblxc asks the monitor over its socket, so `conf` is not looked at.
        """
        pid: int | None = await self._ask("init_pid", name=name, lxcpath=str(lxcpath))
        return pid

    async def state(self, name: str, lxcpath: Path) -> str:
        """liblxc's own state: `RUNNING`, `FROZEN`, `STOPPED`, `STARTING` and so on."""
        state: str = await self._ask("state", name=name, lxcpath=str(lxcpath))
        return state

    async def console(self, name: str, lxcpath: Path) -> Console:
        """A running container's console, for one holder at a time. HostError where liblxc refuses."""
        answer, fds = await self._answer("console", name=name, lxcpath=str(lxcpath))
        _judge(answer)
        return Console(*fds)

    async def check_config(self, conf: Path) -> None:
        """Have liblxc parse a config file; raises InvalidConfig with its reason."""
        try:
            await self._ask("check_config", conf=str(conf))
        except HelperGone:
            raise
        except HostError as error:
            raise InvalidConfig(f"Invalid liblxc configuration: {error.message}") from error

    async def config(self, conf: Path, keys: Sequence[str]) -> list[str]:
        """The values of some keys of a config file, in liblxc's own spelling."""
        values: list[str] = await self._ask("config", conf=str(conf), keys=list(keys))
        return values

    async def freeze(self, name: str, lxcpath: Path, conf: Path | None = None) -> None:
        await self._freeze(name, lxcpath, conf, frozen=True)

    async def unfreeze(self, name: str, lxcpath: Path, conf: Path | None = None) -> None:
        await self._freeze(name, lxcpath, conf, frozen=False)

    async def network_states(self, init_pids: Sequence[int]) -> dict[int, dict[str, StateNetwork]]:
        """The interfaces of many containers in one request, by the pid of their init; the ended left out."""
        found = msgspec.convert(await self._ask("network", pids=list(init_pids)), _Networks)
        return {pid: links for pid, links in zip(init_pids, found, strict=True) if links}

    async def attach(self, spec: AttachSpec, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> Attached:
        """Run a command inside a container. The three descriptors stay the caller's; with a terminal
        they are not looked at and the result has `master`. HostError where liblxc refuses.
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
        }
        if spec.terminal is not None:
            return await self._attach(request, ())
        cache, streams = spec.cache, (stdin, stdout, stderr)
        if cache is None or self._always_by_liblxc:
            return await self._attach(request, streams)
        if cache.confinement is not None:
            try:
                return await self._attach_again(request, streams, cache.confinement, cache.init)
            except (HostError, ProcessLookupError) as error:
                log.info("container %s: liblxc is asked again: %s", spec.name, error)
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

    async def _attach_again(
        self, command: CommandRequest, fds: Sequence[int], confinement: Confinement, init: Process
    ) -> Attached:
        request: AttachAgainRequest = {**command, "confinement": confinement}
        reply = await self._send("attach_again", request, (*fds, init.fileno()))
        return (await self._attached(reply))[1]

    async def _attached(self, reply: socket.socket) -> tuple[Mapping[str, Any], Attached]:
        """Wait for the answer to a command; closes `reply` where it was refused."""
        try:
            answer, fds = await _receive(reply)
            pid = _judge(answer)
        except BaseException:
            reply.close()
            raise
        cgroup_moves.moved()
        return answer, Attached(reply, pid, fds[0] if fds else None)

    async def _freeze(self, name: str, lxcpath: Path, conf: Path | None, *, frozen: bool) -> None:
        await self._ask(
            "freeze", name=name, lxcpath=str(lxcpath), conf=str(conf) if conf else None, frozen=frozen
        )

    async def _ask(self, operation: str, **request: object) -> Any:
        return _judge((await self._answer(operation, **request))[0])

    async def _answer(self, operation: str, **request: object) -> tuple[dict[str, Any], list[int]]:
        reply = await self._send(operation, request, ())
        with reply:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    return await _receive(reply)
            except TimeoutError:
                raise HostError(
                    f"liblxc did not answer within {_ANSWER_TIMEOUT:g} seconds ({operation})"
                ) from None

    async def _send(self, operation: str, request: Mapping[str, object], fds: Sequence[int]) -> socket.socket:
        """Hand a request to the next idle worker; gives the socket on which it answers."""
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
            raise HostError("The container helper has been stopped: the daemon is ending")
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


async def _receive(reply: socket.socket) -> tuple[dict[str, Any], list[int]]:
    while True:
        try:
            received = protocol.receive(reply)
        except BlockingIOError:
            await pipes.readable(reply.fileno())
            continue
        except ConnectionResetError:
            continue  # it ended without reading all: told once, ahead of the answers that it left
        if received is None:
            raise HelperGone
        return received


def _judge(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise HostError(reasons(answer["log"]) or answer["error"])
    return answer["ok"]


def _retrieve(task: asyncio.Task[int]) -> None:
    """An end that nobody waited for is no news."""
    if not task.cancelled():
        task.exception()
