"""The helper's side of a session: a worker that serves a series of calls instead of one request.

A session has two sockets. The one of the request is only ever closed, which kills the worker even if it hangs
in the kernel; calls and their replies pass through the other. Content of files passes through shared memory.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat

from utsuwa.core.tarstream import DIRECTORY, FILE, BadArchive, TarStream
from utsuwa.host import syscalls
from utsuwa.host.files.confined import ConfinedTree, NotRegular, entry_of
from utsuwa.host.files.uploads import Upload, put, write_all
from utsuwa.host.helper import kernel, protocol
from utsuwa.host.helper.packing import Packing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from utsuwa.core.tarstream import Member
    from utsuwa.host.files.confined import Entry
    from utsuwa.host.helper.messages import CallFailed, CallResult, Packed, Pulled, Unpacked

BUFFER = 1024 * 1024
"""Size of the memory that a session shares with its worker, in bytes."""


def serve(calls: socket.socket, methods: Mapping[str, Callable[..., Any]]) -> None:
    """Serve calls until the caller closes its end. Descriptors come first among a method's arguments."""
    while (received := protocol.receive(calls)) is not None:
        call, fds = received
        reply: CallResult | CallFailed
        passed: list[int] = []
        try:
            result = methods[call["call"]](*fds, *call["args"])
            reply = {"ok": result}
            if isinstance(result, Descriptor):
                passed.append(result)
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path, an id that is none
            number, reason = reason_of(error)
            reply = {"errno": number, "error": reason}
        for fd in fds:
            os.close(fd)
        protocol.send(calls, reply, passed)


class Descriptor(int):
    """The result of a call that passes this descriptor to the caller."""


def enter_user_namespace(fd: int) -> None:
    """Become root of a user namespace, without any privilege outside of it."""
    kernel.setns(fd, kernel.NAMESPACES["user"])
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


class FileCalls:
    """The calls of a session for the files below a directory.

    A handle is the number of a descriptor in this process; those that are left open close with the session.
    """

    def __init__(self, root: int, memory: int, *, host_root: bool) -> None:
        self._tree = ConfinedTree(root, host_root=host_root)
        self._buffer = memoryview(mmap.mmap(memory, BUFFER))
        self._handles: set[int] = set()
        self._uploads: dict[int, Upload] = {}
        """Those that are not committed, by handle."""
        self._archive: Unpacking | None = None
        self._packing: Packing | None = None
        self._mount = syscalls.mount_id(root)

    def methods(self) -> dict[str, Callable[..., Any]]:
        """All calls by name."""
        tree = self._tree
        calls = (
            tree.change,
            tree.entries,
            tree.link,
            tree.make_directory,
            tree.make_symlink,
            tree.names,
            tree.remove,
            tree.rename,
            tree.space,
            tree.stat,
            tree.target,
            self.change_open,
            self.close,
            self.commit,
            self.create,
            self.entry,
            self.open,
            self.open_directory,
            self.pack,
            self.pull,
            self.push,
            self.read,
            self.share,
            self.sync,
            self.truncate,
            self.unpack,
            self.write,
        )
        return {call.__name__: call for call in calls}

    def open(self, path: str, flags: int) -> int:
        return self._hold(self._tree.open(path, flags))

    def open_directory(self, path: str) -> int:
        """Open a directory, of which nothing can be read: for clients that open whatever there is."""
        return self._hold(self._tree.open_directory(path))

    def create(self, path: str, flags: int, mode: int, owner: tuple[int, int]) -> tuple[int, bool]:
        fd, created = self._tree.create(path, flags, mode, owner)
        return self._hold(fd), created

    def close(self, handle: int) -> None:
        """Close a file; an upload that is not committed is gone."""
        self._handles.remove(handle)
        upload = self._uploads.pop(handle, None)
        if upload is not None:
            upload.abandon()
        else:
            os.close(handle)

    def commit(self, handle: int) -> None:
        """Close an upload: the file has its content now."""
        self._handles.remove(handle)
        self._uploads.pop(handle).commit(self.cannot_hang)

    def entry(self, handle: int) -> Entry:
        return entry_of(os.fstat(handle))

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def change_open(
        self, handle: int, owner: Sequence[int] | None, mode: int | None, times: Sequence[int] | None
    ) -> None:
        """As `change` of the tree, for an open file."""
        if owner is not None:
            os.fchown(handle, owner[0], owner[1])
        if mode is not None:
            os.fchmod(handle, mode)
        if times is not None:
            os.utime(handle, ns=(times[0], times[1]))

    def sync(self, handle: int) -> None:
        os.fsync(handle)

    def read(self, handle: int, size: int, offset: int) -> int:
        """Read into the buffer; return the number of bytes, 0 at the end of the file."""
        return os.preadv(handle, [self._buffer[:size]], offset)

    def write(self, handle: int, size: int, offset: int) -> None:
        """Write the first bytes of the buffer; the offset does not matter for files opened to append."""
        write_all(handle, self._buffer[:size], offset)

    def share(self, handle: int) -> Descriptor | None:
        """Pass an open file to the caller, which cannot hang there."""
        return Descriptor(handle) if self.cannot_hang(handle) else None

    def cannot_hang(self, fd: int) -> bool:
        """Whether a file is one of the root file system itself, and not of another mount."""
        return syscalls.mount_id(fd) == self._mount

    def pull(self, path: str) -> Pulled:
        """Read the beginning of a regular file, all of a directory or a symlink: what most requests need."""
        entry = self._tree.stat(path)
        found: Pulled = {"entry": entry, "names": None, "target": None, "size": 0, "handle": None}
        if stat.S_ISDIR(entry[0]):
            found["names"] = sorted(self._tree.names(path))
        elif stat.S_ISLNK(entry[0]):
            found["target"] = self._tree.target(path)
        elif not stat.S_ISREG(entry[0]):
            raise NotRegular(entry[0], path)
        else:
            handle = self.open(path, os.O_RDONLY)
            found["entry"], found["handle"] = self.entry(handle), handle
            found["size"] = size = self.read(handle, BUFFER, 0)
            if size < BUFFER and not os.pread(handle, 1, size):
                self.close(handle)
                found["handle"] = None
        return found

    def push(self, path: str, append: bool, mode: int, owner: tuple[int, int], size: int, more: bool) -> int:
        """Write a file whose content is in the buffer; return -1.

        If `more` follows, the buffer is only the beginning: return the handle of an upload, for `write` and
        `commit`.
        """
        if not more:
            self.put(path, self._buffer[:size], append=append, mode=mode, owner=owner)
            return -1
        upload = self.upload(path, append=append, mode=mode, owner=owner)
        try:
            self.write(upload.fd, size, 0)
        except OSError:
            upload.abandon()
            raise
        self._uploads[upload.fd] = upload
        return self._hold(upload.fd)

    def upload(self, path: str, *, append: bool, mode: int, owner: tuple[int, int]) -> Upload:
        return Upload(self._tree, path, append=append, mode=mode, owner=owner)

    def put(self, path: str, content: memoryview, *, append: bool, mode: int, owner: tuple[int, int]) -> None:
        """Write a file whose whole content is there."""
        put(self._tree, path, content, append=append, mode=mode, owner=owner, cannot_hang=self.cannot_hang)

    def unpack(self, path: str, size: int, first: bool, last: bool) -> Unpacked:
        """Unpack the part of a tar archive that is in the buffer, below a directory.

        Existing directories stay as they are; files are replaced as by `push`, symlinks by others.
        Raises OSError with EINVAL for what is not such an archive.
        """
        if first or self._archive is None:
            self._archive = Unpacking(self, self._tree, path)
        return self._archive.feed(self._buffer[:size], last)

    def pack(self, path: str, first: bool) -> Packed:
        """Write the next part of the archive of a directory to the buffer."""
        if first or self._packing is None:
            if self._packing is not None:
                self._packing.close()
            self._packing = Packing(self._tree, path)
        size, more = self._packing.fill(self._buffer)
        if not more:
            self._packing = None
        return {"size": size, "more": more}

    def _hold(self, fd: int) -> int:
        self._handles.add(fd)
        return fd


class Unpacking:
    """The sink of an archive whose members are created below a directory."""

    def __init__(self, calls: FileCalls, tree: ConfinedTree, folder: str) -> None:
        self._calls = calls
        self._tree = tree
        self._folder = folder.rstrip("/")
        self._stream = TarStream(self)
        self._path = ""
        self._member: Member | None = None
        self._upload: Upload | None = None
        self._offset = 0
        self._created: list[str] = []

    def feed(self, data: memoryview, last: bool) -> Unpacked:
        """Return the paths that are complete now, and why the next one failed; nothing can follow then."""
        self._created = []
        failure = None
        try:
            self._stream.feed(data)
            if last:
                self._stream.close()
        except (OSError, ValueError) as error:
            number, reason = reason_of(error)
            failure = (number, reason, self._folder if isinstance(error, BadArchive) else self._path)
        if (failure or last) and self._upload is not None:
            self._upload.abandon()
        return {"created": self._created, "failure": failure}

    def member(self, member: Member) -> None:
        self._member, self._path, self._offset = member, f"{self._folder}/{member.path}", 0
        if member.type == FILE:
            return
        if not member.path:
            if not stat.S_ISDIR(self._tree.stat(self._path, follow=True)[0]):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._path)
        elif member.type == DIRECTORY:
            self._make_directory(member)
        else:
            self._make_symlink(member)

    def _make_directory(self, member: Member) -> None:
        try:
            self._tree.make_directory(self._path, member.mode, member.owner)
        except FileExistsError:
            if not stat.S_ISDIR(self._tree.stat(self._path, follow=True)[0]):
                raise

    def _make_symlink(self, member: Member) -> None:
        try:
            self._tree.make_symlink(self._path, member.target, member.owner)
        except FileExistsError:
            if not stat.S_ISLNK(self._tree.stat(self._path)[0]):
                raise
            if self._tree.target(self._path) != member.target:
                self._tree.remove(self._path)
                self._tree.make_symlink(self._path, member.target, member.owner)

    def content(self, data: memoryview) -> None:
        member = self._member
        assert member is not None
        if self._upload is None:
            if len(data) == member.size:
                self._put(member, data)
                return
            self._upload = self._calls.upload(self._path, append=False, mode=member.mode, owner=member.owner)
        write_all(self._upload.fd, data, self._offset)
        self._offset += len(data)

    def comment(self, text: str) -> None:
        """Comments are of no use here."""

    def end(self) -> None:
        member = self._member
        assert member is not None
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.commit(self._calls.cannot_hang)
        elif member.type == FILE and not member.size:
            self._put(member, memoryview(b""))
        self._created.append(self._path)

    def _put(self, member: Member, data: memoryview) -> None:
        self._calls.put(self._path, data, append=False, mode=member.mode, owner=member.owner)


def reason_of(error: OSError | ValueError) -> tuple[int, str]:
    """Return the errno and the text of an error; a ValueError stands for an invalid argument."""
    if isinstance(error, OSError):
        return error.errno or errno.EINVAL, error.strerror or type(error).__name__
    return errno.EINVAL, str(error)
