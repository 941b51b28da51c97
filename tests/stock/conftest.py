"""The stock host boots once; each of its checks is a test of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stock import disk, machine

REPORT = pytest.StashKey[machine.Report]()
SHOWN = 12
"""How many checks are listed with the time that they took."""


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.Report]:
    """What the machine tells of itself; takes minutes, and more where its disks are still to be made."""
    if "UTSUWA_STOCK_HOST" not in os.environ:
        pytest.skip("scripts/test --stock-host runs these")
    release = disk.RELEASES[os.environ["UTSUWA_STOCK_HOST"]]
    folder = tmp_path_factory.mktemp("stock-host")
    disks = disk.prepare(release, folder)
    told = pytestconfig.stash[REPORT] = machine.run(disks, folder)
    yield told
    disks.bundle.unlink()
    disks.checkout.unlink()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash.get(REPORT, None)
    if told is None:
        return
    terminalreporter.section(f"the machine ran for {told.seconds:.0f} s")
    slowest = sorted(told.outcomes.items(), key=lambda named: -named[1].seconds)[:SHOWN]
    for name, outcome in slowest:
        terminalreporter.write_line(f"{outcome.seconds:6.1f} s  {name}")
