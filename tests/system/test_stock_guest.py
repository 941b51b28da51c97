"""How the checks of the stock host ask a daemon, without the host."""

from __future__ import annotations

import pytest

from tests.stock import guest
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


def test_states_and_errors(shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "SOCKET", shared_daemon.socket)
    shared_daemon.do("POST", "/1.0/instances", {"name": "made", "source": {"type": "none"}})
    assert guest.state_of("made")["status"] == "Stopped"
    assert guest.query("/1.0")["environment"]["server"] == "utsuwa"
    with pytest.raises(AssertionError, match="not found"):
        guest.state_of("absent")


def test_conditions_are_looked_at_until_they_hold() -> None:
    answers = [False, False, True]
    guest.wait_for("the last answer", lambda: answers.pop(0))
    assert answers == []
    with pytest.raises(AssertionError, match="nothing did not come true in 0 s"):
        guest.wait_for("nothing", lambda: False, 0)
