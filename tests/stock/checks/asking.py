"""Commands, requests to the daemon, and waiting for what they show."""

from __future__ import annotations

import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stock.checks.check import expect
from tests.support.api import Endpoint, Reply

DAEMON = Endpoint(Path("/var/lib/utsuwa/unix.socket"))
"""Asked for what is done often: emulation takes seconds to start a client."""
TIMEOUT = 600.0
"""Seconds for a command or a condition: emulation on a busy machine is a hundred times slower."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run(*command: str, stdin: bytes | None = None, timeout: float = TIMEOUT) -> Ended:
    ended = subprocess.run(command, input=stdin or b"", capture_output=True, timeout=timeout)
    return Ended(ended.returncode, *(b.decode(errors="replace") for b in (ended.stdout, ended.stderr)))


def must(*command: str, stdin: bytes | None = None, timeout: float = TIMEOUT) -> str:
    ended = run(*command, stdin=stdin, timeout=timeout)
    expect(ended.code == 0, f"{shlex.join(command)} gave {ended.code}: {ended.out}{ended.err}")
    return ended.out


def utsuwa(*arguments: str, stdin: bytes | None = None) -> str:
    return must("utsuwa", *arguments, stdin=stdin)


def query(url: str) -> Any:
    """What the API shows at a URL; raises AssertionError if that is an error."""
    reply = DAEMON.api("GET", url, timeout=TIMEOUT)
    expect(reply.status == 200, f"{url} gave {reply.body!r}")
    return reply.metadata


def act(method: str, url: str, body: object = None) -> Any:
    """Do it, to the end of its operation; raises AssertionError with the reason if it is refused or fails."""
    return DAEMON.do(method, url, body, timeout=TIMEOUT)


def refused(method: str, url: str, body: object = None) -> str:
    """The reason why it is refused or fails; raises AssertionError if it does not."""
    reply = DAEMON.api(method, url, body, timeout=TIMEOUT)
    reason = DAEMON.wait(reply, timeout=TIMEOUT)["err"] if reply.status == 202 else reply.error
    expect(reason, f"{method} {url} was not refused")
    return str(reason)


def begin(container: str, *command: str) -> Reply:
    """Begin to run a command in a container; what is returned is to be waited for."""
    reply = DAEMON.api("POST", f"/1.0/instances/{container}/exec", {"command": command}, timeout=TIMEOUT)
    expect(reply.status == 202, reply)
    return reply


def inside(container: str, script: str) -> Ended:
    """Run a script in a container; where it cannot be run, the reason is what it wrote."""
    command = {"command": ["sh", "-c", script], "record-output": True}
    reply = DAEMON.api("POST", f"/1.0/instances/{container}/exec", command, timeout=TIMEOUT)
    if reply.status != 202:
        return Ended(1, "", reply.error)
    ended = DAEMON.wait(reply, timeout=TIMEOUT)
    if ended["err"]:
        return Ended(1, "", ended["err"])
    said = [DAEMON.api("GET", url, timeout=TIMEOUT).body for url in ended["metadata"]["output"].values()]
    return Ended(ended["metadata"]["return"], *(text.decode(errors="replace") for text in said))


def launch(container: str, config: dict[str, str] | None = None) -> None:
    """Launch a busybox."""
    source = {"type": "image", "alias": "busybox"}
    act("POST", "/1.0/instances", {"name": container, "source": source, "config": config or {}})
    start(container)


def start(container: str, *, stateful: bool = False) -> None:
    act("PUT", f"/1.0/instances/{container}/state", {"action": "start", "stateful": stateful})


def configure(container: str, config: dict[str, str]) -> None:
    act("PATCH", f"/1.0/instances/{container}", {"config": config})


def push(container: str, path: str, content: bytes) -> None:
    act("POST", f"/1.0/instances/{container}/files?path={path}", content)


def state_of(container: str) -> dict[str, Any]:
    state: dict[str, Any] = query(f"/1.0/instances/{container}/state")
    return state


def kill(container: str) -> None:
    """Stop a container by force. On a busy host, the kernel may need longer for it than the daemon waits."""
    url = f"/1.0/instances/{container}/state"
    reply = DAEMON.api("PUT", url, {"action": "stop", "force": True}, timeout=TIMEOUT)
    if reply.status == 202:
        DAEMON.wait(reply, timeout=TIMEOUT)
    wait_for(f"the end of {container}", lambda: state_of(container)["status"] == "Stopped")


def delete(container: str) -> None:
    """Delete a container that may run, or not be there."""
    if DAEMON.api("GET", f"/1.0/instances/{container}").status == 200:
        kill(container)
        act("DELETE", f"/1.0/instances/{container}")


def init_of(container: str) -> tuple[int, str]:
    """The pid of a container's init, and when that process was started."""
    pid = state_of(container)["pid"]
    expect(pid > 0, f"{container} does not run")
    return pid, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def wait_for(what: str, true: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Look until it is true, a quarter of the time at most: what is waited for needs the processor, too."""
    end = time.monotonic() + seconds
    begin = time.monotonic()
    while not true():
        now = time.monotonic()
        expect(now < end, f"{what} did not come true in {seconds:g} s")
        time.sleep(max(0.5, 3 * (now - begin)))
        begin = time.monotonic()


def systemd_of(container: str) -> Ended:
    """What systemd inside says of itself and of what failed, once it has started."""
    wait_for("a system bus", lambda: inside(container, "test -S /run/dbus/system_bus_socket").code == 0)
    return inside(container, "systemctl is-system-running --wait; systemctl --failed --no-legend --plain")


def main_pid(unit: str) -> int:
    """The main process of a unit of the machine's; 0 while there is none."""
    return int(must("systemctl", "show", unit, "--property=MainPID", "--value"))


def fetch(url: str) -> str:
    """What is served at a URL, or why nothing is."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            return str(reply.read().decode())
    except OSError as error:
        return str(error)
