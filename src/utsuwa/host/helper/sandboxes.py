"""The helper's side of sandboxes: a worker builds that of `jail` before it is told what to do in it.

That takes less than the start of an interpreter. The first process of the sandbox keeps nothing open of what
is open here, has a session of its own, and sees the tree of its job as a mount that the daemon has made.
"""

from __future__ import annotations

import os
import socket

from utsuwa.host import syscalls
from utsuwa.host.archives import jail
from utsuwa.host.helper import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.host.helper.messages import SandboxJob

_MOST_DESCRIPTORS = 1 << 20


def begin(calls: socket.socket) -> int:
    """Start a sandbox that does the job of which it is told; return the pid of its first process."""
    return jail.begin(lambda: _serve(calls))


def _serve(calls: socket.socket) -> int:
    os.setsid()  # a signal to its process group must not reach the helper, whatever their namespaces
    jail.enter()
    received = protocol.receive(calls)
    if received is None:
        return 1  # nothing is to be done
    job: SandboxJob
    job, (tree, *streams) = received
    syscalls.move_mount(tree, "/target")
    os.chdir("/target")
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, _MOST_DESCRIPTORS)
    return jail.stream(job["job"])
