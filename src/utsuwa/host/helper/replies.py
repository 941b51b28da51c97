"""Replies of the helper, as the daemon receives them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

from utsuwa.core.errors import HostError
from utsuwa.host.helper import protocol
from utsuwa.host.lxc import reasons
from utsuwa.host.processes import pipes


class HelperGone(HostError):
    """The helper or its worker ended before it replied."""

    key = "helper-gone"

    def __init__(self) -> None:
        super().__init__("The container helper ended unexpectedly: try again")


async def receive(
    reply: socket.socket, decode: Callable[[bytes], dict[str, Any]] = json.loads
) -> tuple[dict[str, Any], list[int]]:
    """Wait for a message and its descriptors. Raises HelperGone at the end."""
    while True:
        try:
            received = protocol.receive(reply, decode)
        except BlockingIOError:
            await pipes.readable(reply.fileno())
            continue
        except ConnectionResetError:
            continue  # it ended without reading everything: reported once, before the replies that it sent
        if received is None:
            raise HelperGone
        return received


def judge(answer: Mapping[str, Any]) -> Any:
    """Return the result in a reply. Raises HostError with liblxc's reason if the request failed."""
    if "error" in answer:
        raise HostError(reasons(answer["log"]) or answer["error"])
    return answer["ok"]
