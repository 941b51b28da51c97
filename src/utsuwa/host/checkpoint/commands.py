"""The command lines of CRIU for containers, and the scripts that liblxc and CRIU run. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CONSOLE = "/dev/console"
_CONSOLE_KEY = "_dev_console"
_GHOST_LIMIT = 256 << 20
"""Maximum size in bytes of a deleted file that is still open."""
_COMMON = ("-v1", "--file-locks", "--link-remap", "--manage-cgroups=soft")
DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"


@dataclass(frozen=True)
class Dump:
    """What is to be saved of a running container."""

    init: int
    images: Path
    cgroup: str
    """The container's cgroup, as in /proc/PID/cgroup."""
    freezer: Path
    """The frozen cgroup."""
    externals: Sequence[str]
    """The mount points inside of what comes from the host."""
    tty: str
    """The console's terminal (`tty_key`)."""


def tty_key(rdev: int, dev: int) -> str:
    """Return how CRIU identifies a terminal, by the numbers of its node and of that node's file system."""
    return f"tty[{rdev:x}:{dev:x}]"


def dump(program: str, job: Dump) -> list[str]:
    """Return the command that saves a frozen container, which stays frozen and unchanged."""
    argv = [program, "dump", "-t", str(job.init), "-D", str(job.images), "-o", DUMP_LOG, *_COMMON]
    argv += ["--tcp-established", "--skip-in-flight", "--ghost-limit", str(_GHOST_LIMIT)]
    argv += ["--network-lock", "nftables", "--cgroup-root", job.cgroup]
    argv += ["--freeze-cgroup", str(job.freezer), "--leave-running"]
    for mount in job.externals:
        argv += ["--external", f"mnt[{mount}]:{_key(mount)}"]
    return [*argv, "--external", job.tty]


def gate(ready: int, go: int) -> str:
    """Return the script that CRIU runs at each stage of saving a container, at the first of which it waits.

    It writes a line to CRIU's descriptor `ready`, and reads one from `go`; at the end of that, CRIU gives up.
    """
    return f"""\
#!/bin/sh
# Run by CRIU at each stage of saving a container.
[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0
echo >/proc/$PPID/fd/{ready}
read -r word </proc/$PPID/fd/{go}
"""


def _key(mount: str) -> str:
    return _CONSOLE_KEY if mount == CONSOLE else mount


@dataclass(frozen=True)
class Restore:
    """What is to be restored, and what takes the place of what came from the host."""

    images: Path
    log: Path
    mounts: Mapping[str, str]
    """The paths on the host by mount points inside."""
    nics: Mapping[str, str]
    """The prepared interfaces on the host by names inside."""
    tty: str
    """The console's terminal when it was saved."""
    terminal: str
    """The terminal on the host that becomes the console."""
    action_script: Path
    keep_connections: bool
    """Whether established TCP connections go on, instead of being closed."""
    profile: str = ""
    """The AppArmor profile of the restored processes; empty for that with which each was saved."""


def restore(program: str, job: Restore) -> list[str]:
    """Return the command that restores a container, but for what liblxc determines (`wrapper`)."""
    argv = [program, "restore", "-D", str(job.images), "-o", str(job.log), *_COMMON]
    argv += ["--restore-detached", "--restore-sibling", "--action-script", str(job.action_script)]
    argv += ["--tcp-established" if job.keep_connections else "--tcp-close"]
    for inside, source in job.mounts.items():
        argv += ["--external", f"mnt[{_key(inside)}]:{source}"]
    for inside, end in job.nics.items():
        argv += ["--external", f"netdev[{inside}]:{end}"]
    if job.profile:
        argv += ["--lsm-profile", f"apparmor:{job.profile}"]
    return [*argv, "--inherit-fd", f"fd[9]:{job.tty}"]


def wrapper(argv: Sequence[str], version: str, terminal: str, pid_file: Path) -> str:
    """Return the program that liblxc finds as `criu`: it runs `argv` with liblxc's root and cgroup only.

    CRIU's parent becomes that of the container's init, so the shell is replaced by CRIU. Its pid is the only
    line of `pid_file`.
    """
    return f"""\
#!/bin/sh
# Run by liblxc as `criu`. Of its arguments, only the root directory and the cgroup are used.
if [ "$1" = --version ]; then echo "Version: {version}"; exit 0; fi
while [ $# -gt 0 ]; do
    case $1 in
        --root) root=$2 ;;
        --cgroup-root) cgroup=${{2#*:}} ;;
    esac
    shift
done
exec 9<>{shlex.quote(terminal)}
echo $$ >{shlex.quote(str(pid_file))}
exec {shlex.join(argv)} --root "$root" --cgroup-root "$cgroup"
"""


@dataclass(frozen=True)
class Actions:
    """What is done in the last moments before restored processes run."""

    init_file: Path
    """Where the pid of init is noted, for the post-stop hook."""
    used: Path
    """The file that is created when the processes begin to run: the disk changes from then on."""
    cgroups: str
    """The mount point of cgroup v2, empty if there is none."""
    parent: str
    """The name of the cgroup above the container's."""
    owner: str
    """`uid:gid` of the container's root on the host."""
    ports: Mapping[str, str] = field(default_factory=dict)
    """The bridges by the ends of interfaces on the host that join them."""


def action_script(actions: Actions) -> str:
    """Return the script that CRIU runs at each stage of a restore.

    CRIU creates the cgroups of version 2 without their owner, who could not move processes there. It restores
    addresses some time before connections, and what peers send in between would be answered by resets: so
    interfaces join their bridges after that.
    """
    q = shlex.quote
    joins = "".join(
        f"        ip link set dev {q(port)} master {q(bridge)}\n" for port, bridge in actions.ports.items()
    )
    return f"""\
#!/bin/sh
# Run by CRIU at each stage of a restore.
set -e
case $CRTOOLS_SCRIPT_ACTION in
    post-restore)
        echo "$CRTOOLS_INIT_PID" >{q(str(actions.init_file))}
{joins}\
        mount={q(actions.cgroups)} parent={q(actions.parent)} owner={q(actions.owner)}
        [ -n "$mount" ] || exit 0
        path=$(sed -n 's/^0:://p' "/proc/$CRTOOLS_INIT_PID/cgroup")
        below=${{path#*"/$parent/"}}
        top=$mount${{path%"$below"}}${{below%%/*}}
        [ -d "$top" ] && [ "$below" != "$path" ] || exit 0
        chown "$owner" "$top"
        find "$top" \\( -name cgroup.procs -o -name cgroup.threads -o -name cgroup.subtree_control \\) \\
            -exec chown "$owner" {{}} +
        ;;
    pre-resume) : >{q(str(actions.used))} ;;
esac
"""
