"""The command lines with which rsync sends and receives the files of a volume, in a sandbox.

The other end of the protocol is another server: an rsync with a bug, or one that is not rsync at all. So
each of ours has its own mount, PID, network and IPC namespaces; a root that contains only the system's
programs and the one tree; the capabilities needed for owners, modes and file capabilities, or on the sending
side for reading only. What leads out of the tree leads nowhere. The programs are killed when the daemon ends.

What is beside the tree, `metadata.yaml` and `templates/`, is received in memory first; it has no room for
anything large.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.idmap import IdMap

VANISHED = 24
"""The exit status of a sender of which files disappeared meanwhile."""

_READ = "dac_override,dac_read_search"
_WRITE = "chown,dac_override,dac_read_search,fowner,fsetid,mknod,setfcap"
_MEMORY = 4 * 2**20
"""Address space limit of each program, in KiB."""

# Arguments: the job, the tree, the directory beside it that is sent, or to which is copied what was received
# (empty for a tree alone), the user and group ids to run as, and the arguments of rsync. The new root is
# built at /sys, as no tree is below it. rsync speaks to the other server through descriptors 3 and 4.
_SANDBOX = r"""
set -eu
umask 022
job=$1 tree=$2 beside=$3 uid=$4 gid=$5
shift 5
exec 3<&0 4>&1 </dev/null >&2
ulimit -c 0
ulimit -v "$MEMORY"
cd "$tree"
mount -t tmpfs -o mode=0755,nosuid,nodev,size=1m utsuwa /sys
mkdir /sys/target /sys/old /sys/proc /sys/out
links=()
for folder in usr bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$folder" ]; then
        links+=("/$folder")
    elif [ -d "/$folder" ]; then
        mkdir "/sys/$folder"
        mount --bind -o ro "/$folder" "/sys/$folder"
    fi
done
if [ ${#links[@]} -gt 0 ]; then cp -P "${links[@]}" /sys/; fi
place=/sys/target
if [ -n "$beside" ]; then
    mount -t tmpfs -o mode=0755,nosuid,nodev,size=64m utsuwa /sys/target
    place=/sys/target/rootfs
    mkdir "$place"
    chown "$uid:$gid" /sys/target "$place"
fi
mount --no-canonicalize --bind . "$place"
if [ "$job" = send ]; then access=ro; else access=rw; fi
mount -o "remount,bind,nodev,$access" "$place"
if [ -n "$beside" ]; then
    if [ "$job" = receive ]; then
        mount --bind "$beside" /sys/out
    elif [ -e "$beside/metadata.yaml" ]; then
        cp -R --no-dereference --preserve=mode,timestamps "$beside/metadata.yaml" /sys/target/
        if [ -d "$beside/templates" ]; then
            cp -R --no-dereference --preserve=mode,timestamps "$beside/templates" /sys/target/
        fi
    fi
fi
cd /sys
mount -t proc proc proc # umount reads it; it is gone before rsync runs
pivot_root . old
umount -l /old /proc
cd /target
export HOME=/ TMPDIR=/target
run=(setpriv --no-new-privs --bounding-set="-all,+${CAPABILITIES//,/,+}")
if [ "$uid" = 0 ]; then
    run+=(--inh-caps=-all)
else
    keep="+${CAPABILITIES//,/,+}"
    run=(setpriv --no-new-privs "--reuid=$uid" "--regid=$gid" --clear-groups
        "--inh-caps=-all,$keep" "--ambient-caps=-all,$keep" "--bounding-set=-all,$keep")
fi
if [ "$job" = send ]; then
    "${run[@]}" rsync "$@"
else
    # Whether files may have vanished at the sender is for the sender to judge.
    "${run[@]}" rsync "$@" <&3 >&4 || { status=$?; [ "$status" = 24 ] || exit "$status"; }
    if [ -n "$beside" ]; then
        for name in metadata.yaml templates; do
            if [ -e "$name" ]; then cp -R --no-dereference --no-preserve=all "$name" /out/; fi
        done
    fi
fi
"""

# What rsync takes for a remote shell: its input goes to 4, and its output comes from 3, at the end of which
# it must exit.
_SHELL = 'bash -c "exec 5<&0; cat <&5 >&4 & exec cat <&3"'

_OLDER = "-vlogDtpre.iLsfx"
"""The options of the receiver that LXD has: what every rsync since 3.1 can do."""
_NEWER = "-vlogDtpre.iLsfxCIvu"
"""Those of rsync 3.2, which chooses faster checksums."""

# What is not the container's: the kernel lets no unprivileged container set these either.
_FILTERS = ("+x security.capability", "-x security.*", "-x trusted.*", "-x system.*")


@dataclass(frozen=True)
class Options:
    """What both sides have agreed on."""

    xattrs: bool = False
    delete: bool = False
    compress: bool = False
    links: bool = False
    """Hard links, access control lists, and all else that only two servers of Utsuwa do: rsync 3.2."""

    def words(self) -> list[str]:
        words = []
        if self.xattrs:
            words += ["--xattrs", *(f"--filter={rule}" for rule in _FILTERS)]
        if self.delete:
            words.append("--delete")
        if self.compress:
            words += ["--compress", "--compress-level=2"]
        if self.links:
            words += ["--hard-links", "--acls"]
        return words


def sending(
    tree: Path, beside: Path | None, options: Options, *, bandwidth: str = ""
) -> tuple[list[str], dict[str, str]]:
    """Return the command that sends a tree, with what is `beside` it if given, and its environment."""
    words = ["--archive", "--devices", "--numeric-ids", "--sparse", *options.words()]
    if options.links:
        words.append("--whole-file")
    if bandwidth:
        words.append(f"--bwlimit={bandwidth}")
    words += ["-e", _SHELL, "/target/", "localhost:/target"]
    return _command("send", tree, beside, IdMap(), words, _READ)


def receiving(
    tree: Path, beside: Path | None, owners: IdMap, options: Options
) -> tuple[list[str], dict[str, str]]:
    """Return the command that receives a tree, mounted with the sender's id map, and its environment.

    What is received beside it is copied to the directory `beside`.
    """
    protocol = _NEWER if options.links else _OLDER
    words = ["--server", protocol, "--numeric-ids", "--devices", "--sparse", *options.words()]
    words.append("--modify-window=-1")  # compare nanoseconds
    if not owners.privileged:
        words.append("--super")
    return _command("receive", tree, beside, owners, [*words, ".", "/target"], _WRITE)


def _command(
    job: str, tree: Path, beside: Path | None, owners: IdMap, words: list[str], capabilities: str
) -> tuple[list[str], dict[str, str]]:
    argv = [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child",
        "bash", "-c", _SANDBOX, "utsuwa-rsync",
        job, str(tree), str(beside or ""), str(owners.host_uid(0)), str(owners.host_gid(0)), *words,
    ]  # fmt: skip
    return argv, {"CAPABILITIES": capabilities, "MEMORY": str(_MEMORY)}


def shown(argv: list[str]) -> str:
    """Return the command of the sandbox without its script, for messages."""
    return shlex.join(["rsync", *argv[argv.index("utsuwa-rsync") + 1 :]])
