"""Work that must run with the file-system ids of a container's root.

The kernel creates files below an idmapped mount only for mapped ids, and an overlay of idmapped layers
uses the ids of the thread that mounts it. Such work runs in a dedicated thread, so that no thread of a
pool keeps changed credentials.
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

    The thread has its own working directory and umask. Exceptions of `work` are raised here.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
            syscalls.setfsgid(idmap.host_gid(0))
            syscalls.setfsuid(idmap.host_uid(0))
            syscalls.raise_capabilities()  # changing the file-system uid dropped some
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="container-root")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
