"""Runs one command inside a container, and kills its session when the caller gives up."""

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
from collections.abc import Callable, Iterator, Sequence

from utsuwa.host import syscalls
from utsuwa.host.helper import kernel, protocol
from utsuwa.host.helper.liblxc import Container, LiblxcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.host.helper.messages import CommandRequest, Ended, TerminalSize

NOT_EXECUTABLE = 126
NOT_FOUND = 127

_PTMX_DEVICE = os.makedev(5, 2)
_DEFAULT_UMASK = 0o022
_KILL_ROUNDS = 200
_SEARCH_SECONDS = 0.005
_HELD_SECONDS = 20.0
"""If its monitor refuses a process, liblxc waits for the end of that, and so does who would release it."""
_ATTEMPTS = 10
"""How often liblxc is asked to create a process that it loses, as every thirtieth on a busy host."""
_PAUSE_SECONDS = 0.02
_LOST_SECONDS = 5.0
"""What liblxc has left ends by itself within milliseconds, unless it cannot run: it may be frozen."""
_KILLED_SECONDS = 1.0
_CONTAINER = b"container=lxc"
"""The variable that liblxc adds to every environment."""


class Command:
    """A requested command, with everything prepared that the new process will need."""

    def __init__(self, spec: CommandRequest) -> None:
        self.env = [os.fsencode(f"{name}={value}") for name, value in spec["env"].items()]
        self.cwd = os.fsencode(spec["cwd"])
        self.uid = int(spec["uid"])
        self.gid = int(spec["gid"])
        self.terminal = spec["terminal"]
        self.slave = -1
        """The terminal's slave, kept open until the command ends: a command may close its terminal and reopen
        it by name, while a pty without any open slave looks as if all its users were gone."""
        self.rlimits = [(int(n), int(soft), int(hard)) for n, soft, hard in spec["rlimits"]]
        self._allow_rlimits()
        if spec["oom_score"] is not None:
            _set_oom_score(spec["oom_score"])
        self._worker = os.pidfd_open(os.getpid())
        self.failure, self._tell_failure = os.pipe2(os.O_CLOEXEC)
        self._hold: tuple[socket.socket, socket.socket] | None = None
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._program = kernel.Program([os.fsencode(word) for word in spec["argv"]])

    def run(self, prepare: Callable[[], None] | None = None) -> int:
        """In the new process: become a session leader and execute the command."""
        try:
            if self._hold is not None:
                self._wait_until_released(*self._hold)
            if prepare is not None:
                prepare()
            if os.getsid(0) != os.getpid():  # liblxc may have done this already for a terminal
                os.setsid()
                if self.terminal:
                    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            kernel.set_death_signal(signal.SIGKILL)
            if self._worker_has_ended():  # before the death signal was set
                return NOT_EXECUTABLE
            # Python ignores these, and ignored signals stay ignored across exec.
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
        """The parent's pid cannot tell: inside the container it is always 0."""
        poller = select.poll()
        poller.register(self._worker, select.POLLIN)
        return bool(poller.poll(0))

    def _allow_rlimits(self) -> None:
        """Raise the hard limits, in the worker, which still has the privilege to do so."""
        for number, _soft, hard in self.rlimits:
            soft_now, hard_now = resource.getrlimit(number)
            if _lower(hard_now, hard) != hard:
                try:
                    resource.setrlimit(number, (soft_now, hard))
                except (OSError, ValueError):
                    continue  # without CAP_SYS_RESOURCE: the command keeps the current limits

    def _set_rlimits(self) -> None:
        """Set the limits, as the last step, because they might be too low for other steps."""
        for number, soft, hard in self.rlimits:
            hard = _lower(hard, resource.getrlimit(number)[1])
            resource.setrlimit(number, (_lower(soft, hard), hard))

    def _enter_folder(self) -> None:
        """Change to the working directory, or to the root if it does not exist in the container."""
        try:
            os.chdir(self.cwd)
        except OSError:
            os.chdir("/")

    def run_confined(self, stdio: Sequence[int], confine: Callable[[], None]) -> int:
        """As `run`, but also set up streams, environment and ids, which is otherwise done by liblxc."""

        def prepare() -> None:
            confine()
            for target, fd in enumerate(stdio):
                os.dup2(fd, target)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)

        return self.run(prepare)

    def hold(self) -> None:
        """Have the process, which is not created yet, stop in `run` once liblxc has completed its part."""
        self._hold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def _wait_until_released(self, ours: socket.socket, theirs: socket.socket) -> None:
        """Raises TimeoutError; ends the process if it was given up."""
        theirs.close()
        try:
            ours.send(b"ready")
            if not select.select([ours], [], [], _HELD_SECONDS)[0]:
                raise TimeoutError(errno.ETIMEDOUT, "the container's monitor is busy")
            released = ours.recv(8)
        except ConnectionError:
            released = b""
        if not released:
            os._exit(NOT_EXECUTABLE)

    def held(self) -> bool:
        """Wait until the process has stopped there; return False if it has ended instead.

        To be called before `release`.
        """
        assert self._hold is not None
        self._hold[0].close()
        return bool(self._hold[1].recv(8))

    def release(self) -> None:
        """Let the process continue; does nothing if it has ended."""
        assert self._hold is not None
        with contextlib.suppress(OSError):
            self._hold[1].send(b"1")
        self.give_up()

    def give_up(self) -> None:
        """Have the process end if it was not released."""
        assert self._hold is not None
        for end in self._hold:
            end.close()

    def set_environment(self) -> None:
        """Set this process's environment, which its children inherit, to that of the command."""
        kernel.set_environment((_CONTAINER, *self.env))

    def discard(self) -> None:
        """Release the prepared resources without running the command."""
        for fd in (self._worker, self.failure, self._tell_failure, self.proc):
            os.close(fd)

    def started(self) -> None:
        """In the worker: release what only the new process needs, once that exists."""
        os.close(self._tell_failure)

    def release_terminal(self) -> None:
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def exec_errno(self) -> int | None:
        """Return the errno if the command could not be executed; to be called after the process has ended."""
        os.set_blocking(self.failure, False)
        try:
            said = os.read(self.failure, 16)
        except BlockingIOError:
            return None
        return int(said) if said else None


def attach_by_liblxc(
    container: Callable[[], Container], command: Command, stdio: Sequence[int]
) -> tuple[int, list[int]]:
    """Have liblxc create the process, which stops in `run`; return its pid, and the terminal's master if any.

    `container` returns a new handle. Without AppArmor, a process whose system calls are intercepted waits for
    nothing before it sends its listener. If that overtakes the pid, which another process sends on the same
    socket, liblxc fails and leaves the process behind; then it is tried again, unless that process hangs.
    """
    attempts = _ATTEMPTS
    while True:
        try:
            return _attach(container(), command, stdio)
        except LiblxcError:
            attempts -= 1
            if not _reap_lost(command.proc) or not attempts:
                raise
            time.sleep(_PAUSE_SECONDS)


def _attach(container: Container, command: Command, stdio: Sequence[int]) -> tuple[int, list[int]]:
    master: list[int] = []
    if command.terminal:
        pty, command.slave = open_terminal(container, command.terminal)
        master, stdio = [pty], [command.slave] * 3
    streams = stdio[0], stdio[1], stdio[2]
    command.hold()
    try:
        pid = container.attach(command.run, uid=command.uid, gid=command.gid, env=command.env, stdio=streams)
    except LiblxcError:
        command.give_up()
        command.release_terminal()  # which is hung up with the session of a process that was created
        for fd in master:
            os.close(fd)
        raise
    return pid, master


def _reap_lost(proc: int) -> bool:
    """Wait for the end of processes that liblxc has left behind; return whether there were any.

    Return False also if they had to be killed; what does not end even then is left to the host's init.
    """
    found = _reap(_LOST_SECONDS)
    if found is not None:
        return found
    for pid in _children(proc):
        os.kill(pid, signal.SIGKILL)
    _reap(_KILLED_SECONDS)
    return False


def _reap(seconds: float) -> bool | None:
    """Wait until all children have ended; return whether there were any, None if some have not in time."""
    found, deadline = False, time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, _status = os.waitpid(-1, os.WNOHANG)
            found = found or bool(ended)
            if not ended:
                if time.monotonic() > deadline:
                    return None
                time.sleep(_SEARCH_SECONDS)
    return found


def _set_oom_score(score: int) -> None:
    """Set the score that the command inherits, in the worker: inside, it could not be lowered."""
    with contextlib.suppress(OSError):  # without CAP_SYS_RESOURCE: the command keeps the current score
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, str(score).encode())
        finally:
            os.close(file)


def _lower(one: int, other: int) -> int:
    """Return the lower of two limits, where -1 means unlimited."""
    return min((one, other), key=lambda limit: limit & (2**64 - 1))


def open_terminal(container: Container, size: TerminalSize) -> tuple[int, int]:
    """Return both ends of a pty, in the container's devpts if that is accessible, otherwise in the host's."""
    devpts = container.devpts_fd()
    pair = None if devpts is None else _open_in_devpts(devpts)
    master, slave = pair or os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", size["height"], size["width"], 0, 0))
    os.fchown(slave, size["uid"], size["gid"])
    return master, slave


def _open_in_devpts(devpts: int) -> tuple[int, int] | None:
    """Open ptmx, verifying that it is genuine: the container's root may have replaced it."""
    try:
        path = kernel.open_beside(devpts, b"ptmx")
    except OSError:
        return None
    master = -1
    try:
        if os.fstat(path).st_rdev != _PTMX_DEVICE or syscalls.filesystem_magic(path) != kernel.DEVPTS_MAGIC:
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
    """Forward signals until the command ends and report how it ended, or kill it if the caller goes away."""
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
    command.release_terminal()  # before reporting the end: only background processes keep it open now
    ended: Ended = {"code": os.waitstatus_to_exitcode(status), "errno": command.exec_errno()}
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
    """Kill every process of a session; the leader is not reaped yet, so its pid cannot have been reused.

    `proc` is a descriptor of the host's /proc, which may not be reachable by path any more.

    Repeats the search, because processes may fork meanwhile. Frozen or hanging processes die later.
    """
    os.kill(leader, signal.SIGKILL)  # in any case: it may not be a session leader yet
    for _ in range(_KILL_ROUNDS):
        members = session_members(proc, leader)
        if not members:
            return
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_SEARCH_SECONDS)


def session_members(proc: int, leader: int) -> list[int]:
    """Return the processes of a session, except zombies."""
    return [pid for pid, _parent, session in _processes(proc) if session == leader]


def _children(proc: int) -> list[int]:
    """Return the children of this process, except zombies."""
    return [pid for pid, parent, _session in _processes(proc) if parent == os.getpid()]


def _processes(proc: int) -> Iterator[tuple[int, int, int]]:
    """Yield pid, parent and session of each process, except zombies."""
    for entry in os.listdir(proc):
        if entry.isdigit():
            try:
                file = os.open(f"{entry}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            except OSError:
                continue
            try:
                state, parent, _group, session = os.read(file, 4096).rpartition(b")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            finally:
                os.close(file)
            if state not in (b"Z", b"X"):
                yield int(entry), int(parent), int(session)
