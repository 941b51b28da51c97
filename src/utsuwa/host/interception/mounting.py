"""mount: of file systems on block devices that the caller may use, or by a program of FUSE in their place.

The file system is created by the host's kernel, in a process that is in the caller's device cgroup, with a
root directory that contains a node of the device and nothing else. So it cannot refer to another device or
file, whatever the device contains.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import stat

from utsuwa.host import syscalls
from utsuwa.host.helper import cgroups, kernel
from utsuwa.host.interception import acting, fuse, mount_options
from utsuwa.host.interception.messages import CONTINUE, SUCCESS, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.host.interception.caller import Caller
    from utsuwa.host.interception.messages import Answer, Notification

_TYPE_LIMIT = 64
_DATA_LIMIT = 4096
"""A page, as the kernel reads it."""


class Settings:
    """What an instance may mount. The daemon writes it into the file that the monitor's cookie names."""

    def __init__(self, file: bytes) -> None:
        """Without the file, nothing is allowed. Raises OSError, ValueError."""
        try:
            with open(file, encoding="utf-8") as text:
                found = json.load(text)
        except FileNotFoundError:
            found = {}
        self.allowed = {*found.get("allowed", ())} & {*mount_options.OPTIONS}
        self.programs: dict[str, str] = found.get("fuse", {})
        """Programs of FUSE by file system."""
        self.shift = bool(found.get("shift"))

    def concern(self, kind: str) -> bool:
        return kind in self.allowed or kind in self.programs


def fsopen(call: Notification, caller: Caller) -> Answer:
    """Claim that the kernel lacks the call for the file systems of `mount`: programs then use that."""
    kind = os.fsdecode(caller.string_at(call.arguments[0], _TYPE_LIMIT))
    if Settings(call.cookie).concern(kind) and caller.rules_mounts(call.init):
        return failure(errno.ENOSYS)
    return CONTINUE


def mount(call: Notification, caller: Caller) -> Answer:
    source_at, target_at, kind_at, flags, data_at = call.arguments[:5]
    flags = mount_options.plain_flags(flags)
    if not kind_at or not mount_options.is_new_mount(flags):
        return CONTINUE
    kind = os.fsdecode(caller.string_at(kind_at, _TYPE_LIMIT))
    settings = Settings(call.cookie)
    if not settings.concern(kind) or not caller.rules_mounts(call.init):
        return CONTINUE
    source, target = caller.string_at(source_at), caller.string_at(target_at)
    data = caller.string_at(data_at, _DATA_LIMIT) if data_at else b""
    if kind in settings.programs:
        program = settings.programs[kind]
        return fuse.mount(call, caller, program, source, target, mount_options.fuse_options(flags, data))
    options = mount_options.options(kind, flags, data)
    if options is None:
        return CONTINUE
    return _Mount(call, caller, kind, flags, options, settings.shift).make(source, target)


class _Mount:
    """One file system to be mounted."""

    def __init__(
        self,
        call: Notification,
        caller: Caller,
        kind: str,
        flags: int,
        options: list[tuple[str, str | None]],
        shift: bool,
    ) -> None:
        self._call = call
        self._caller = caller
        self._kind = kind
        self._flags = flags
        self._options = options
        self._shift = shift
        self._cgroup = _device_cgroup(caller)

    def make(self, source: bytes, target: bytes) -> Answer:
        with self._caller.place(syscalls.AT_FDCWD) as (namespace, root, start):
            mounts = self._caller.open("ns/mnt", os.O_RDONLY)
            fds = [mounts]
            try:
                if not self._call.waits():  # what was read may be another process's
                    return CONTINUE
                look = functools.partial(self._look, namespace, root, start)
                device = acting.do(functools.partial(look, source, device=True))
                assert device is not None
                fds.append(device)
                place = acting.do(functools.partial(look, target, device=False))
                assert place is not None
                fds.append(place)
                number = os.fstat(device).st_rdev
                acting.do(functools.partial(self._attach, number, source, place, namespace, mounts))
            finally:
                for fd in fds:
                    os.close(fd)
        return SUCCESS

    def _look(self, namespace: int, root: int, start: int, path: bytes, *, device: bool) -> int:
        """Return a descriptor with O_PATH of what a path means to the caller; runs in a child process.

        A device must be one that the caller could open now, for writing unless it is mounted read-only.
        """
        acting.enter_container()
        if device:
            acting.join(acting.members(self._cgroup))
        own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._caller.become(namespace, root, start)
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if device:
            if not stat.S_ISBLK(os.fstat(found).st_mode):
                raise OSError(errno.ENOTBLK, "not a block device")
            access = os.O_RDONLY if self._flags & syscalls.MS_RDONLY else os.O_RDWR
            os.close(os.open(str(found), access | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=own))
        return found

    def _attach(self, number: int, source: bytes, place: int, namespace: int, mounts: int) -> None:
        """Create the file system and mount it; runs in a child process."""
        acting.enter_container()
        members = acting.members(self._cgroup)
        name = _root_with_device(source, number)
        acting.join(members)
        context = syscalls.fsopen(self._kind)
        syscalls.fsconfig_string(context, "source", os.fsdecode(name))
        for option, value in self._options:
            if value is None:
                syscalls.fsconfig_flag(context, option)
            else:
                syscalls.fsconfig_string(context, option, value)
        syscalls.fsconfig_create(context)
        tree = syscalls.fsmount(context, mount_options.attributes(self._flags))
        if self._shift:
            syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=namespace)
        if not self._call.waits():
            raise ProcessLookupError
        kernel.setns(mounts, kernel.NAMESPACES["mnt"])
        syscalls.move_mount(tree, place)


def _device_cgroup(caller: Caller) -> str:
    """Return the directory of the cgroup that decides on the caller's devices."""
    try:
        found = cgroups.located(caller.read("cgroup"))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from None
    return next((path for names, path in found.items() if "devices" in names), "") or found[frozenset()]


def _root_with_device(source: bytes, number: int) -> bytes:
    """Give this process a root directory with nothing in it but a device; return its path there.

    It is that of the caller, which the kernel shows as the source of the mount.
    """
    context = syscalls.fsopen("tmpfs")
    syscalls.fsconfig_create(context)
    os.fchdir(syscalls.fsmount(context))
    os.chroot(".")
    name = os.path.normpath(b"/" + source.lstrip(b"/"))
    os.makedirs(os.path.dirname(name), exist_ok=True)
    os.mknod(name, stat.S_IFBLK | 0o600, number)
    return name
