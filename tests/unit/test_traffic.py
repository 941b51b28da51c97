"""What `tc` is told, where the kernel can police and where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.host.network import traffic
from utsuwa.host.processes.run import Completed


class Kernel:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.polices = True
        self.helpers: list[str] = []

    async def run(self, argv: Sequence[str], **_: Any) -> Completed:
        line = " ".join(argv)
        if "police" in argv and not self.polices:
            raise ProcessFailed(argv, 2, "Failed to load TC action module.")
        if " del " not in line:
            self.told.append(line)
        return Completed(tuple(argv), 0, b"", b"")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    played = Kernel()
    monkeypatch.setattr(traffic, "run", played.run)
    monkeypatch.setattr(traffic, "_create", played.helpers.append)
    monkeypatch.setattr(traffic, "_delete", lambda name: None)
    return played


async def test_no_limits(kernel: Kernel) -> None:
    await traffic.limit("v0", to_guest=None, from_guest=None)
    assert kernel.told == []


async def test_into_the_guest(kernel: Kernel) -> None:
    await traffic.limit("v0", to_guest=10**6, from_guest=None)
    assert kernel.told == [
        "tc qdisc add dev v0 root handle 1: htb default 10",
        "tc class add dev v0 parent 1: classid 1:10 htb rate 1000000bit burst 131072 cburst 131072",
    ]


async def test_from_the_guest(kernel: Kernel) -> None:
    await traffic.limit("v0", to_guest=None, from_guest=10**6)
    assert kernel.told == [
        "tc qdisc add dev v0 handle ffff: ingress",
        "tc filter add dev v0 parent ffff: protocol all u32 match u32 0 0 "
        "police rate 1000000bit burst 131072 mtu 64kb drop",
    ]
    assert kernel.helpers == []


async def test_from_the_guest_without_policing(kernel: Kernel) -> None:
    kernel.polices = False
    await traffic.limit("v0", to_guest=None, from_guest=10**6)
    helper = traffic.helper_name("v0")
    assert kernel.helpers == [helper]
    assert kernel.told[1].endswith(f"action mirred egress redirect dev {helper}")
    assert kernel.told[2].startswith(f"tc qdisc add dev {helper} root")
    assert len(helper) <= 15
    assert helper != traffic.helper_name("v1")


async def test_neither(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise HostError("the kernel cannot limit traffic from instances")

    kernel.polices = False
    monkeypatch.setattr(traffic, "_create", refuse)
    with pytest.raises(HostError, match="cannot limit traffic"):
        await traffic.limit("v0", to_guest=None, from_guest=10**6)
