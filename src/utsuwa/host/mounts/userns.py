"""User namespaces that stand for id maps: what the kernel wants told when it maps a mount.

A namespace lives as long as a descriptor of it is open; no process stays in it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host.processes.run import run_blocking

KEPT = 64
"""Namespaces kept open for maps used last; more would only hold descriptors."""

_lock = threading.Lock()
_cache: OrderedDict[IdMap, int] = OrderedDict()


@contextmanager
def user_namespace(idmap: IdMap) -> Iterator[int]:
    """A descriptor of a user namespace with this map, for the time of the block. Blocking.

    Raises HostError where the kernel or the host's limits refuse one, ValueError for an empty map.
    """
    if idmap.privileged or not idmap.gids:
        raise ValueError("a privileged container has no id map")
    fd = os.dup(_kept(idmap))
    try:
        yield fd
    finally:
        os.close(fd)


def close_user_namespaces() -> None:
    """Close every kept descriptor, at the end of the daemon."""
    with _lock:
        while _cache:
            os.close(_cache.popitem()[1])


def _kept(idmap: IdMap) -> int:
    with _lock:
        fd = _cache.pop(idmap, None)
        if fd is None:
            fd = _create(idmap)
        _cache[idmap] = fd
        while len(_cache) > KEPT:
            os.close(_cache.popitem(last=False)[1])
        return fd


def _create(idmap: IdMap) -> int:
    """Let a small process enter a new user namespace, map it from here and take hold of it.

    The process tells its pid through one pipe and ends when the other is closed.
    """
    tell_read, tell_write = os.pipe()
    hold_read, hold_write = os.pipe()
    failure: list[Exception] = []

    def hold() -> None:
        # bash, for sh need not know descriptors above 9.
        script = f"echo $$; read -ru {hold_read} end"
        try:
            run_blocking(
                ["unshare", "--user", "--", "bash", "-c", script],
                pass_fds=(hold_read,),
                stdout_fd=tell_write,
                accept=(0, 1),
            )
        except Exception as error:
            failure.append(error)
        finally:
            os.close(tell_write)

    keeper = threading.Thread(target=hold, name="user-namespace")
    keeper.start()
    try:
        with os.fdopen(tell_read, closefd=False) as told:
            pid = told.readline().strip()
        if pid.isdigit():
            return _map_and_open(Path("/proc") / pid, idmap)
    except OSError as error:
        raise HostError(f"Cannot make a user namespace for the id map: {error}") from error
    finally:
        os.close(hold_write)
        keeper.join()
        os.close(hold_read)
        os.close(tell_read)
    why = failure[0] if failure else "its process ended early"
    raise HostError(f"Cannot make a user namespace: {why}")


def _map_and_open(process: Path, idmap: IdMap) -> int:
    for file, ranges in (("uid_map", idmap.uids), ("gid_map", idmap.gids)):
        fd = os.open(process / file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, map_lines(ranges))  # the kernel takes a map in one write only
        finally:
            os.close(fd)
    return os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)


def map_lines(ranges: Sequence[IdRange]) -> bytes:
    """The kernel's `uid_map` format: `inside outside count`, a line a range."""
    return "".join(f"{r.container} {r.host} {r.count}\n" for r in ranges).encode()
