"""A daemon that is killed while it shows or hides the guest API of a running instance."""

from __future__ import annotations

import pytest

from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.guest import LXD, Guest
from tests.system.test_guest_api import INCUS, launch

pytestmark = pytest.mark.root

STORED = "before update instance"
"""The point before the change is stored: all else is done."""


@pytest.fixture(scope="module")
def guest(module_daemon: Daemon, busybox: str, faults: Faults) -> Guest:
    module_daemon.env |= faults.env
    module_daemon.restart()
    return launch(module_daemon, busybox, **{"user.a": "1"})


def check(daemon: Daemon, guest: Guest, *, shown: bool) -> None:
    assert (daemon.dir / "devlxd/c1").exists() is shown
    for path in (LXD, INCUS):
        if shown:
            assert guest.api("GET", "/1.0/config/user.a", path=path).body == b"1"
        else:
            with pytest.raises(AssertionError, match="FileNotFoundError"):
                guest.connect(path=path)


@pytest.mark.parametrize("point", ["guest API removed", STORED])
def test_an_interrupted_hiding_is_undone(
    module_daemon: Daemon, guest: Guest, faults: Faults, point: str
) -> None:
    d = module_daemon
    with faults.kill_at(d, point):
        d.do("PATCH", "/1.0/instances/c1", {"config": {"security.devlxd": "false"}})
    assert "security.devlxd" not in d.get("/1.0/instances/c1")["config"]
    check(d, guest, shown=True)


@pytest.mark.parametrize("point", ["guest API mounted", STORED])
def test_an_interrupted_showing_is_undone(
    module_daemon: Daemon, guest: Guest, faults: Faults, point: str
) -> None:
    d = module_daemon
    d.do("PATCH", "/1.0/instances/c1", {"config": {"security.devlxd": "false"}})
    check(d, guest, shown=False)
    with faults.kill_at(d, point):
        d.do("PATCH", "/1.0/instances/c1", {"config": {"security.devlxd": ""}})
    check(d, guest, shown=False)
    d.do("PATCH", "/1.0/instances/c1", {"config": {"security.devlxd": ""}})
    check(d, guest, shown=True)
