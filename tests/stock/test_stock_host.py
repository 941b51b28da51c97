"""What Utsuwa does on a host as users have it; run by `scripts/test --stock-host`, see docs/stock-host.md."""

from __future__ import annotations

import pytest

from tests.stock import guest, machine

pytestmark = [pytest.mark.root, pytest.mark.timeout(machine.LIMIT + 600)]
NAMES = [check.name for check in (*guest.BEFORE_REBOOT, *guest.AFTER_REBOOT)]


@pytest.mark.parametrize("name", NAMES)
def test_stock_host(report: machine.Report, name: str) -> None:
    outcome = report.outcomes.get(name)
    if outcome is None:
        pytest.fail(f"the machine did not come to this; its console:\n{report.console}", pytrace=False)
    if not outcome.passed:
        pytest.fail(f"{outcome.words}\n\n{report.journal}", pytrace=False)


def test_it_tells_of_nothing_else(report: machine.Report) -> None:
    assert report.outcomes.keys() <= set(NAMES)
    assert report.finished, report.console
