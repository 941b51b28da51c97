"""Which socket a daemon takes for one that was made for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utsuwa.daemon.passed_socket import take_socket


@pytest.mark.parametrize(
    ("ours", "count"), [(False, "1"), (True, "0"), (True, ""), (True, "many"), (True, "-1")]
)
def test_sockets_for_another_process_are_ignored(
    monkeypatch: pytest.MonkeyPatch, ours: bool, count: str
) -> None:
    """A program that systemd started may start a daemon in turn; programs of ours hear nothing of it."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if ours else 1))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "x")
    assert take_socket(Path("/nowhere/unix.socket")) is None
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
