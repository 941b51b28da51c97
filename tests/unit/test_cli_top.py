"""The rates that `utsuwa top` shows."""

from __future__ import annotations

from typing import Any

import pytest

from utsuwa.cli.commands.top import Meter


def instance(
    name: str = "c1", *, pid: int = 7, cpu: int = 0, received: int = 0, sent: int = 0, kind: str = "broadcast"
) -> dict[str, Any]:
    counters = {"bytes_received": received, "bytes_sent": sent}
    state = {
        "pid": pid,
        "cpu": {"usage": cpu},
        "memory": {"usage": 4096, "swap_usage": 512},
        "processes": 3,
        "network": {"eth0": {"type": kind, "counters": counters}},
    }
    return {"name": name, "project": "default", "state": state}


def test_first_reading_has_no_rates() -> None:
    (found,) = Meter().read([instance(cpu=2 * 10**9, received=9)], 100.0)
    assert found == {
        "name": "c1",
        "project": "default",
        "cpu_percent": 0,
        "cpu_seconds": 2,
        "memory": 4096,
        "swap": 512,
        "processes": 3,
        "received_per_second": 0,
        "sent_per_second": 0,
    }


def test_rates_are_per_second() -> None:
    meter = Meter()
    meter.read([instance(cpu=10**9, received=100, sent=50)], 100.0)
    (found,) = meter.read([instance(cpu=4 * 10**9, received=300, sent=250)], 102.0)
    assert (found["cpu_percent"], found["received_per_second"], found["sent_per_second"]) == (150.0, 100, 100)


@pytest.mark.parametrize("later", [instance(pid=8, cpu=10**9, received=500), instance(cpu=5, received=1)])
def test_restart_and_lost_interface_show_no_negative_rate(later: dict[str, Any]) -> None:
    meter = Meter()
    meter.read([instance(cpu=10, received=400)], 100.0)
    (found,) = meter.read([later], 101.0)
    assert (found["cpu_percent"], found["received_per_second"]) == (0, 0)


def test_loopback_is_not_traffic() -> None:
    meter = Meter()
    meter.read([instance(kind="loopback")], 100.0)
    (found,) = meter.read([instance(kind="loopback", received=10**6)], 101.0)
    assert found["received_per_second"] == 0


def test_stopped_instances_are_left_out() -> None:
    stopped = instance(pid=0)
    assert Meter().read([stopped, {**stopped, "state": None}], 1.0) == []
