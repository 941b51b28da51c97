"""`utsuwa network` beside `lxc network`."""

from __future__ import annotations

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


def test_networks(daemon: Daemon) -> None:
    d = daemon
    made = utsuwa_client(d, "network", "create", "utcli0", "ipv4.address=10.211.71.1/24", "ipv6.address=none")
    assert made.stdout == "Network utcli0 created\n"
    try:
        utsuwa_client(d, "network", "set", "utcli0", "user.a=b")
        utsuwa_client(d, "network", "attach-profile", "utcli0", "default", "eth7")
        assert d.get("/1.0/profiles/default")["devices"]["eth7"] == {"type": "nic", "network": "utcli0"}
        for words in (
            "network list",
            "network list -f csv",
            "network show utcli0",
            "network get utcli0 user.a",
            "network info utcli0",
            "network list-leases utcli0",
            "network list-leases utcli0 -f csv",
        ):
            assert utsuwa_client(d, *words.split()).stdout == d.lxc(*words.split()).stdout
        utsuwa_client(d, "network", "detach-profile", "utcli0", "default")
        edited = b"config:\n  ipv4.address: 10.211.71.1/24\n  ipv6.address: none\ndescription: by hand\n"
        utsuwa_client(d, "network", "edit", "utcli0", input=edited)
        assert d.get("/1.0/networks/utcli0")["description"] == "by hand"
    finally:
        gone = utsuwa_client(d, "network", "delete", "utcli0")
    assert gone.stdout == "Network utcli0 deleted\n"
