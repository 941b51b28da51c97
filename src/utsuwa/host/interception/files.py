"""mknod and setxattr: of files that the caller may write to, by its own rights."""

from __future__ import annotations

import os
import stat

from utsuwa.host import syscalls
from utsuwa.host.helper import kernel
from utsuwa.host.interception import acting
from utsuwa.host.interception.caller import CAP_DAC_OVERRIDE, CAP_MKNOD, CAP_SYS_ADMIN, signed
from utsuwa.host.interception.messages import CONTINUE, SUCCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.host.interception.caller import Caller
    from utsuwa.host.interception.messages import Answer, Notification

DEVICES = frozenset(
    {
        (1, 3),  # null
        (1, 5),  # zero
        (1, 7),  # full
        (1, 8),  # random
        (1, 9),  # urandom
        (5, 0),  # tty
        (5, 1),  # console
    }
)
"""Major and minor numbers of the character devices that can be created.

The kernel allows everybody to create 0:0, a whiteout of overlayfs.
"""

OPAQUE = b"trusted.overlay.opaque"


def mknod(call: Notification, caller: Caller) -> Answer:
    path, mode, device = call.arguments[:3]
    return _mknod(call, caller, syscalls.AT_FDCWD, path, mode, device)


def mknodat(call: Notification, caller: Caller) -> Answer:
    directory, path, mode, device = call.arguments[:4]
    return _mknod(call, caller, signed(directory), path, mode, device)


def _mknod(
    call: Notification, caller: Caller, directory: int, address: int, mode: int, device: int
) -> Answer:
    mode &= 0xFFFF
    device &= 0xFFFFFFFF
    numbers = device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00
    if not stat.S_ISCHR(mode) or numbers not in DEVICES or not caller.has(CAP_MKNOD):
        return CONTINUE
    parent, name = os.path.split(caller.string_at(address))
    if name in (b"", b".", b".."):
        return CONTINUE
    fd = _open(call, caller, directory, parent or b".", os.O_DIRECTORY)
    try:

        def create() -> None:
            # As the kernel does: the capability applies to files of the user namespace only.
            overrides = caller.has(CAP_DAC_OVERRIDE) and caller.rules(os.fstat(fd))
            os.umask(caller.umask)
            caller.assume_ids()
            kernel.set_capabilities({CAP_MKNOD, CAP_DAC_OVERRIDE} if overrides else {CAP_MKNOD})
            os.mknod(name, mode, os.makedev(*numbers), dir_fd=fd)

        acting.do(create)
    finally:
        os.close(fd)
    return SUCCESS


def setxattr(call: Notification, caller: Caller) -> Answer:
    return _setxattr_at(call, caller, 0)


def lsetxattr(call: Notification, caller: Caller) -> Answer:
    return _setxattr_at(call, caller, os.O_NOFOLLOW)


def _setxattr_at(call: Notification, caller: Caller, flags: int) -> Answer:
    if not _makes_opaque(call, caller):
        return CONTINUE
    path = caller.string_at(call.arguments[0])
    return _make_opaque(call, caller, _open(call, caller, syscalls.AT_FDCWD, path, flags))


def fsetxattr(call: Notification, caller: Caller) -> Answer:
    if not _makes_opaque(call, caller):
        return CONTINUE
    number = signed(call.arguments[0])
    fd = caller.descriptor(number)
    if caller.only_a_path(number):
        os.close(fd)
        return CONTINUE
    return _make_opaque(call, caller, fd)


def _makes_opaque(call: Notification, caller: Caller) -> bool:
    """Return whether the caller sets the one allowed attribute to the one allowed value."""
    _, name, value, size = call.arguments[:4]
    return (
        size == 1
        and caller.has(CAP_SYS_ADMIN)
        and caller.string_at(name, 256) == OPAQUE
        and caller.bytes_at(value, 1) == b"y"
    )


def _make_opaque(call: Notification, caller: Caller, fd: int) -> Answer:
    """Set the attribute of a directory of the caller's user namespace; closes the descriptor."""
    flags = signed(call.arguments[4])
    try:
        found = os.fstat(fd)
        if not stat.S_ISDIR(found.st_mode) or not caller.rules(found) or not call.waits():
            return CONTINUE

        def change() -> None:
            kernel.set_capabilities({CAP_SYS_ADMIN})
            os.setxattr(f"/proc/self/fd/{fd}", OPAQUE, b"y", flags)

        acting.do(change)
    finally:
        os.close(fd)
    return SUCCESS


def _open(call: Notification, caller: Caller, directory: int, path: bytes, flags: int) -> int:
    """Return a descriptor with O_PATH of what a path means to the caller, opened with its rights."""
    with caller.place(directory) as (namespace, root, start):
        if not call.waits():  # what was read may be another process's
            raise ProcessLookupError

        def look() -> int:
            acting.enter_container()
            caller.become(namespace, root, start)
            return os.open(path, os.O_PATH | os.O_CLOEXEC | flags)

        fd = acting.do(look)
    assert fd is not None
    return fd
