"""Mounts that are left to a program of FUSE, which runs in the container like a child of the caller."""

from __future__ import annotations

import errno
import functools
import os
import select
import signal

from utsuwa.host import bpf, syscalls
from utsuwa.host.helper import cgroups, kernel, procfs
from utsuwa.host.helper.confinement import ConfinedProcess
from utsuwa.host.interception import acting
from utsuwa.host.interception.messages import CONTINUE, SUCCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.host.helper.messages import Confinement
    from utsuwa.host.interception.caller import Caller
    from utsuwa.host.interception.messages import Answer, Notification

_PATH = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_FILTERS = 8
_MISSING = 127
_SECONDS = acting.SECONDS - 1


def mount(
    call: Notification, caller: Caller, program: str, source: bytes, target: bytes, options: bytes
) -> Answer:
    """Run `program source target -o options` until it has gone to the background.

    It gets the confinement of the caller, and resolves the paths by itself.
    """
    confinement = _confinement(call.init, caller) if caller.is_root() else None
    if confinement is None:
        return CONTINUE
    argv = [os.fsencode(program), _no_option(source), _no_option(target)]
    argv += [b"-o", options] if options else []
    process = os.pidfd_open(caller.process)
    try:
        with caller.place(syscalls.AT_FDCWD) as (_, root, start):
            if not call.waits():  # what was read may be another process's
                return CONTINUE
            acting.do(functools.partial(_run, confinement, process, argv, root, start))
    finally:
        os.close(process)
    return SUCCESS


def _no_option(path: bytes) -> bytes:
    return b"./" + path if path.startswith(b"-") else path


def _confinement(init: int, caller: Caller) -> Confinement | None:
    """Return the caller's confinement, with filters that let calls through instead of notifying of them.

    The monitor, which would be notified, waits for the answer to this call. Only bpf(2) is denied: there the
    kernel does not check what `device_programs` does. The filters are read from the container's init, as a
    caller that is stopped would not wait any more. None if the caller has others.
    """
    ours = dict(line.split(":", 1) for line in procfs.read("/proc/self/status").splitlines())
    of_init = dict(line.split(":", 1) for line in procfs.read(f"/proc/{init}/status").splitlines())
    label = _label(lambda path: procfs.read(f"/proc/{init}/{path}"))
    if caller.filters != int(of_init.get("Seccomp_filters", "-2")) or label != _label(caller.read):
        return None
    try:
        filters = kernel.seccomp_filters(init, _MAX_FILTERS)
        folders = cgroups.located(caller.read("cgroup"))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from None
    dropped = int(ours["CapBnd"], 16) & ~caller.bounding
    return {
        "namespaces": sum(
            flag
            for name, flag in kernel.NAMESPACES.items()
            if caller.namespace(name) != os.stat(f"/proc/self/ns/{name}").st_ino  # noqa: PTH116
        ),
        "cgroups": [*folders.values()],
        "dropped": [number for number in range(dropped.bit_length()) if dropped >> number & 1],
        "personality": int(procfs.read(f"/proc/{init}/personality"), 16),
        "no_new_privs": caller.no_new_privs,
        "filters": [
            program.hex()
            for program in (
                *map(kernel.without_notifications, filters),
                kernel.denying(bpf.CALLS, errno.EPERM),
            )
        ],
        "label": label,
    }


def _label(read: Callable[[str], str]) -> str | None:
    """Return the AppArmor profile of a process; None if it is not confined."""
    try:
        label = read("attr/apparmor/current").rstrip("\0\n")
    except FileNotFoundError:
        return None  # a kernel without AppArmor
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # AppArmor is not enabled
    label = label.rpartition(" (")[0] if label.endswith(")") else label
    return None if label == "unconfined" else label


def _run(confinement: Confinement, process: int, argv: list[bytes], root: int, start: int) -> None:
    """Run the program to its end; in a child process. Raises OSError if it fails."""
    command = kernel.Program(argv)
    silence, writer = os.pipe()
    os.close(writer)
    output, errors = os.pipe()

    def inside(confine: Callable[[], None]) -> int:
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(start)
        confine()
        kernel.set_environment([_PATH])
        for number, fd in enumerate((silence, errors, errors)):
            os.dup2(fd, number)
        command.execute()
        return _MISSING

    pid = ConfinedProcess(confinement, process).fork(inside)
    ended = os.pidfd_open(pid)
    if not select.select([ended], [], [], _SECONDS)[0]:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(output)
    if status:
        raise OSError(errno.ENODEV if status == _MISSING else errno.EINVAL, "the program has failed")
