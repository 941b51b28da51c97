"""Work that must be done with the file-system ids of a container's root.

The kernel creates files below an idmapped mount only for ids that the map knows, and gives an
overlay of idmapped layers the ids of the thread that mounts it. Such work runs in a thread of its
own that ends with it, so that no thread of a pool keeps changed credentials.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from utsuwa.core.idmap import IdMap
from utsuwa.host import syscalls

T = TypeVar("T")


def as_container_root(idmap: IdMap, work: Callable[[], T]) -> T:
    """Run `work` in a thread with the host ids of the container's root and all capabilities. Blocking.

    The thread's working directory and umask are its own. What `work` raises is raised here.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
            syscalls.setfsgid(idmap.host_gid(0))
            syscalls.setfsuid(idmap.host_uid(0))
            syscalls.raise_capabilities()  # a change of the file-system uid took some away
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="container-root")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
