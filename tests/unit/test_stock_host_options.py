"""The options of `scripts/test` for the stock host; no machine is booted here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.stock import disk, guest, machine

pytestmark = pytest.mark.processes

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize("options", [["--release", "potato"], ["--release=potato", "-x"], ["--release"]])
def test_unknown_release(options: list[str]) -> None:
    ended = subprocess.run(
        [str(SCRIPTS / "test"), "--stock-host", *options], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert f"is none of {' '.join(disk.RELEASES)}\n" in ended.stderr


def test_checks_have_names_of_their_own() -> None:
    names = [check.name for check in (*guest.BEFORE_REBOOT, *guest.AFTER_REBOOT)]
    assert len(names) == len(set(names)) > len(guest.OPERATIONS) >= 10


def test_a_report_grows_while_its_last_line_is_being_written() -> None:
    report = machine.Report()
    whole = b'{"name": "a", "passed": true, "seconds": 1.5, "words": "w"}\r\n'
    report.read(whole + b'{"journal": "j", "do')
    assert report.outcomes == {"a": machine.Outcome(passed=True, seconds=1.5, words="w")}
    assert (report.journal, report.finished) == ("", False)
    for _ in range(2):
        report.read(whole + b'{"journal": "j", "done": true}\r\n')
    assert (report.journal, report.finished) == ("j", True)
