"""Work in a forked process, with other credentials than the worker's and within a time limit."""

from __future__ import annotations

import array
import errno
import os
import select
import signal
import socket
import struct
import sys
import traceback

from utsuwa.host.helper import kernel
from utsuwa.host.helper.confinement import stay_out_of_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 8
"""Time limit of one piece of work: file systems inside, such as those of FUSE, may not respond.

liblxc waits for 30 seconds, and a call takes three pieces at most.
"""
_GRACE = 1.0
"""Seconds in which a process that was killed ends, unless a file system keeps it."""
_MAX_KEPT = 8
_ERRNO = struct.Struct("=i")

_kept: list[int] = []
"""Pids of child processes that were killed and have not been reaped.

The kernel ends no process whose request a server of FUSE has read and not answered. It does nothing any more
when the server answers or ends.
"""


def do(work: Callable[[], int | None]) -> int | None:
    """Run `work` in a child process; return the descriptor that it returns, if any.

    Raises OSError with its errno; ETIMEDOUT if it takes too long, or if too many others have not ended since,
    EIO if it fails otherwise.
    """
    _reap()
    if len(_kept) >= _MAX_KEPT:
        raise OSError(errno.ETIMEDOUT, "file systems do not respond")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                _run(work, theirs)
            finally:
                os._exit(1)
        theirs.close()
        try:
            return _result(ours)
        finally:
            _end(pid)


def _end(pid: int) -> None:
    """Kill a child process and reap it, later if it does not end."""
    os.kill(pid, signal.SIGKILL)
    _kept.append(pid)
    process = os.pidfd_open(pid)
    try:
        select.select([process], [], [], _GRACE)
    finally:
        os.close(process)
    _reap()


def _reap() -> None:
    _kept[:] = [pid for pid in _kept if not os.waitpid(pid, os.WNOHANG)[0]]


def _run(work: Callable[[], int | None], report: socket.socket) -> None:
    kernel.set_death_signal(signal.SIGKILL)
    stderr = sys.stderr
    try:
        fd, number = work(), 0
    except OSError as error:
        fd, number = None, error.errno or errno.EIO
    except BaseException:
        traceback.print_exc(file=stderr)
        return
    fds = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    report.sendmsg([_ERRNO.pack(number)], fds)


def _result(report: socket.socket) -> int | None:
    if not select.select([report], [], [], SECONDS)[0]:
        raise OSError(errno.ETIMEDOUT, "no response in time")
    space = socket.CMSG_SPACE(array.array("i").itemsize)
    data, ancillary, _, _ = report.recvmsg(_ERRNO.size, space, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise OSError(errno.EIO, "the process has failed")
    (number,) = _ERRNO.unpack(data)
    if number:
        raise OSError(number, os.strerror(number))
    fds = array.array("i")
    for _, _, payload in ancillary:
        fds.frombytes(payload)
    return fds[0] if fds else None


def enter_container() -> None:
    """Prepare a child process for paths of a container: no code is loaded by path any more."""
    stay_out_of_files()


def members(cgroup: str) -> int:
    """Return a descriptor by which processes `join` a cgroup."""
    return os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)


def join(members: int) -> None:
    """Move this process into a cgroup."""
    os.write(members, b"0")
