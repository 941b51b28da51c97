"""A worker's service of one container: receive a call, handle it, answer."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct
import sys
import time
import traceback

from utsuwa.host import bpf
from utsuwa.host.interception import device_programs, files, mounting, scheduling, sysinfo
from utsuwa.host.interception.caller import Caller
from utsuwa.host.interception.messages import CONTINUE, failure, receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from utsuwa.host.interception.messages import Answer, Notification

    Handler = Callable[[Notification, Caller], Answer]

_GENERIC: Mapping[int, Handler] = {
    5: files.setxattr,
    6: files.lsetxattr,
    7: files.fsetxattr,
    33: files.mknodat,
    40: mounting.mount,
    119: scheduling.sched_setscheduler,
    179: sysinfo.sysinfo,
    280: device_programs.bpf,
    430: mounting.fsopen,
}
MACHINES: Mapping[str, tuple[int, Mapping[int, Handler]]] = {
    "x86_64": (
        0xC000003E,
        {
            99: sysinfo.sysinfo,
            133: files.mknod,
            144: scheduling.sched_setscheduler,
            165: mounting.mount,
            188: files.setxattr,
            189: files.lsetxattr,
            190: files.fsetxattr,
            259: files.mknodat,
            321: device_programs.bpf,
            430: mounting.fsopen,
        },
    ),
    "aarch64": (0xC00000B7, _GENERIC),
    "riscv64": (0xC00000F3, _GENERIC),
}
"""By machine: the kernel's number of its architecture, and the handlers by the number of the call.

Calls of 32-bit programs, whose numbers and structures differ, continue, but for those of `_COMPAT`.
"""
_COMPAT: Mapping[tuple[int, int], Handler] = dict.fromkeys(bpf.CALLS, device_programs.bpf_compat)
"""Handlers of calls of 32-bit programs that must not continue."""
_SAME_FOR_32_BITS = "riscv64"
"""A machine whose kernel names its own architecture for calls of 32-bit programs, too."""
_PATIENCE = 25.0
"""Seconds after which liblxc, which waits for 30, is not answered any more."""
_LOOK_SECONDS = 5.0
"""An upper bound, in seconds, for how long a call can have waited when this process receives it."""
_NONE: tuple[int, Mapping[int, Handler]] = (0, {})


def serve(connection: socket.socket) -> None:
    """Serve until the monitor closes the connection, which it does when its container ends.

    It is closed from this side if an answer would come late: liblxc would take that for the answer to the
    next call. It connects again for that one.
    """
    gc.enable()  # unlike other workers, this one runs for long
    while True:
        began = time.monotonic()
        while not select.select([connection], [], [], _LOOK_SECONDS)[0]:
            began = time.monotonic()  # nothing had come by then
        try:
            call = receive(connection)
        except (OSError, ValueError, struct.error) as error:
            print(f"system call interception: unexpected message: {error}", file=sys.stderr)  # noqa: T201
            return
        if call is None:
            return
        try:
            answer = _handle(call)
            if time.monotonic() - began > _PATIENCE:
                connection.shutdown(socket.SHUT_RDWR)  # `acting` may have left a process that has it open
                return
            connection.send(call.reply(answer))
        except OSError:  # the monitor has ended
            return
        finally:
            call.close()


def _handle(call: Notification) -> Answer:
    machine = os.uname().machine
    architecture, handlers = MACHINES.get(machine, _NONE)
    compat = handler = _COMPAT.get((call.architecture, call.number))
    if call.architecture == architecture:
        handler = handlers.get(call.number, handler)
    if handler is None:
        return CONTINUE
    of_bpf = handler in (device_programs.bpf, device_programs.bpf_compat)
    refused = device_programs.refusal(call) if of_bpf else CONTINUE
    try:
        caller = Caller(call.process, call.memory)
        if machine == _SAME_FOR_32_BITS and caller.has_32_bits():
            return compat(call, caller) if compat else CONTINUE
        return handler(call, caller)
    except ProcessLookupError:
        return refused
    except OSError as error:
        return failure(error.errno or errno.EIO)
    except Exception:
        traceback.print_exc()
        return refused
