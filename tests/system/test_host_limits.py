"""How the kernel counts what containers share, and what the daemon makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import utsuwa

pytestmark = pytest.mark.root

SOURCES = Path(utsuwa.__file__).parent.parent

# Run with a user namespace as its host, which has a limit of its own, and another below it as its container.
HOST = """
import ctypes, subprocess, sys
from pathlib import Path
from utsuwa.host.system import near_limits

HOLDER = '''
import ctypes, sys
held = [ctypes.CDLL(None).inotify_init1(0) for _ in range(40)]
print(min(held) >= 0, flush=True)
sys.stdin.read()
'''

Path("/proc/sys/user/max_inotify_instances").write_text("60")
print(near_limits.check().get("fs.inotify.max_user_instances"))
container = subprocess.Popen(
    ["unshare", "--user", "--map-root-user", sys.executable, "-c", HOLDER],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
)
print(container.stdout.readline().strip())
print(near_limits.check().get("fs.inotify.max_user_instances"))
container.communicate("")
print(near_limits.check().get("fs.inotify.max_user_instances"))
"""


def test_inotify_instances_of_containers_are_missing_on_their_host() -> None:
    """They count for the user who made the container's user namespace, and that is root of the host."""
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", HOST],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    before, held, during, after = ended.stdout.splitlines()
    assert (before, held, after) == ("None", "True", "None")
    assert during.startswith("fewer than 24 of ")


def test_limits_are_those_of_the_machine_below_where_they_cannot_be_set(tmp_path: Path) -> None:
    """As in a container: nothing is promised by a file there, and whose they are is said."""
    program = "from pathlib import Path; from utsuwa.host.system import kernel_limits, sysctl_file; "
    program += f"sysctl_file.FILE = Path({str(tmp_path / '60-utsuwa.conf')!r}); "
    program += "kernel_limits.WANTED = {'fs.inotify.max_user_instances': 2**30}; "
    program += "print(kernel_limits.can_write(), *sysctl_file.raise_limits(), sep='\\n')"
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", program],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    writable, said, done = ended.stdout.splitlines()
    assert (writable, done) == ("False", "False")
    assert said == (
        "['cannot be set here (Read-only file system), set it on the machine that this system runs on: "
        "fs.inotify.max_user_instances=1073741824']"
    )
    assert not list(tmp_path.iterdir())
