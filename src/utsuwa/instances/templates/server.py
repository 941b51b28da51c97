"""The process that renders templates: it runs each in a child of its own, which can reach nothing.

It has an empty root, namespaces and a user of its own, no network, no capabilities, and limits on memory
and time. Whatever a template does, it is neither the daemon's time nor its memory. Jinja2 is imported
before that, so that a template only takes as long as a fork and its rendering.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
from typing import Any

import jinja2.debug  # noqa: F401 - imported by Jinja2 only when a template fails

from utsuwa.core.errors import InvalidImage
from utsuwa.host import syscalls
from utsuwa.host.helper import kernel
from utsuwa.instances.templates.rendering import TIME_LIMIT, render
from utsuwa.instances.templates.variables import Facts, Rendering, variables

IDLE = 600.0
"""Seconds without a request after which the process ends."""
_MEMORY = 512 << 20
_SECONDS = int(TIME_LIMIT) + 2
"""The limit of processor time, and a half of that of time: `render` itself ends earlier."""
_NOBODY = 65534
_CHUNK = 1 << 20
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2


def main(control: int) -> None:
    """Start the process in the background, and return once it accepts requests.

    Each message on the socket `control` is a connected socket, with one request until the end of what can be
    read: a list of `Rendering` as JSON. The process ends when the socket is closed. Raises OSError.
    """
    _prepare()
    syscalls.unshare(sum(kernel.NAMESPACES[name] for name in ("mnt", "net", "ipc", "uts", "pid")))
    nothing = os.open(os.devnull, os.O_RDWR)
    ready, done = os.pipe()
    if os.fork():
        os.close(done)
        failure = os.read(ready, 1000)
        if failure:
            raise OSError(failure.decode())
        return
    try:
        os.setsid()
        _confine()
    except OSError as error:
        os.write(done, str(error).encode())
        os._exit(1)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(done)
    _serve(socket.socket(fileno=control))
    os._exit(0)


def _prepare() -> None:
    """Have everything imported that is imported at first use."""
    facts = Facts("", "", False, False, {}, {})
    for source in (
        "{% for a in path %}{{ a|upper|urlencode }}{% endfor %}",
        "{{ path|nope }}",
        "{{ 1 - 'a' }}",
    ):
        with contextlib.suppress(InvalidImage):
            render(source, variables(Rendering(source, "start", "/", {}, facts)))


def _confine() -> None:
    """Leave the host's files and rights behind, for good."""
    syscalls.mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    syscalls.mount("utsuwa", "/sys", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0555,size=4k")
    os.chdir("/sys")
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", _MNT_DETACH)
    os.chdir("/")
    syscalls.mount_setattr("/", attr_set=syscalls.MOUNT_ATTR_RDONLY)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    kernel.set_no_new_privileges()
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _serve(control: socket.socket) -> None:
    """Serve requests until the daemon has closed the socket, or there has been none for a while."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they have ended
    idle = False
    while True:
        if not select.select([control], [], [], IDLE)[0]:
            control.shutdown(
                socket.SHUT_RD
            )  # the daemon cannot send any more, and what it has sent is served
            idle = True
        message, connections, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            break
        for connection in connections:
            if os.fork() == 0:
                control.close()
                _answer(socket.socket(fileno=connection))
                os._exit(0)
            os.close(connection)
    if idle:
        with contextlib.suppress(ChildProcessError):
            os.wait()  # for all of them, as their signal is ignored; they end with this process


def _answer(connection: socket.socket) -> None:
    """Render templates in this process, which can do nothing else.

    The reply is JSON: for each of them, whether it has failed, and the text or the reason.
    """
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    signal.setitimer(signal.ITIMER_REAL, 2 * _SECONDS)  # whose signal ends it
    wishes = json.loads(b"".join(iter(lambda: connection.recv(_CHUNK), b"")))
    connection.sendall(json.dumps([_rendered(wish) for wish in wishes], ensure_ascii=False).encode())


def _rendered(wish: dict[str, Any]) -> tuple[bool, str]:
    try:
        facts = Facts(**wish.pop("facts"))
        return False, render(wish["source"], variables(Rendering(**wish, facts=facts)))
    except InvalidImage as error:
        return True, str(error)
