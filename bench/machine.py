"""What the numbers depend on: the machine, the versions of programs, the load by others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from bench.samples import Load

ROOT = Path(__file__).resolve().parents[1]


def describe(folder: Path) -> dict[str, str]:
    """The machine, with the file system that `folder` lies on."""
    memory = _first(r"^MemTotal:\s+(\d+) kB", "/proc/meminfo")
    cgroups = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1 or mixed"
    model = _first(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo")
    return {
        "processor": f"{os.cpu_count()} x {model}",
        "memory": f"{int(memory or 0) / (1 << 20):.1f} GiB",
        "system": _first(r'^PRETTY_NAME="?([^"\n]+)', "/etc/os-release"),
        "kernel": os.uname().release,
        "file system": _said("findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)),
        "cgroups": cgroups,
    }


def libraries() -> dict[str, str]:
    """Versions of what all daemons share."""
    return {
        "liblxc": _said("lxc-start", "--version"),
        "lxc client": _said("lxc", "--version"),
        "Python": ".".join(map(str, sys.version_info[:3])),
    }


def commit() -> str:
    """Of the program, abbreviated; `+` where its files differ from it."""
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", "src")
    return _said("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def _first(pattern: str, path: str) -> str:
    found = re.search(pattern, Path(path).read_text(errors="replace"), re.MULTILINE)
    return found[1].strip() if found else ""


def _said(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    except OSError:
        return ""
    return done.stdout.strip()


class LoadWatch:
    """Looks at the load average while it is entered; `load` tells of it afterwards."""

    EVERY = 5.0

    def __init__(self) -> None:
        self._seen: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._end.wait(self.EVERY):
            self._seen.append(os.getloadavg()[0])

    def __enter__(self) -> Self:
        self._seen.append(os.getloadavg()[0])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._seen.append(os.getloadavg()[0])

    @property
    def load(self) -> Load:
        rounded = [round(value, 2) for value in self._seen]
        return Load(rounded[0], max(rounded), rounded[-1])
