"""The sandbox in which programs read untrusted archives.

It has separate mount, PID, network and IPC namespaces; a root that contains only the system's programs
(read-only), the archive and the target; only the capabilities needed to set owners, modes and file
capabilities; limits on time, memory and file size. `scan` checks each entry in the pipeline. The worst that
an archive can do is to fill the target, which is then removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utsuwa.core.errors import InvalidImage, OutOfSpace
from utsuwa.host.archives import scan
from utsuwa.host.processes.run import Completed, run_blocking
from utsuwa.host.processes.stopper import Stopper

Tree = Literal["unified", "metadata", "rootfs"]


@dataclass(frozen=True)
class UnpackLimits:
    """Limits of one archive: unpacked bytes, entries, seconds."""

    size: int = 256 * 2**30
    entries: int = 2_000_000
    seconds: int = 3600


DEFAULT_LIMITS = UnpackLimits()

GO = b"\n"
"""What `check` and `list` wait for on stdin."""

_MEMORY = 4 * 2**30
"""Address space limit of each program in the sandbox, in bytes."""
_SIGPIPE = 128 + 13
_KEPT_CAPABILITIES = "-all,+chown,+dac_override,+dac_read_search,+fowner,+fsetid,+mknod,+setfcap"

# Arguments: the archive, the target (empty for none), the scanner's file, the limits of file size and
# address space in KiB, and then the job: a name and its arguments. The new root is built at /sys, as no
# archive and no target can be below it. Before `check` and `list` read the archive, they wait for a line on
# stdin.
_SANDBOX = r"""
set -eu
umask 022
archive=$1 target=$2 scanner=$3 file_limit=$4 memory=$5 job=$6
shift 6
ulimit -c 0
ulimit -f "$file_limit"
ulimit -v "$memory"
exec 3<"$archive"
if [ -n "$target" ]; then cd "$target"; fi
mount -t tmpfs -o mode=0755,nosuid,nodev,size=1m utsuwa /sys
mkdir /sys/target /sys/old /sys/proc
: >/sys/archive
: >/sys/scan.py
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
mount --bind -o ro "$archive" /sys/archive
mount --bind -o ro "$scanner" /sys/scan.py
if [ "$job" = delta ]; then
    : >/sys/base
    mount --bind -o ro "$1" /sys/base
fi
if [ -n "$target" ]; then
    mount --no-canonicalize --bind . /sys/target
    mount -o remount,bind,nodev /sys/target
fi
cd /sys
mount -t proc proc proc # umount reads it; it is gone before the archive is read
pivot_root . old
umount -l /old /proc
cd /target
export HOME=/ TMPDIR=/target
confined() { setpriv --no-new-privs --bounding-set "$CAPABILITIES" --inh-caps=-all "$@"; }
ready() { read -r _; } # the rest of the archive may still be on its way
scan() { ulimit -v 1048576; confined python3 -I -S /scan.py "$@"; }
set +e
case $job in
check)
    tree=$1 entries=$2 size=$3; shift 3
    { ready && confined "$@" <&3; } | scan check "$tree" "$entries" "$size"
    ;;
tar)
    into=$1 tree=$2 entries=$3 size=$4 count=$5; shift 5
    decompress=("${@:1:$count}"); shift "$count"
    mkdir -p "$into" && cd "$into" || exit 1
    confined "${decompress[@]}" <&3 | scan tar "$tree" "$entries" "$size" |
        confined tar --extract --file=- --preserve-permissions --same-owner --numeric-owner \
            --xattrs --xattrs-include='user.*' --xattrs-include=security.capability \
            --xattrs-include='system.posix_acl_*' \
            --restrict --no-quote-chars='' --anchored --wildcards "$@"
    ;;
list)
    { ready && confined unsquashfs -no-progress -lln /archive; } | scan squashfs "$1" "$2" "$3"
    ;;
cat)
    confined unsquashfs -no-progress -cat /archive "$1"
    ;;
delta)
    # Neither decompressors for the delta nor compressors for the result are started.
    confined xdelta3 -d -q -D -R -s /base /archive "$2"
    ;;
squashfs)
    into=$1; shift
    confined unsquashfs -no-progress -quiet -force -dest "$into" -excludes /archive "$@"
    ;;
esac
status=${PIPESTATUS[*]}
case $job in
tar | squashfs)
    confined find "$into" -xdev -type b -delete || exit 1
    ;;
esac
echo "status $status" >&2
"""


def command(
    archive: Path, target: Path | None, limits: UnpackLimits, job: str, *arguments: str
) -> tuple[list[str], dict[str, str]]:
    """Return the command of one job of the script, and its environment.

    It writes the exit statuses to the last line of stderr, and is killed when the daemon ends.
    """
    argv = [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child",
        "bash", "-c", _SANDBOX, "utsuwa-unpack",
        str(archive.absolute()), str(target.absolute() if target else ""), scan.__file__,
        str(limits.size // 1024 + 1), str(_MEMORY // 1024), job, *arguments,
    ]  # fmt: skip
    return argv, {"CAPABILITIES": _KEPT_CAPABILITIES}


def run_job(
    archive: Path,
    target: Path | None,
    limits: UnpackLimits,
    job: str,
    *arguments: str,
    stopper: Stopper | None = None,
) -> Completed:
    """Run one job to its end. Blocking. If the daemon is killed, its next start removes what was unpacked."""
    argv, env = command(archive, target, limits, job, *arguments)
    return run_blocking(argv, stdin=GO, timeout=limits.seconds, env=env, stopper=stopper)


def judge(result: Completed, *stages: str) -> None:
    """Raise the error that a stage of the pipeline reported, if any.

    A stage killed by SIGPIPE because the next one had exited is not considered a failure.
    """
    text, _, last = result.stderr.decode(errors="replace").rstrip("\n").rpartition("\n")
    codes = dict(zip(stages, map(int, last.split()[1:]), strict=True))
    said = [line for line in text.splitlines() if line.strip()]
    failed = [stage for stage in stages if codes[stage] not in (0, _SIGPIPE)]
    if not failed:
        return
    if any("No space left on device" in line or "quota exceeded" in line for line in said):
        raise OutOfSpace("No space left while unpacking the image: free some space and try again")
    if failed[0] == "scan":
        _raise_verdict(codes["scan"], text)
    reasons = [line for line in said if scan.VERDICT not in line]
    reason = reasons[-1] if reasons else f"{failed[0]} ended with status {codes[failed[0]]}"
    raise InvalidImage(f"The image cannot be unpacked and may be damaged: {reason[:300]}")


def _raise_verdict(code: int, text: str) -> None:
    if code == scan.TOO_LARGE:
        raise OutOfSpace(
            "The image is too large for the available space: free some space or use another pool"
        )
    # Not necessarily at the beginning of a line: tar writes its own lines in pieces to the same pipe.
    _, found, verdict = text.partition(scan.VERDICT)
    if found:
        raise InvalidImage(f"The image is invalid: {verdict.partition(chr(10))[0]}")
