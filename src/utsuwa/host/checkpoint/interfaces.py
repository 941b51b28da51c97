"""Network interfaces inside of a container that CRIU cannot save or create again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.checkpoint.obstacles import Obstacle
from utsuwa.host.processes.run import run

log = logging.getLogger(__name__)

_KINDS = frozenset(("veth", "bridge", "tun", "sit"))
_FALLBACKS = frozenset(("gre0", "gretap0", "erspan0"))
"""What the kernel adds to each network namespace, depending on the host's modules, and CRIU leaves out."""


async def find(init_pid: int) -> list[Obstacle]:
    """Return the interfaces that stand in the way in the network namespace of a container's init."""
    argv = ["nsenter", f"--net=/proc/{init_pid}/ns/net", "ip", "-details", "-json", "link", "show"]
    try:
        return list(judge(json.loads((await run(argv)).stdout)))
    except (ProcessFailed, ValueError) as error:  # it has just ended
        log.warning("cannot look at the interfaces of a container: %s", error)
        return []


def judge(links: list[dict[str, Any]]) -> Iterator[Obstacle]:
    """Yield what of the output of `ip -details -json link` stands in the way."""
    for link in links:
        name, kind = str(link.get("ifname", "")), str(link.get("linkinfo", {}).get("info_kind", ""))
        if link.get("link_type") == "loopback" or kind in _KINDS or name in _FALLBACKS:
            continue
        described = f"of the type {kind}" if kind else "of the host"
        yield Obstacle(f"the network interface {name} is {described}", f"remove {name}")
