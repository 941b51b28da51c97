"""The helper's main process, which only keeps a number of pre-forked workers.

Each worker serves one request and exits, so no state of liblxc or of namespaces is carried over.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from utsuwa.host.helper import kernel, protocol, rtnetlink, sandboxes
from utsuwa.host.helper.attach import Command, attach_by_liblxc, follow
from utsuwa.host.helper.calls import FileCalls, enter_user_namespace, serve
from utsuwa.host.helper.confinement import ConfinedProcess, read_back
from utsuwa.host.helper.liblxc import Liblxc, LiblxcError
from utsuwa.host.helper.mounts import MountCalls
from utsuwa.host.interception import server as interception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.host.helper import messages

IDLE_WORKERS = 2
"""Number of idle workers."""

_FORK_DELAY = 4
"""Delay in milliseconds before forking another worker while one is idle: an immediate fork would compete with
the request that has just arrived for a CPU."""

_REHEARSAL = (
    '{"argv":["true"],"env":{"PATH":"/"},"cwd":"/","uid":0,"gid":0,"terminal":null,"rlimits":[],'
    '"oom_score":null}'
)

_LOG_LIMIT = 64 * 1024
_PID = struct.Struct("=i")


def main(shared_fd: int) -> int:
    """Serve until the daemon's end of the socket is closed."""
    try:
        liblxc = Liblxc()
    except OSError as error:
        print(f"liblxc cannot be loaded: {error}", file=sys.stderr)  # noqa: T201
        return 1
    os.umask(0o077)
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Garbage collection would only copy memory that the workers share with this process.
    gc.disable()
    gc.freeze()
    Parent(socket.socket(fileno=shared_fd), liblxc).serve()
    return 0


class Parent:
    """Forks workers and reaps them."""

    def __init__(self, shared: socket.socket, liblxc: Liblxc) -> None:
        self._shared = shared
        self._liblxc = liblxc
        self._idle: set[int] = set()
        self._taken_read, self._taken_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        poller = select.poll()
        poller.register(self._shared, 0)  # only its closing is of interest here
        poller.register(self._taken_read, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while True:
            if not self._idle:
                self._fork()
            ready = poller.poll(None if len(self._idle) >= IDLE_WORKERS else _FORK_DELAY)
            if not ready:
                self._fork()
            for fd, _event in ready:
                if fd == self._shared.fileno():
                    return
                data = os.read(fd, 4096)
                if fd == self._taken_read:
                    self._idle.difference_update(pid for (pid,) in _PID.iter_unpack(data))
            self._reap()

    def _fork(self) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                Worker(self._shared, self._liblxc, self._taken_write, parent).serve()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        self._idle.add(pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._idle:
                self._idle.discard(pid)
                time.sleep(0.05)  # it should not have ended: do not fork in a tight loop


class Worker:
    """Serves one request."""

    def __init__(self, shared: socket.socket, liblxc: Liblxc, taken: int, parent: int) -> None:
        self._shared = shared
        self._liblxc = liblxc
        self._taken = taken
        # While idle, this process is not needed once its parent is gone.
        kernel.set_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        # liblxc always copies its log to stderr; Python's messages still go to the original one.
        sys.stderr = os.fdopen(os.dup(2), "w")
        os.dup2(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC), 2)
        self._log = os.memfd_create("liblxc-log", os.MFD_CLOEXEC)
        liblxc.log_to(self._log)
        # Shared pages are copied when first written: do that now, not when a request has arrived.
        Command(json.loads(_REHEARSAL)).discard()

    def serve(self) -> None:
        received = protocol.receive(self._shared)
        if received is None:
            return
        kernel.set_death_signal(0)
        self._shared.close()
        request, fds = received
        os.write(self._taken, _PID.pack(os.getpid()))
        with socket.socket(fileno=fds[0]) as reply:
            _die_with(reply)
            try:
                _OPERATIONS[request["op"]](self, reply, request, fds[1:])
            except LiblxcError as error:
                self._refuse(reply, str(error))
            except OSError as error:
                self._refuse(reply, f"{error.strerror or error}")

    def _refuse(self, reply: socket.socket, reason: str) -> None:
        log = os.pread(self._log, _LOG_LIMIT, 0).decode(errors="replace")
        refused: messages.Refused = {"error": reason, "log": log}
        protocol.send(reply, refused)

    def init_pid(self, reply: socket.socket, request: messages.ContainerRequest, _fds: list[int]) -> None:
        pid = self._liblxc.container(request["name"], request["lxcpath"]).init_pid()
        protocol.send(reply, {"ok": pid})

    def state(self, reply: socket.socket, request: messages.ContainerRequest, _fds: list[int]) -> None:
        state = self._liblxc.container(request["name"], request["lxcpath"]).state()
        protocol.send(reply, {"ok": state})

    def check_config(self, reply: socket.socket, request: messages.ConfigRequest, _fds: list[int]) -> None:
        container = self._liblxc.container("check", "/nonexistent")
        container.load_config(request["conf"])
        protocol.send(reply, {"ok": None})

    def config(self, reply: socket.socket, request: messages.ConfigRequest, _fds: list[int]) -> None:
        container = self._liblxc.container("read", "/nonexistent")
        container.load_config(request["conf"])
        protocol.send(reply, {"ok": [container.config(key) for key in request["keys"]]})

    def freeze(self, reply: socket.socket, request: messages.FreezeRequest, _fds: list[int]) -> None:
        container = self._liblxc.container(request["name"], request["lxcpath"])
        # liblxc refuses a handle without any configuration, though it asks the monitor for all it needs.
        container.set_config("lxc.uts.name", request["name"])
        (container.freeze if request["frozen"] else container.unfreeze)()
        protocol.send(reply, {"ok": None})

    def allow_device(self, reply: socket.socket, request: messages.DeviceRequest, _fds: list[int]) -> None:
        container = self._liblxc.container(request["name"], request["lxcpath"])
        container.set_config("lxc.uts.name", request["name"])  # as for `freeze`
        container.set_cgroup("devices.allow" if request["allow"] else "devices.deny", request["rule"])
        protocol.send(reply, {"ok": None})

    def console(self, reply: socket.socket, request: messages.ContainerRequest, _fds: list[int]) -> None:
        container = self._liblxc.container(request["name"], request["lxcpath"])
        protocol.send(reply, {"ok": None}, container.console())

    def network(self, reply: socket.socket, request: messages.NetworkRequest, _fds: list[int]) -> None:
        """Reply with the interfaces of each container, including the names of their veth ends on the host."""
        found = []
        with rtnetlink.connect() as host:
            for pid in request["pids"]:
                try:
                    _enter_network(int(pid))
                    links = rtnetlink.interfaces()
                except OSError:
                    links = []
                for link in links:
                    link["host_name"] = rtnetlink.name_of_peer(host, link)
                found.append({link["name"]: link for link in links})
        protocol.send(reply, {"ok": found})

    def attach(self, reply: socket.socket, request: messages.AttachRequest, fds: list[int]) -> None:
        command = Command(request)
        container = functools.partial(self._liblxc.container, request["name"], request["lxcpath"])
        pid, master = attach_by_liblxc(container, command, fds)
        answer: dict[str, Any] = {"ok": pid}
        held = command.held()
        if request["read_back"]:
            answer["confinement"] = read_back(pid) if held else None
        command.release()
        self._follow(reply, answer, command, fds, master)

    def attach_confined(
        self, reply: socket.socket, request: messages.ConfinedAttachRequest, fds: list[int]
    ) -> None:
        """As `attach`, with a confinement that was read back; the last descriptor is a pidfd of the init."""
        command = Command(request)
        process = ConfinedProcess(request["confinement"], fds[3])
        command.set_environment()
        pid = process.fork(functools.partial(command.run_confined, fds[:3]))
        self._follow(reply, {"ok": pid}, command, {*fds})

    def files(self, reply: socket.socket, _request: messages.FilesRequest, fds: list[int]) -> None:
        """Serve calls for the files below a directory, as root of the container's user namespace."""
        calls, root, memory, *namespace = fds
        for fd in namespace:
            enter_user_namespace(fd)
        os.umask(0)  # all that is created has its mode from the beginning
        protocol.send(reply, {"ok": None}, [os.pidfd_open(os.getpid())])
        with socket.socket(fileno=calls) as sock:
            serve(sock, FileCalls(root, memory, host_root=not namespace).methods())

    def mounts(self, reply: socket.socket, _request: messages.MountsRequest, fds: list[int]) -> None:
        """Serve calls for mounts in running containers."""
        protocol.send(reply, {"ok": None}, [os.pidfd_open(os.getpid())])
        with socket.socket(fileno=fds[0]) as sock:
            serve(sock, MountCalls().methods())

    def sandbox(self, reply: socket.socket, _request: messages.SandboxRequest, fds: list[int]) -> None:
        """Have a sandbox do one job, and reply with its exit status."""
        calls, errors = fds
        os.dup2(errors, 2)
        os.close(errors)
        with socket.socket(fileno=calls) as sock:
            pid = sandboxes.begin(sock)
        _pid, status = os.waitpid(pid, 0)
        protocol.send(reply, {"ok": os.waitstatus_to_exitcode(status)})

    def intercept(self, reply: socket.socket, _request: object, fds: list[int]) -> None:
        """Serve the monitor of a container, until it ends; this outlives the daemon."""
        with socket.socket(fileno=fds[0]) as connection:
            _die_with(reply, on=False)
            protocol.send(reply, {"ok": None})
            reply.close()
            interception.serve(connection)

    def _follow(
        self,
        reply: socket.socket,
        answer: dict[str, Any],
        command: Command,
        fds: Iterable[int],
        master: Sequence[int] = (),
    ) -> None:
        """Report that the command runs, release its resources, and follow it until it ends."""
        for fd in fds:
            os.close(fd)
        command.started()
        _die_with(reply, on=False)
        with contextlib.suppress(OSError):  # the caller is gone: noticed again where replies are read
            protocol.send(reply, answer, master)
        for fd in master:
            os.close(fd)
        follow(reply, answer["ok"], command)


_OPERATIONS: dict[str, Callable[[Worker, socket.socket, Any, list[int]], None]] = {
    "allow_device": Worker.allow_device,
    "attach": Worker.attach,
    "attach_confined": Worker.attach_confined,
    "check_config": Worker.check_config,
    "config": Worker.config,
    "console": Worker.console,
    "files": Worker.files,
    "freeze": Worker.freeze,
    "init_pid": Worker.init_pid,
    "intercept": Worker.intercept,
    "mounts": Worker.mounts,
    "network": Worker.network,
    "sandbox": Worker.sandbox,
    "state": Worker.state,
}


def _die_with(reply: socket.socket, *, on: bool = True) -> None:
    """Have the kernel kill this process when the caller goes away, even if it hangs in a call of liblxc."""
    flags = fcntl.fcntl(reply, fcntl.F_GETFL)
    if not on:
        fcntl.fcntl(reply, fcntl.F_SETFL, flags & ~os.O_ASYNC)
        return
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(reply, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reply, fcntl.F_SETFL, flags | os.O_ASYNC)
    poller = select.poll()
    poller.register(reply, select.POLLIN)
    if poller.poll(0):
        _exit()


def _exit() -> NoReturn:
    os._exit(0)


def _enter_network(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(fd, kernel.NAMESPACES["net"])
    finally:
        os.close(fd)
