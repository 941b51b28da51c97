"""Daemons that are forked from a process which has already imported the daemon's modules.

Importing takes most of the processor time of a start, and tests start daemons hundreds of times. A forked
daemon runs the same `main`, in a session of its own, with the arguments, environment, namespaces and limits
that it would have been started with. Only what is read from the environment at import has to be given again.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SPACE = 600
"""Bytes that a forked daemon has for its arguments in /proc."""
_PACKET = 1 << 17
_NAMESPACES = ("mnt", "net")
_CLONE_NEW = {"mnt": 0x20000, "net": 0x40000000}


class Forked:
    """A forked daemon, with those methods of `subprocess.Popen` that tests use, for several threads."""

    def __init__(self, source: _Source, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._source = source
        self._fd = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("utsuwad", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is None:
                signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        """Return the exit code; None if it still runs after `timeout` seconds."""
        with self._lock:
            if self.returncode is not None:
                return self.returncode
            own = os.dup(self._fd)  # another thread may see the end first
        try:
            if not select.select([own], [], [], timeout)[0]:
                return None
        finally:
            os.close(own)
        with self._lock:
            if self.returncode is None:
                self.returncode = self._source.ask({"ended": self.pid})
                os.close(self._fd)
            return self.returncode


def start(arguments: Sequence[str], env: Mapping[str, str], log: Path, namespaces_of: int | None) -> Forked:
    """Start a daemon whose output is appended to `log`, in the namespaces of the process `namespaces_of`."""
    own = tuple(str(Path(f"/proc/thread-self/ns/{name}").readlink()) for name in _NAMESPACES)
    source = _source(os.getpid(), *own)
    status = Path("/proc/self/status").read_text()
    pid = source.ask(
        {
            "arguments": list(arguments),
            "env": dict(env),
            "log": str(log),
            "namespaces_of": namespaces_of,
            "umask": int(status.partition("Umask:")[2].split()[0], 8),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
    )
    return Forked(source, pid)


class _Source:
    """The process that daemons are forked from; it ends with this one."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), " " * _SPACE],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lock = threading.Lock()
        atexit.register(self._end)

    def ask(self, request: Mapping[str, Any]) -> Any:
        with self._lock:
            self._connection.send(json.dumps(request).encode())
            answer = self._connection.recv(_PACKET)
        assert answer, f"the process that daemons are forked from ended with {self._process.wait(10)}"
        return json.loads(answer)

    def _end(self) -> None:
        self._connection.close()
        self._process.wait(10)


@lru_cache(maxsize=8)
def _source(pid: int, *namespaces: str) -> _Source:
    """Return the source in these namespaces, which the process has entered."""
    return _Source()


# ---- in the process that daemons are forked from


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests; return a request in the process that was forked for it, or None at the end."""
    while packet := connection.recv(_PACKET):
        request = json.loads(packet)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                return dict(request)
        connection.send(json.dumps(answer).encode())
    return None


def _set_up(request: Mapping[str, Any]) -> list[str]:
    """Make this process what `subprocess.Popen` would have made it; return the daemon's arguments."""
    arguments, env = request["arguments"], request["env"]
    os.setsid()
    if request["namespaces_of"] is not None:
        _enter(request["namespaces_of"])
    os.chdir("/")
    sys.path[:] = [entry for entry in sys.path if Path(entry) != ROOT]
    with open(request["log"], "ab") as log:  # noqa: PTH123
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    os.umask(request["umask"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["nofile"])
    os.environ.clear()
    os.environ.update(env)
    if "UTSUWA_FAULTS" in env:
        from utsuwa.core import faults

        faults.use_folder(Path(env["UTSUWA_FAULTS"]))
    _show([sys.executable, "-m", "utsuwa.daemon.main", *arguments], env)
    return list(arguments)


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fds = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in _NAMESPACES}
    for name, fd in fds.items():
        if libc.setns(fd, _CLONE_NEW[name]) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter the namespace {name} of {pid}: {os.strerror(number)}")
        os.close(fd)


def _show(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Have /proc show the arguments and the environment, by which leaks are attributed to the daemon.

    The kernel reads them from the process's memory. Of the environment, what fits replaces the former one.
    """
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arg_start, arg_end, env_start, env_end = map(int, after_name[45:49])
    own = [f"{key}={value}" for key, value in sorted(env.items(), key=lambda item: item[0] != "UTSUWA_DIR")]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
        for words, begin, end in ((argv, arg_start, arg_end), (own, env_start, env_end)):
            text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - begin - 1]
            memory.seek(begin)
            memory.write(text.ljust(end - begin, b"\0"))


def _import_all() -> None:
    import utsuwa.daemon.process  # noqa: F401

    assert threading.active_count() == 1, "a process with threads cannot be forked safely"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _import_all()
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        from utsuwa.daemon.main import main

        sys.exit(main(_set_up(wanted)))
