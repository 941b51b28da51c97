"""Processes that liblxc creates in containers, and loses."""

from __future__ import annotations

import subprocess
import sys

import pytest

_ATTACH = """
import os, signal, sys
from utsuwa.host.helper.attach import Command, attach_by_liblxc
from utsuwa.host.helper.liblxc import LiblxcError

lost, reaped, stopped = map(int, sys.argv[1:])
tried, hanging = 0, []

class Container:
    def attach(self, run, *, uid, gid, env, stdio):
        global tried
        tried += 1
        if pid := os.fork():
            if tried > lost:
                return pid
            if reaped:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            if stopped:
                os.waitid(os.P_PID, pid, os.WSTOPPED)
                hanging.append(pid)
            raise LiblxcError("the process is lost")
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(run())

command = Command(
    {"argv": ["/bin/sh", "-c", "echo executed; exit 3"], "env": {}, "cwd": "/", "uid": 0, "gid": 0,
     "terminal": None, "rlimits": [], "oom_score": None}
)
try:
    pid, master = attach_by_liblxc(Container, command, (0, 1, 2))
    assert command.held() and not master
    command.release()
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), command.exec_errno(), "after", tried)
except LiblxcError:
    print("refused after", tried)
for pid in hanging:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        print("killed")
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("lost", "how", "said"),
    [
        (0, "00", "executed\n3 None after 1\n"),
        (2, "00", "executed\n3 None after 3\n"),
        (100, "00", "refused after 10\n"),
        (100, "10", "refused after 1\n"),
        (100, "01", "refused after 1\nkilled\n"),
    ],
    ids=["none", "two", "all", "reaped", "stopped"],
)
def test_a_lost_process_executes_nothing_and_another_is_created(lost: int, how: str, said: str) -> None:
    command = [sys.executable, "-u", "-c", _ATTACH, str(lost), *how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == (said, "")
