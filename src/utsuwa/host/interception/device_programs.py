"""bpf: programs that decide on devices, in cgroups that the container has created.

The kernel asks the programs of all cgroups from that of the process up to the root, and denies what one of
them denies. So a program below the container's own cgroup can only take away, if two things hold, which are
checked: programs above were attached with BPF_F_ALLOW_MULTI, as others are replaced by one below, and what is
loaded calls no function of the kernel, as there is one that changes the result of other programs.

The kernel lets everyone who has a program attach it to each cgroup whose directory he can open. So what is
not allowed here is refused, and does not continue, except for loading.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import mmap
import os
import stat

from utsuwa.host import bpf as kernel_bpf
from utsuwa.host import syscalls
from utsuwa.host.helper import cgroups, kernel
from utsuwa.host.interception import acting
from utsuwa.host.interception.caller import CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, signed
from utsuwa.host.interception.messages import CONTINUE, SUCCESS, failure, result

TYPE_CHECKING = False
if TYPE_CHECKING:
    import struct
    from collections.abc import Callable

    from utsuwa.host.interception.caller import Caller
    from utsuwa.host.interception.messages import Answer, Notification

MAX_INSTRUCTIONS = 4096
"""Of one program: the kernel's own limit for users."""
MAX_PROGRAMS = 1000
"""Of one container at a time: their machine code is not charged to it."""
_MAX_LOG = 1 << 16
"""Size of the verifier's log in bytes; a longer one is cut off."""
_MAX_ATTRIBUTES = 4096
"""A page, as for the kernel."""
_FLAGS = kernel_bpf.F_ALLOW_OVERRIDE | kernel_bpf.F_ALLOW_MULTI | kernel_bpf.F_REPLACE
_RIGHTS = (CAP_BPF, CAP_NET_ADMIN)
"""Without CAP_PERFMON and CAP_SYS_ADMIN the kernel trusts a program no more than that of a user."""
_CONSTANT = 0x18
_JUMPS = (5, 6)
_CALL, _MAY_GOTO = 0x80, 0xE0
_KERNFS_ID = 0xFE
"""The type of handles that consist of the number of a cgroup."""


_FORMS = {
    kernel_bpf.PROG_LOAD: kernel_bpf.LOAD,
    kernel_bpf.PROG_ATTACH: kernel_bpf.ATTACH,
    kernel_bpf.PROG_DETACH: kernel_bpf.ATTACH,
}


def bpf(call: Notification, caller: Caller) -> Answer:
    command, address, size = signed(call.arguments[0]), call.arguments[1], call.arguments[2] & 0xFFFFFFFF
    form = _FORMS.get(command)
    if form is None or not caller.has(CAP_SYS_ADMIN) or not caller.is_of(call.init):
        return refusal(call)
    fields = _fields(caller, address, size, form)
    if fields is None:
        return refusal(call)
    if command == kernel_bpf.PROG_LOAD:
        return _load(call, caller, fields)
    return _attach(call, caller, fields, detaches=command == kernel_bpf.PROG_DETACH)


def refusal(call: Notification) -> Answer:
    """Return the answer to a call that is not allowed."""
    loads = call.arguments[0] & kernel_bpf.COMMANDS == kernel_bpf.PROG_LOAD
    return CONTINUE if loads else failure(errno.EPERM)


def bpf_compat(call: Notification, caller: Caller) -> Answer:
    """Refuse the calls of 32-bit programs."""
    return refusal(call)


def _fields(caller: Caller, address: int, size: int, form: struct.Struct) -> tuple[int, ...] | None:
    """Return the attributes; None if others are set, or if the size is not one for the kernel either."""
    if not 0 < size <= _MAX_ATTRIBUTES:
        return None
    data = caller.bytes_at(address, size)
    if any(data[form.size :]):
        return None
    return form.unpack(data[: form.size].ljust(form.size, b"\0"))


# ---- load


def _load(call: Notification, caller: Caller, fields: tuple[int, ...]) -> Answer:
    kind, count, code_at, license_at, *_, flags, _, interface, expected = fields
    if kind != kernel_bpf.PROG_TYPE_CGROUP_DEVICE or flags or interface:
        return CONTINUE
    if expected not in (0, kernel_bpf.CGROUP_DEVICE):
        return CONTINUE
    if not 0 < count <= MAX_INSTRUCTIONS:
        return failure(errno.E2BIG)
    code = caller.bytes_at(code_at, count * kernel_bpf.INSTRUCTION.size)
    text = caller.string_at(license_at, kernel_bpf.LICENSE_LIMIT)
    if not calls_nothing(code):
        return CONTINUE
    with _Container(call.init) as container:
        name = container.mark
    folders = _charged(caller)
    if not call.waits():  # what was read may be another process's
        return CONTINUE
    if not _quota.admits(name):
        return failure(errno.ENOMEM)

    def prepare() -> None:
        for folder in folders:
            acting.join(acting.members(folder))
        kernel.set_capabilities(_RIGHTS)

    return _load_with_log(call, caller, prepare, functools.partial(kernel_bpf.load, code, text, name), fields)


def _load_with_log(
    call: Notification,
    caller: Caller,
    prepare: Callable[[], None],
    load: Callable[..., int],
    fields: tuple[int, ...],
) -> Answer:
    """Call `load` in a child process after `prepare`, and write the verifier's log to the caller's memory."""
    level, size, address = fields[4:7]
    log = mmap.mmap(-1, min(size, _MAX_LOG)) if size and address else None

    def work() -> int:
        prepare()
        try:
            return load(level, log)
        except OSError as error:
            if error.errno != errno.ENOSPC or size <= _MAX_LOG:
                raise
        return load()  # the caller's own buffer may have had enough space

    with contextlib.ExitStack() as files:
        try:
            program = _kept(files, acting.do(work))
        finally:
            if log is not None and call.waits():
                said = log[:].partition(b"\0")[0]
                caller.write(address, (said + b"\0")[: len(log)])
        return result(call.give(program))


def _kept(files: contextlib.ExitStack, fd: int | None) -> int:
    """Leave it to the stack to close a descriptor."""
    assert fd is not None
    files.callback(os.close, fd)
    return fd


def calls_nothing(code: bytes) -> bool:
    """Return whether a program consists of arithmetic, its own memory and jumps, and refers to nothing else.

    Not allowed are calls of functions, the kernel's endless loops and constants that name maps or functions.
    """
    for operation, registers, _, _ in kernel_bpf.INSTRUCTION.iter_unpack(code):
        family, action = operation & 7, operation & 0xF0
        if family == 0 and operation not in (0, _CONSTANT):  # 0 is the second half of a constant
            return False
        if operation == _CONSTANT and registers >> 4:
            return False
        if family in _JUMPS and action in (_CALL, _MAY_GOTO):
            return False
    return True


def _charged(caller: Caller) -> list[str]:
    """Return the cgroups of the caller that are charged with the memory and time of a program."""
    try:
        found = cgroups.located(caller.read("cgroup"))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from None
    return [folder for names, folder in found.items() if not names or names & {"memory", "cpu", "cpuacct"}]


class _Quota:
    """The number of programs of the container of this process: at least as many as there are."""

    def __init__(self) -> None:
        self._most = MAX_PROGRAMS

    def admits(self, name: bytes) -> bool:
        """Count one more; return False if there are too many."""
        if self._most >= MAX_PROGRAMS:
            self._most = sum(found == name for found in kernel_bpf.names())
        if self._most >= MAX_PROGRAMS:
            return False
        self._most += 1
        return True


_quota = _Quota()


# ---- attach


class _Container:
    """The container's own cgroup of version 2. Raises OSError (EPERM) if it has none."""

    def __init__(self, init: int) -> None:
        try:
            folder = cgroups.of_container(init).get(frozenset(), "")
        except ValueError as error:
            raise OSError(errno.EPERM, str(error)) from None
        if not os.path.basename(folder).startswith(cgroups.PAYLOAD_PREFIX):
            raise OSError(errno.EPERM, "no cgroup of version 2")
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        self._device = found.st_dev
        self._path = os.readlink(f"/proc/self/fd/{self._fd}")
        self.mark = b"u_" + base64.b32hexencode(found.st_ino.to_bytes(8, "big")).rstrip(b"=")
        """The name of its programs."""

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def opened(self, caller: Caller, theirs: int) -> int:
        """Return a descriptor of the cgroup that another one refers to, in whichever mount.

        Raises OSError (EPERM) if that is not one below this, of the caller's user namespace. To be called in
        a child process: it may refer to a file system that does not respond.
        """
        found = os.fstat(theirs)
        if stat.S_ISDIR(found.st_mode) and found.st_dev == self._device and caller.rules(found):
            fd = syscalls.open_by_handle_at(self._fd, _KERNFS_ID, found.st_ino.to_bytes(8, "little"))
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self._path}/"):
                return fd
            os.close(fd)
        raise OSError(errno.EPERM, "not a cgroup of the container")

    def is_confined(self) -> bool:
        """Return whether programs of this cgroup and of those above stay in force below."""
        folder = self._path
        while os.stat(folder).st_dev == self._device:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                count, flags = kernel_bpf.attached(fd)
            finally:
                os.close(fd)
            if count and not flags & kernel_bpf.F_ALLOW_MULTI:
                return False
            folder = os.path.dirname(folder)
        return True


def _program(caller: Caller, number: int, name: bytes) -> int:
    """Return a descriptor of a program with a name that a caller has open as `number`.

    A copy of the caller's descriptor would not do: to close that of a file of FUSE waits for its server.
    Raises OSError: EBADF if it is not open, EPERM if it is another file or program.
    """
    about = caller.about(signed(number))
    if about.get("prog_type") == str(kernel_bpf.PROG_TYPE_CGROUP_DEVICE) and "prog_id" in about:
        with contextlib.ExitStack() as undo:
            program = _kept(undo, kernel_bpf.program(int(about["prog_id"])))
            if kernel_bpf.name_of(program) == name:
                undo.pop_all()
                return program
    raise OSError(errno.EPERM, "not a program of the container")


def _attach(call: Notification, caller: Caller, fields: tuple[int, ...], *, detaches: bool) -> Answer:
    target, number, kind, flags, replaced = fields
    replaces = bool(flags & kernel_bpf.F_REPLACE)
    unknown = flags & ~(0 if detaches else _FLAGS) or (replaced and not replaces)
    if kind != kernel_bpf.CGROUP_DEVICE or unknown:
        return refusal(call)
    with _Container(call.init) as container, contextlib.ExitStack() as files:
        theirs = _kept(files, caller.descriptor(signed(target)))
        cgroup = _kept(files, acting.do(functools.partial(container.opened, caller, theirs)))
        numbers = (number, replaced) if replaces else (number,)
        programs = [_kept(files, _program(caller, number, container.mark)) for number in numbers]
        if not container.is_confined() or not call.waits():
            return refusal(call)

        def change() -> None:
            kernel.set_capabilities(_RIGHTS)
            if detaches:
                kernel_bpf.detach(cgroup, programs[0])
            else:
                kernel_bpf.attach(cgroup, programs[0], flags, programs[-1] if replaces else 0)

        acting.do(change)
    return SUCCESS
