"""What Utsuwa does on a host as users have it; run by `scripts/test --stock-host`, see docs/stock-host.md."""

from __future__ import annotations

import pytest

from tests.stock import machine, sequence
from tests.support.long import usually

pytestmark = [pytest.mark.root, pytest.mark.timeout(machine.LIMIT + 600)]
CHECKS = (*sequence.BEFORE_REBOOT, *sequence.AFTER_REBOOT)
USUAL, NAMES = [check.name for check in CHECKS if not check.long], [check.name for check in CHECKS]


@pytest.mark.parametrize("name", usually(USUAL, NAMES))
def test_stock_host(report: machine.Report, name: str) -> None:
    outcome = report.outcomes.get(name)
    if outcome is None:
        pytest.fail("the machine did not come to this; the last failure shows why", pytrace=False)
    if not outcome.passed:
        pytest.fail(outcome.words, pytrace=False)


def test_it_tells_of_nothing_else(report: machine.Report) -> None:
    assert report.outcomes.keys() <= set(NAMES)


def test_it_comes_to_its_end(report: machine.Report) -> None:
    """The last of all, so that what helps with a failure stands once, at the end of the output."""
    if not report.finished or any(not outcome.passed for outcome in report.outcomes.values()):
        first = next((f"{n}: {o.words}" for n, o in report.outcomes.items() if not o.passed), "no check")
        pytest.fail(
            f"console:\n{report.console}\njournal:\n{report.journal}\nfailed first: {first}", pytrace=False
        )
