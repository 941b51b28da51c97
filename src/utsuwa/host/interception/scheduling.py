"""sched_setscheduler: real-time priorities, of processes in the caller's PID namespace."""

from __future__ import annotations

import os
import struct

from utsuwa.host.helper import kernel
from utsuwa.host.interception import acting
from utsuwa.host.interception.caller import CAP_SYS_NICE, signed
from utsuwa.host.interception.messages import CONTINUE, SUCCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.host.interception.caller import Caller
    from utsuwa.host.interception.messages import Answer, Notification

_PRIORITY = struct.Struct("=i")


def sched_setscheduler(call: Notification, caller: Caller) -> Answer:
    """Do it for those with the capability in the user namespace of the container's init."""
    pid, policy, address = signed(call.arguments[0]), signed(call.arguments[1]), call.arguments[2]
    if pid < 0 or not caller.has(CAP_SYS_NICE) or not caller.is_of(call.init):
        return CONTINUE
    (priority,) = _PRIORITY.unpack(caller.bytes_at(address, _PRIORITY.size))
    inner = pid or caller.inner_pid
    namespace = caller.open("ns/pid", os.O_RDONLY)
    try:
        if not call.waits():
            return CONTINUE

        def change() -> None:
            os.sched_setscheduler(inner, policy, os.sched_param(priority))

        def enter() -> None:
            # Seen from there, a number cannot mean a process of the host, even if the one that is meant ends.
            kernel.setns(namespace, kernel.NAMESPACES["pid"])
            acting.do(change)  # only children are in the namespace

        acting.do(enter)
    finally:
        os.close(namespace)
    return SUCCESS
