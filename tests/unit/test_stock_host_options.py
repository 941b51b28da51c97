"""The options of `scripts/test` for the stock host; no machine is booted here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.stock import disk, machine, sequence
from tests.stock.checks import apparmor

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.mark.parametrize("options", [["--release", "potato"], ["--release=potato", "-x"], ["--release"]])
def test_unknown_release(options: list[str]) -> None:
    ended = subprocess.run(
        [str(SCRIPTS / "test"), "--stock-host", *options], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert f"is none of {' '.join(disk.RELEASES)}\n" in ended.stderr


def test_checks_have_names_of_their_own() -> None:
    names = [check.name for check in (*sequence.BEFORE_REBOOT, *sequence.AFTER_REBOOT)]
    assert len(names) == len(set(names)) > len(apparmor.OPERATIONS) >= 10


def test_the_machine_needs_no_packages_for_its_checks() -> None:
    """As `guest.py` finds them, without the last word, which would run them."""
    found = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_module('tests.stock.sequence')"
    command = ["/usr/bin/python3", "-I", "-S", "-B", "-c", found, str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_report_grows_while_its_last_line_is_being_written() -> None:
    report = machine.Report()
    whole = b'{"name": "a", "passed": true, "seconds": 1.5, "words": "w"}\r\n'
    report.read(whole + b'{"journal": "j", "do')
    assert report.outcomes == {"a": machine.Outcome(passed=True, seconds=1.5, words="w")}
    assert (report.journal, report.finished) == ("", False)
    for _ in range(2):
        report.read(whole + b'{"journal": "j", "done": true}\r\n')
    assert (report.journal, report.finished) == ("j", True)
