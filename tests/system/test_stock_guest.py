"""How the checks of the stock host ask a daemon, without the host."""

from __future__ import annotations

import pytest

from tests.stock.checks import asking
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


def test_states_and_errors(shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "DAEMON", shared_daemon)
    shared_daemon.do("POST", "/1.0/instances", {"name": "made", "source": {"type": "none"}})
    assert asking.state_of("made")["status"] == "Stopped"
    assert asking.query("/1.0")["environment"]["server"] == "utsuwa"
    with pytest.raises(AssertionError, match="not found"):
        asking.state_of("absent")


def test_what_is_done_in_containers(
    shared_daemon: Daemon, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "DAEMON", shared_daemon)
    asking.launch("c1", {"user.a": "1"})
    ended = asking.inside("c1", "echo out; echo err >&2; exit 3")
    assert ended == asking.Ended(3, "out\n", "err\n")
    asking.push("c1", "/root/pushed", b"content")
    assert asking.inside("c1", "cat /root/pushed").out == "content"
    asking.configure("c1", {"user.a": "2"})
    assert asking.query("/1.0/instances/c1")["config"]["user.a"] == "2"
    asking.kill("c1")
    assert "not running" in asking.inside("c1", "true").err
    for _ in range(2):
        asking.delete("c1")
    assert asking.inside("c1", "true").code != 0
    with pytest.raises(AssertionError, match="not found"):
        asking.start("c1")


def test_conditions_are_looked_at_until_they_hold() -> None:
    answers = [False, False, True]
    asking.wait_for("the last answer", lambda: answers.pop(0))
    assert answers == []
    with pytest.raises(AssertionError, match="nothing did not come true in 0 s"):
        asking.wait_for("nothing", lambda: False, 0)
