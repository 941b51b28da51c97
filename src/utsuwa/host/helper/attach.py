"""Running one command inside a container, and ending its session when nobody wants it any more."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence

from utsuwa.host.helper import kernel, protocol
from utsuwa.host.helper.liblxc import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.host.helper.messages import CommandRequest, Ended, TerminalSize

NOT_EXECUTABLE = 126
NOT_FOUND = 127

_PTMX_DEVICE = os.makedev(5, 2)
_DEFAULT_UMASK = 0o022
_KILL_ROUNDS = 200
_CONTAINER = b"container=lxc"
"""What liblxc puts into each environment."""


class Command:
    """What the request asks for, everything prepared that the new process will need."""

    def __init__(self, spec: CommandRequest) -> None:
        self.env = [os.fsencode(f"{name}={value}") for name, value in spec["env"].items()]
        self.cwd = os.fsencode(spec["cwd"])
        self.uid = int(spec["uid"])
        self.gid = int(spec["gid"])
        self.terminal = spec["terminal"]
        self.slave = -1
        """The terminal's slave, kept open until the command ends: a command may let go of its terminal, and
        open it again by its name. A pty that nobody has open would look like one whose users are all gone."""
        self.rlimits = [(int(n), int(soft), int(hard)) for n, soft, hard in spec["rlimits"]]
        self._allow_rlimits()
        self._worker = os.pidfd_open(os.getpid())
        self.failure, self._tell_failure = os.pipe2(os.O_CLOEXEC)
        self._hold: tuple[socket.socket, socket.socket] | None = None
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._program = kernel.Program([os.fsencode(word) for word in spec["argv"]])

    def run(self, prepare: Callable[[], None] | None = None) -> int:
        """In the new process: become the leader of a session and turn into the command."""
        try:
            if self._hold is not None:
                self._wait_until_released(*self._hold)
            if prepare is not None:
                prepare()
            if os.getsid(0) != os.getpid():  # liblxc may have done this for a terminal
                os.setsid()
                if self.terminal:
                    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            kernel.set_death_signal(signal.SIGKILL)
            if self._worker_has_ended():  # before it could be asked for that signal
                return NOT_EXECUTABLE
            # Python ignores these, and what is ignored stays so across exec.
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.umask(_DEFAULT_UMASK)
            self._enter_folder()
            self._set_rlimits()
            failed = self._program.execute()
        except OSError as error:
            failed = error
        failure = failed.errno or errno.EIO
        os.write(self._tell_failure, str(failure).encode())
        return NOT_FOUND if failure in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE

    def _worker_has_ended(self) -> bool:
        """The parent's pid says nothing here: seen from inside the container it is 0 either way."""
        poller = select.poll()
        poller.register(self._worker, select.POLLIN)
        return bool(poller.poll(0))

    def _allow_rlimits(self) -> None:
        """In the worker, where there is still the right to raise the hard ones."""
        for number, _soft, hard in self.rlimits:
            soft_now, hard_now = resource.getrlimit(number)
            if _lower(hard_now, hard) != hard:
                try:
                    resource.setrlimit(number, (soft_now, hard))
                except (OSError, ValueError):
                    continue  # without CAP_SYS_RESOURCE: the command gets what there is

    def _set_rlimits(self) -> None:
        """Last of all, for they might be too low for what else is to do."""
        for number, soft, hard in self.rlimits:
            hard = _lower(hard, resource.getrlimit(number)[1])
            resource.setrlimit(number, (_lower(soft, hard), hard))

    def _enter_folder(self) -> None:
        """The working directory, or the root where the container has no such folder."""
        try:
            os.chdir(self.cwd)
        except OSError:
            os.chdir("/")

    def run_confined(self, stdio: Sequence[int], confine: Callable[[], None]) -> int:
        """As `run`, where no liblxc has given the process its streams, its environment and its ids."""

        def prepare() -> None:
            confine()
            for target, fd in enumerate(stdio):
                os.dup2(fd, target)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)

        return self.run(prepare)

    def hold(self) -> None:
        """Before the process is there: have it stop in `run`, where liblxc has done all it does."""
        self._hold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def _wait_until_released(self, ours: socket.socket, theirs: socket.socket) -> None:
        theirs.close()
        ours.send(b"ready")
        ours.recv(1)

    def held(self) -> bool:
        """Wait until the process has got there; False where it has ended instead."""
        assert self._hold is not None
        self._hold[0].close()
        return bool(self._hold[1].recv(8))

    def release(self) -> None:
        """Let it go on. Nothing happens where it has ended."""
        assert self._hold is not None
        with contextlib.suppress(OSError):
            self._hold[1].send(b"1")
        self._hold[1].close()

    def set_environment(self) -> None:
        """Make this process's environment, which its children inherit, that of the command."""
        kernel.set_environment((_CONTAINER, *self.env))

    def discard(self) -> None:
        """Let go of what was prepared, in place of running it."""
        for fd in (self._worker, self.failure, self._tell_failure, self.proc):
            os.close(fd)

    def started(self) -> None:
        """In the worker, once the process is there."""
        os.close(self._tell_failure)

    def let_go_of_terminal(self) -> None:
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def why_not_executed(self) -> int | None:
        """The errno where the command could not be executed; asked after the process has ended."""
        os.set_blocking(self.failure, False)
        try:
            said = os.read(self.failure, 16)
        except BlockingIOError:
            return None
        return int(said) if said else None


def _lower(one: int, other: int) -> int:
    """The lower of two limits, of which -1 is the highest."""
    return min((one, other), key=lambda limit: limit & (2**64 - 1))


def open_terminal(container: Container, size: TerminalSize) -> tuple[int, int]:
    """Both ends of a pty: in the container's own devpts where that can be had, else of the host."""
    devpts = container.devpts_fd()
    pair = None if devpts is None else _open_in_devpts(devpts)
    master, slave = pair or os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", size["height"], size["width"], 0, 0))
    os.fchown(slave, size["uid"], size["gid"])
    return master, slave


def _open_in_devpts(devpts: int) -> tuple[int, int] | None:
    """The container's root may have put anything in the way: only the real ptmx is taken."""
    try:
        path = kernel.open_beside(devpts, b"ptmx")
    except OSError:
        return None
    master = -1
    try:
        if os.fstat(path).st_rdev != _PTMX_DEVICE or kernel.filesystem_magic(path) != kernel.DEVPTS_MAGIC:
            return None
        master = os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, kernel.TIOCSPTLCK, struct.pack("i", 0))
        return master, fcntl.ioctl(master, kernel.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        if master >= 0:
            os.close(master)
        return None
    finally:
        os.close(path)


def follow(reply: socket.socket, pid: int, command: Command) -> None:
    """From the command's start to its end: pass signals on, tell how it ended, or end it."""
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(reply, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if pidfd in ready:
            break
        message = _receive(reply)
        if message is None or message.get("kill"):
            kill_session(command.proc, pid)
            break
        _send_signal(pidfd, int(message.get("signal", 0)))
    _pid, status = os.waitpid(pid, 0)
    command.let_go_of_terminal()  # before its end is told: only background processes keep it open from now on
    ended: Ended = {"code": os.waitstatus_to_exitcode(status), "errno": command.why_not_executed()}
    try:
        protocol.send(reply, ended)
    except OSError:
        return


def _receive(reply: socket.socket) -> dict[str, Any] | None:
    try:
        received = protocol.receive(reply)
    except OSError:
        return None
    return None if received is None else received[0]


def _send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except (OSError, ValueError):
        return


def kill_session(proc: int, leader: int) -> None:
    """Kill every process of a session; the leader is not reaped yet, so its id is still its own.

    `proc` is a descriptor of the host's /proc, which may be out of sight by now.

    Repeated, for a process may fork while it is looked for. A frozen or hanging one dies later.
    """
    os.kill(leader, signal.SIGKILL)  # in any case: it may not lead its session yet
    for _ in range(_KILL_ROUNDS):
        members = session_members(proc, leader)
        if not members:
            return
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def session_members(proc: int, leader: int) -> list[int]:
    """The processes of a session that are not zombies."""
    found = []
    for entry in os.listdir(proc):
        if entry.isdigit():
            try:
                file = os.open(f"{entry}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            except OSError:
                continue
            try:
                state, _parent, _group, session = os.read(file, 4096).rpartition(b")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            finally:
                os.close(file)
            if int(session) == leader and state not in (b"Z", b"X"):
                found.append(int(entry))
    return found
