"""The process whose system call was intercepted: its memory, credentials and view of the file system."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from utsuwa.host import syscalls
from utsuwa.host.helper import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CAP_DAC_OVERRIDE = 1
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_MKNOD = 27
CAP_BPF = 39

_PATH_MAX = 4096
_PAGE = 4096
_O_PATH = 0o10000000
"""As in fdinfo, on the architectures that are known here."""


class Caller:
    """A caller, by its directory in /proc and the descriptor of its memory.

    What is read belongs to it only if its call still waits afterwards. All reading raises OSError.
    """

    def __init__(self, folder: int, memory: int) -> None:
        self._folder = folder
        self._memory = memory
        fields = dict(line.split(":", 1) for line in self.read("status").splitlines() if ":" in line)
        self.process = int(fields["Tgid"])
        """Its pid, of which it may be a thread."""
        self.uid = int(fields["Uid"].split()[3])
        """Its file-system uid, as all ids here one of the host."""
        self.gid = int(fields["Gid"].split()[3])
        self.groups = [int(group) for group in fields["Groups"].split()]
        self.umask = int(fields["Umask"], 8)
        self.capabilities = int(fields["CapEff"], 16)
        self.bounding = int(fields["CapBnd"], 16)
        self.no_new_privs = int(fields["NoNewPrivs"])
        self.filters = int(fields.get("Seccomp_filters", "-1"))
        """Number of its seccomp filters."""
        self.inner_pid = int(fields["NSpid"].split()[-1])
        """Its number in its own PID namespace; that of a thread."""
        self._uids = self._ranges("uid_map")
        self._gids = self._ranges("gid_map")

    def read(self, name: str) -> str:
        """Return the text of a file in its directory in /proc."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        with open(fd, errors="surrogateescape") as file:
            return file.read()

    def _ranges(self, name: str) -> list[range]:
        lines = (line.split() for line in self.read(name).splitlines())
        return [range(int(host), int(host) + int(count)) for _, host, count in lines]

    def has(self, capability: int) -> bool:
        """Return whether it has a capability in its own user namespace."""
        return bool(self.capabilities >> capability & 1)

    def rules(self, found: os.stat_result) -> bool:
        """Return whether both ids of an inode are of its user namespace, so that its capabilities apply."""
        return any(found.st_uid in ids for ids in self._uids) and any(
            found.st_gid in ids for ids in self._gids
        )

    def has_32_bits(self) -> bool:
        """Return whether it runs a 32-bit program on a kernel of 64 bits.

        Keys and values of its auxiliary vector have 32 bits then. It begins with the address of the vDSO.
        """
        auxv = self.open("auxv", os.O_RDONLY)
        try:
            key = int.from_bytes(os.read(auxv, 8), sys.byteorder)
        finally:
            os.close(auxv)
        return key >> 32 != 0

    def is_root(self) -> bool:
        """Return whether it is root in its user namespace."""
        inner, host, _ = self.read("uid_map").split()[:3]
        return inner == "0" and self.uid == int(host)

    def namespace(self, name: str) -> int:
        """Return the inode number of one of its namespaces."""
        return os.stat(f"ns/{name}", dir_fd=self._folder).st_ino

    def is_of(self, init: int) -> bool:
        """Return whether it is in the user namespace of a container itself.

        `init` is a pid of the container's init. Every user of the container can create a namespace below, and
        has all capabilities there.
        """
        return self.namespace("user") == os.stat(f"/proc/{init}/ns/user").st_ino

    def rules_mounts(self, init: int) -> bool:
        """Return whether it may mount in its mount namespace by rights of a container's user namespace.

        `init` is a pid of the container's init. One in a user namespace below does not suffice: every user of
        the container can create such a one.
        """
        of_init = os.stat(f"/proc/{init}/ns/user").st_ino
        if not self.has(CAP_SYS_ADMIN) or self.namespace("user") != of_init:
            return False
        mounts = self.open("ns/mnt", os.O_RDONLY)
        try:
            owner = kernel.owner_of(mounts)
        finally:
            os.close(mounts)
        try:
            return os.fstat(owner).st_ino == of_init
        finally:
            os.close(owner)

    def open(self, name: str, flags: int = os.O_PATH) -> int:
        """Open an entry of its directory in /proc, following its link."""
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._folder)

    def descriptor(self, number: int) -> int:
        """Return a descriptor with O_PATH of one of its open files. Raises OSError (EBADF)."""
        try:
            return self.open(f"fd/{number}")
        except FileNotFoundError:
            raise OSError(errno.EBADF, "not open") from None

    def about(self, number: int) -> dict[str, str]:
        """Return what the kernel tells of one of its open files in fdinfo. Raises OSError (EBADF)."""
        try:
            lines = self.read(f"fdinfo/{number}").splitlines()
        except FileNotFoundError:
            raise OSError(errno.EBADF, "not open") from None
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def only_a_path(self, number: int) -> bool:
        """Return whether an open file was opened with O_PATH."""
        return bool(int(self.about(number)["flags"], 8) & _O_PATH)

    def bytes_at(self, address: int, size: int) -> bytes:
        """Return a part of its memory. Raises OSError (EFAULT) if it is not readable."""
        try:
            data = os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            data = b""
        if len(data) != size:
            raise OSError(errno.EFAULT, "not its memory")
        return data

    def string_at(self, address: int, limit: int = _PATH_MAX) -> bytes:
        """Return a string of less than `limit` bytes. Raises OSError (EFAULT, ENAMETOOLONG)."""
        found = bytearray()
        while len(found) < limit:
            size = min(_PAGE - address % _PAGE, limit - len(found))
            part, end, _ = self.bytes_at(address, size).partition(b"\0")
            found += part
            if end:
                return bytes(found)
            address += size
        raise OSError(errno.ENAMETOOLONG, "too long")

    def write(self, address: int, data: bytes) -> None:
        """Write to its memory. Raises OSError (EFAULT)."""
        try:
            written = os.pwrite(self._memory, data, address)
        except (OSError, OverflowError):
            written = 0
        if written != len(data):
            raise OSError(errno.EFAULT, "not its memory")

    def assume_ids(self) -> None:
        """Give this process its ids for the file system; capabilities other than those for files remain."""
        os.setgroups(self.groups)
        syscalls.setfsgid(self.gid)
        syscalls.setfsuid(self.uid)

    @contextlib.contextmanager
    def place(self, directory: int) -> Iterator[tuple[int, int, int]]:
        """Yield descriptors of its user namespace, its root, and the directory at which relative paths begin.

        `directory` is that argument of the call.
        """
        fds: list[int] = []
        try:
            fds.append(self.open("ns/user", os.O_RDONLY))
            fds.append(self.open("root"))
            fds.append(self.open("cwd") if directory == syscalls.AT_FDCWD else self.descriptor(directory))
            yield fds[0], fds[1], fds[2]
        finally:
            for fd in fds:
                os.close(fd)

    def become(self, namespace: int, root: int, start: int) -> None:
        """Turn this process into one with its credentials, user namespace, root and working directory.

        It stays in the host's PID namespace, so nobody in the container can see it.
        """
        kernel.set_not_dumpable()
        self.assume_ids()
        kernel.setns(namespace, kernel.NAMESPACES["user"])
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(start)
        kernel.set_capabilities(bit for bit in range(64) if self.has(bit))


def signed(argument: int) -> int:
    """Return an argument of the type `int`."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
