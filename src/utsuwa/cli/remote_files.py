"""The files of one instance, over the API."""

from __future__ import annotations

import os

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.client.errors import ApiError, BadAnswer
from utsuwa.client.server import path_to, quote
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.http import FileBody, Reply
    from utsuwa.client.server import Server

NOT_FOUND, CONFLICT, BAD_REQUEST = 404, 409, 400


_AHEAD = 32
"""Maximum number of requests whose replies have not been read."""
_LINKS = 40
"""Maximum number of symlinks that lead from one to another."""


class Owner:
    """Owner and mode of a new file; None leaves them to the server."""

    def __init__(self, uid: int | None = None, gid: int | None = None, mode: int | None = None) -> None:
        self.uid = uid
        self.gid = gid
        self.mode = mode


class File:
    """A file of an instance whose content has not been read yet."""

    def __init__(self, reply: Reply) -> None:
        headers = reply.headers
        self.reply = reply
        self.type = headers.get("x-lxd-type") or headers.get("x-incus-type") or "file"
        mode = headers.get("x-lxd-mode") or headers.get("x-incus-mode") or "0644"
        self.mode = int(mode, 8) & 0o7777
        self.size = int(headers.get("content-length") or 0)

    def chunks(self) -> Iterator[bytes]:
        return self.reply.stream()

    def target(self) -> str:
        """Return the target of a symlink."""
        return os.fsdecode(self.content())

    def content(self) -> bytes:
        """Read all of it, also to discard it."""
        return self.reply.read()


class RemoteFiles:
    """Methods raise ApiError. Paths may contain any bytes, as surrogates."""

    def __init__(self, server: Server, instance: str) -> None:
        self.server = server
        self.instance = instance
        self._ahead = 0
        """Number of pushes whose replies have not been read."""

    def get(self, path: str, *, archive: bool = False) -> File:
        """Request a file or symlink; its content must be read before the next request.

        With `archive`, a directory is an archive, if the server makes them.
        """
        headers = {"X-LXD-type": "archive"} if archive and self.takes_archives() else None
        return File(self._ask("GET", path, headers=headers))

    def get_each(self, paths: Sequence[str]) -> Iterator[File | ApiError]:
        """Request files ahead, and yield them in order, or why one cannot be had.

        The content of each must be read before the next is asked for.
        """
        self.settle()
        sent = received = 0
        try:
            while received < len(paths):
                while sent < min(received + _AHEAD, len(paths)):
                    self.server.send_ahead("GET", self._url(paths[sent]), b"", {})
                    sent += 1
                reply = self.server.reply_ahead("GET")
                received += 1
                yield self._file_or_error(reply)
        finally:
            if received < sent:
                self.server.close()  # nobody will read the other replies

    def _file_or_error(self, reply: Reply) -> File | ApiError:
        try:
            return File(self.server.checked(reply))
        except ApiError as error:
            return error

    def followed(self, path: str) -> File:
        """Request a file, following symlinks. Raises CommandFailed for a directory."""
        for _ in range(_LINKS):
            file = self.get(path)
            if file.type == "directory":
                file.content()
                raise CommandFailed(f"{shown(path)} is a directory")
            if file.type != "symlink":
                return file
            target = file.target()
            path = target if target.startswith("/") else f"{path.rpartition('/')[0]}/{target}"
        raise CommandFailed(f"Too many symlinks: {shown(path)}")

    def names(self, file: File, path: str) -> list[str]:
        """Return the names in a directory that `get` has returned. Raises BadAnswer for those of no file."""
        found = self.server.metadata(file.reply) or []
        for name in found:
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
                raise BadAnswer(f"The server lists an invalid file name in {path}: {name!r}")
        return sorted(set(found))

    def type_of(self, path: str) -> str:
        return File(self._ask("HEAD", path)).type

    def push(self, path: str, content: bytes | Iterable[bytes] | FileBody, owner: Owner) -> None:
        self._post(path, "file", content, owner)

    def push_ahead(self, path: str, content: bytes, owner: Owner) -> None:
        """Push a small file without waiting: errors are raised by one of the next requests, or `settle`."""
        if self._ahead == _AHEAD:
            self._settle_one()
        self.server.send_ahead("POST", self._url(path), content, _headers("file", owner))
        self._ahead += 1

    def takes_archives(self) -> bool:
        """Whether the server unpacks and makes archives (LXD and Incus do not)."""
        return self.server.has("instance_files_archive")

    def push_archive(self, path: str, chunks: Iterable[bytes]) -> None:
        """Have a tar archive unpacked below a directory."""
        try:
            self._post(path, "archive", chunks, Owner())
        except BaseException:
            self.server.close()  # in the middle of the request, perhaps
            raise

    def settle(self) -> None:
        """Wait until all pushes are done."""
        while self._ahead:
            self._settle_one()

    def _settle_one(self) -> None:
        self._ahead -= 1
        try:
            self.server.checked(self.server.reply_ahead("POST")).read()
        except UtsuwaError:
            self._ahead = 0
            self.server.close()  # nobody will read the other replies
            raise

    def make_directory(self, path: str, owner: Owner) -> None:
        """Create a directory; does nothing if it exists."""
        self._post(path, "directory", b"", owner)

    def make_directories(self, path: str, owner: Owner) -> None:
        """Create a directory and its parents, as far as they are missing."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for count in range(1, len(parts) + 1):
            try:
                self.make_directory("/" + "/".join(parts[:count]), owner)
            except ApiError as error:
                if error.code != CONFLICT or count == len(parts):
                    raise  # a symlink on the way may lead to a directory

    def make_symlink(self, path: str, target: str, owner: Owner) -> None:
        """Create a symlink; another symlink is replaced."""
        try:
            self._post(path, "symlink", os.fsencode(target), owner)
        except ApiError as error:
            if error.code != CONFLICT or self.type_of(path) != "symlink":
                raise
            self.delete(path)
            self._post(path, "symlink", os.fsencode(target), owner)

    def delete(self, path: str) -> None:
        self._ask("DELETE", path).read()

    def _post(self, path: str, kind: str, content: bytes | Iterable[bytes] | FileBody, owner: Owner) -> None:
        self._ask("POST", path, content, _headers(kind, owner)).read()

    def _url(self, path: str) -> str:
        return f"{path_to('instances', self.instance, 'files')}?path={quote(path)}"

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | FileBody | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        self.settle()
        reply = self.server.raw(method, self._url(path), body, headers)
        if method == "HEAD" and reply.status >= BAD_REQUEST:
            raise ApiError(f"{path} does not exist, or is not a file", reply.status)
        return self.server.checked(reply)


def _headers(kind: str, owner: Owner) -> dict[str, str]:
    headers = {"Content-Type": "application/octet-stream", "X-LXD-type": kind, "X-LXD-write": "overwrite"}
    if owner.uid is not None:
        headers["X-LXD-uid"] = str(owner.uid)
    if owner.gid is not None:
        headers["X-LXD-gid"] = str(owner.gid)
    if owner.mode is not None:
        headers["X-LXD-mode"] = f"0{owner.mode:o}"  # servers take a number without a leading 0 as decimal
    return headers


def parse(session: Session, text: str) -> tuple[RemoteFiles, str]:
    """Return the files and the path of `[<remote>:]<instance>/<path>`. Raises UsageError."""
    remote, rest = session.config.split(text)
    instance, slash, path = rest.partition("/")
    if not instance or not slash:
        raise UsageError(f"Invalid target {text}: write <instance>/<path>")
    return RemoteFiles(session.server(remote), instance), f"/{path}"


def given_owner(flags: Flags) -> Owner:
    """Return what the flags uid, gid and mode say. Raises UsageError."""
    return Owner(_number(flags, "uid", 10), _number(flags, "gid", 10), _number(flags, "mode", 8))


def _number(flags: Flags, name: str, base: int) -> int | None:
    text = flags.text(name)
    if not text or text == "-1":
        return None
    try:
        return int(text, base)
    except ValueError:
        raise UsageError(f"Invalid --{name} {text!r}") from None


def shown(path: str) -> str:
    """Return a path as messages show it."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
