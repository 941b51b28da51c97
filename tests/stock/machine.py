"""The stock host as a virtual machine: QEMU without KVM, so that it runs wherever the tests do."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stock.disk import Disks
from tests.support.long import LONG

LIMIT = 3000.0
"""Seconds that a run may take; a quiet machine with two processors needs an eighth of it."""
NICE = 5
"""How much the machine gives way to tests that run beside it: some of them measure times."""
POLL = 0.5
# Without the kernel's guards against attacks on processors that are not there, emulation is a third faster.
# A timer that comes late, as on a busy host, would make the kernel give up.
# On one processor the kernel takes no locks, which saves a third; a check puts the second one online.
# systemd draws what it waits for three times a second, which makes it wait longer.
KERNEL = "root=/dev/vda rw console=ttyS0 mitigations=off no_timer_check maxcpus=1 systemd.debug_shell=ttyS2"
KERNEL += " systemd.show_status=error"
KERNEL += " stock.long" if LONG else ""


@dataclass(frozen=True)
class Outcome:
    """What the machine told of one check."""

    passed: bool
    seconds: float
    words: str


@dataclass
class Report:
    """All that a run of the machine told."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    journal: str = ""
    """The daemon's, where a check failed."""
    finished: bool = False
    seconds: float = 0.0
    console: str = ""
    """The end of what the kernel and systemd wrote."""

    def read(self, lines: bytes) -> None:
        """Take in all that was written so far; a line that is not complete yet waits for the next time."""
        self.journal = ""
        for line in lines.decode("ascii", "replace").split("\n")[:-1]:
            if line.strip():
                self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if "name" in record:
            outcome = Outcome(record["passed"], record["seconds"], record["words"])
            self.outcomes[record["name"]] = outcome
        self.journal += record.get("journal", "")
        self.finished |= record.get("done", False)


def run(disks: Disks, folder: Path) -> Report:
    """Boot the machine, let it check itself, and switch it off.

    `folder` gets its console; while it runs, `socat - UNIX-CONNECT:<folder>/shell` is a root shell in it.
    """
    outcomes, console = folder / "outcomes", folder / "console"
    outcomes.touch()
    report, begin = Report(), time.monotonic()
    process = subprocess.Popen(
        _command(disks, folder),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
    )
    try:
        _let_others_go_first(process.pid)
        while not report.finished and time.monotonic() - begin < LIMIT and process.poll() is None:
            time.sleep(POLL)
            report.read(outcomes.read_bytes())
    finally:
        process.kill()
        _, errors = process.communicate()
    report.seconds = time.monotonic() - begin
    said = console.read_bytes() if console.exists() else b""
    report.console = (said[-6000:] + errors).decode(errors="replace").replace("\r", "")
    return report


def _let_others_go_first(pid: int) -> None:
    """Give way as a session, too: where the kernel groups sessions, niceness counts only inside of each."""
    group = Path(f"/proc/{pid}/autogroup")
    with contextlib.suppress(OSError):  # this kernel does not group them
        group.write_text(str(NICE))


def _command(disks: Disks, folder: Path) -> list[str]:
    def disk(image: Path, options: str) -> list[str]:
        return ["-drive", f"file={image},format=raw,if=virtio,{options}"]

    # A processor without AVX: its emulation is younger than that of the rest, and no faster with Python.
    # In one thread, its two processors need no atomic operations, and leave one of the host's to the tests.
    return [
        # no machine outlives the test run, however that ends
        *("nice", f"-n{NICE}", "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        *("-accel", "tcg,thread=single", "-cpu", "Nehalem", "-smp", "2", "-m", "2560"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"),
        *("-kernel", str(disks.kernel), "-initrd", str(disks.initrd), "-append", KERNEL),
        # what is written goes to a file that has no name and ends with the machine
        *disk(disks.system, "snapshot=on,cache=unsafe"),
        *disk(disks.bundle, "readonly=on"),
        *disk(disks.checkout, "readonly=on"),
        *("-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'outcomes'}"),
        *("-serial", "unix:shell,server=on,wait=off"),
    ]
