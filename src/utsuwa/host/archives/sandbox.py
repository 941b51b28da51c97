"""The sandbox in which programs read untrusted archives.

It has separate mount, PID, network, IPC and UTS namespaces; a root that contains only the system's programs
and the archive (read-only), and the target; no capabilities if nothing is unpacked, otherwise only those
needed to set owners, modes and file capabilities; limits on time, memory and file size. `scan` checks each
entry in the pipeline. The worst that an archive can do is to fill the target, which is then removed. `jail`
builds it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
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
"""What `split` waits for on stdin."""

_SIGPIPE = 128 + 13
_STATUS = b"status "
MAIN = Path(__file__).with_name("__main__.py")


def command(
    archive: Path,
    target: Path | None,
    limits: UnpackLimits,
    job: str,
    *arguments: str,
    base: Path | None = None,
) -> list[str]:
    """Return the command of one job of `jail`.

    It writes the exit statuses to the last line of stderr, and is killed when the daemon ends.
    """
    places = (str(path.absolute()) if path else "" for path in (archive, target, base))
    isolated = [sys.executable, "-S", "-E", "-I", str(MAIN)]
    return [*isolated, str(os.getpid()), *places, str(limits.size + 1024), job, *arguments]


def run_job(
    archive: Path,
    target: Path | None,
    limits: UnpackLimits,
    job: str,
    *arguments: str,
    base: Path | None = None,
    stopper: Stopper | None = None,
) -> Completed:
    """Run one job to its end. Blocking. If the daemon is killed, its next start removes what was unpacked."""
    argv = command(archive, target, limits, job, *arguments, base=base)
    return run_blocking(argv, timeout=limits.seconds, stopper=stopper)


def parts(result: Completed) -> tuple[Completed, Completed | None]:
    """Return the results of the two parts of a job; None for the second one if the first one has failed."""
    lines = result.stderr.splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if line.startswith(_STATUS)]
    first = replace(result, stderr=b"".join(lines[: ends[0]]))
    return first, replace(result, stderr=b"".join(lines[ends[0] :])) if len(ends) > 1 else None


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
