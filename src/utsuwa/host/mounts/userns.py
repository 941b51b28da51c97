"""User namespaces for id maps: the kernel takes the map of an idmapped mount from one.

A namespace exists as long as a descriptor of it is open; no process stays in it.
"""

from __future__ import annotations

import functools
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
"""Number of most recently used namespaces to keep open; more would only occupy descriptors."""

_ALL_IDS = 2**32 - 1

_lock = threading.Lock()
_cache: OrderedDict[IdMap, int] = OrderedDict()


@functools.cache
def in_user_namespace(proc: Path = Path("/proc")) -> bool:
    """Return whether this process is in another user namespace than the initial one, as in a container."""
    return (proc / "self/uid_map").read_text().split() != ["0", "0", str(_ALL_IDS)]


@contextmanager
def user_namespace(idmap: IdMap) -> Iterator[int]:
    """Yield a descriptor of a user namespace with this map, valid within the block. Blocking.

    Raises HostError if the kernel or the host's limits prevent it, ValueError for an empty map.
    """
    if idmap.privileged or not idmap.gids:
        raise ValueError("a privileged container has no id map")
    fd = os.dup(_kept(idmap))
    try:
        yield fd
    finally:
        os.close(fd)


def close_user_namespaces() -> None:
    """Close all cached descriptors, when the daemon ends."""
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
    """Have a small process enter a new user namespace, write its map from here and open it.

    The process reports its pid through one pipe and exits when the other is closed.
    """
    tell_read, tell_write = os.pipe()
    hold_read, hold_write = os.pipe()
    failure: list[Exception] = []

    def hold() -> None:
        # bash, because sh need not support descriptors above 9.
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
            os.write(fd, map_lines(ranges))  # the kernel accepts a map in a single write only
        finally:
            os.close(fd)
    return os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)


def map_lines(ranges: Sequence[IdRange]) -> bytes:
    """Format for the kernel's `uid_map`: `inside outside count`, one line per range."""
    return "".join(f"{r.container} {r.host} {r.count}\n" for r in ranges).encode()
