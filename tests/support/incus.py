"""The `incus` client of bookworm-backports, fetched once and not installed."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from tests.support import isolation
from tests.support.cache import cached
from tests.support.daemon import Daemon

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "incus-packages"


@functools.cache
def client() -> Path:
    """The program; fails with apt's words where that cannot get it."""
    return fetched("incus-client") / "usr" / "bin" / "incus"


def fetched(package: str) -> Path:
    """The files of a package, and of what it needs and this machine lacks, unpacked and not installed."""

    def fetch(folder: Path) -> None:
        command = [*isolation.host_prefix(), str(SCRIPT), str(folder), package]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")[-4000:]
        for rest in ("apt", "packages"):
            shutil.rmtree(folder / rest)

    return cached(package, [SCRIPT.read_bytes()], fetch) / "files"


def incus(
    daemon: Daemon, *arguments: str, input: str | None = None, check: bool = True, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the client, unmodified, at the daemon's socket; text in and out."""
    ended = subprocess.run(
        [str(client()), *arguments],
        env=daemon.environment(
            INCUS_SOCKET=str(daemon.socket), INCUS_CONF=str(daemon.home / "incus"), HOME=str(daemon.home)
        ),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert ended.returncode == 0, (
            f"incus {' '.join(arguments)} ended with {ended.returncode}\n"
            f"{ended.stdout}{ended.stderr}\n--- daemon log\n{daemon.log_tail()}"
        )
    return ended
