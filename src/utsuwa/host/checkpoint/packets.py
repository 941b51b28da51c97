"""The firewall rules by which CRIU keeps packets from a container that it saves."""

from __future__ import annotations

import json
import logging

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes.run import run

log = logging.getLogger(__name__)

_TABLE = "CRIU-"
"""How the names of these tables of nftables begin."""


async def let_through(init_pid: int) -> None:
    """Let packets reach a container again, which a CRIU that failed or was killed may still prevent."""
    inside = ["nsenter", f"--net=/proc/{init_pid}/ns/net", "nft"]
    try:
        listed = json.loads((await run([*inside, "-j", "list", "tables"])).stdout)
        for entry in listed["nftables"]:
            table = entry.get("table", {})
            if str(table.get("name", "")).startswith(_TABLE):
                await run([*inside, "delete", "table", table["family"], table["name"]])
    except (ProcessFailed, ValueError, KeyError) as error:
        log.warning("cannot look for rules that CRIU has left in a container: %s", error)
