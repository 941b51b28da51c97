"""`utsuwa file mount`: sshfs, connected with the SFTP endpoint of the instance."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client import lean

_CHUNK = 256 * 1024


def _run(session: Session, arguments: list[str], _flags: Flags) -> int:
    remote, rest = session.config.split(arguments[0])
    instance, _, path = rest.partition("/")
    if not instance:
        raise UsageError("Specify an instance")
    if len(arguments) < 2:
        raise UsageError("Specify the directory to mount it on")
    target = arguments[1]
    if not os.path.isdir(target):
        raise CommandFailed(f"The target {target} is not a directory")
    program = shutil.which("sshfs")
    if program is None:
        raise CommandFailed("sshfs was not found: install it")
    sock, ahead = session.server(remote).upgrade(path_to("instances", instance, "sftp"), {"Upgrade": "sftp"})
    session.say(f"sshfs mounting {instance}/{path} on {target}\nPress ctrl+c to finish")
    ours, theirs = socket.socketpair()
    with theirs:
        streams = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), number) for number in (0, 1)]
        command = [program, "-f", "-o", "passive", f"{instance}:/{path}", target]
        pid = os.posix_spawn(program, command, os.environ, file_actions=streams)
    for source, drain, first in ((sock, ours, ahead), (ours, sock, b"")):
        threading.Thread(target=_copy, args=(source, drain, first), daemon=True).start()
    status = _wait(pid)
    session.say("sshfs has stopped")
    return abs(status)


def _wait(pid: int) -> int:
    while True:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            pass  # sshfs gets the interrupt as well, and unmounts


def _copy(source: lean.Socket, drain: lean.Socket, first: bytes) -> None:
    """Copy until one of the ends is closed; then the other one is, too."""
    try:
        if first:
            drain.sendall(first)
        while data := source.recv(_CHUNK):
            drain.sendall(data)
    except OSError as error:
        sys.stderr.write(f"The connection broke: {error}\n")
    finally:
        try:
            drain.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


COMMAND = Command(
    "mount",
    "Mount files from instances",
    _run,
    args="[<remote>:]<instance>[/<path>] <target path>",
    complete=("instances", ()),
    details="Needs sshfs, and mounts until it is interrupted.",
    example=("utsuwa file mount web/root webroot", "Mount /root of the instance on the directory webroot."),
)
