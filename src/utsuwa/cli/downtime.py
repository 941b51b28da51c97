"""Moves with a planned downtime: why, what the user is told and asked, and what follows if all is lost."""

from __future__ import annotations

import sys

from utsuwa.cli.errors import CommandFailed
from utsuwa.client import lean
from utsuwa.client.errors import ApiError, BadAnswer, Unreachable
from utsuwa.client.server import instance_path, quote
from utsuwa.client.statuses import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

EXTENSION = "instance_planned_downtime"
LIVE_EXTENSION = "instance_live_move"
FLAG = "planned-downtime"
_SETTLE_SECONDS = 120
"""Seconds within which a target that cannot be reached has to tell what has become of the instance."""


def reasons(source: Server, target: Server, name: str) -> list[str]:
    """Return what prevents a move without a downtime: on either host, and inside of the instance."""
    found = [
        f"the {which} cannot move running instances"
        for server, which in ((source, "source"), (target, "target"))
        if not server.has(LIVE_EXTENSION)
    ]
    criu = ((target.get("/1.0").get("environment") or {}).get("kernel_features") or {}).get("criu")
    if criu != "true":
        found.append("the target has no CRIU")
    if source.has("instance_checkpoint"):
        checkpoint = source.get(f"{instance_path(name)}/checkpoint")
        found += [_reason(one) for one in checkpoint["obstacles"] if not one["passing"]]
    return found


def _reason(obstacle: dict[str, Any]) -> str:
    process = f"the process {obstacle['pid']} ({obstacle['process']}) " if obstacle["process"] else ""
    return process + str(obstacle["reason"])


class Downtime:
    """The planned downtime of one move, to which the user has `agreed` beforehand, or is asked."""

    def __init__(self, session: Session, names: tuple[str, str], why: list[str], *, agreed: bool) -> None:
        """`names` are those of the instance on the source and on the target."""
        self._session = session
        self._name, self._new = names
        self._why = why
        self._agreed = agreed

    def check(self, source: Server, target: Server) -> None:
        """Raise CommandFailed if it cannot be used, or the user can neither be asked nor has agreed."""
        for server, which in ((source, "source"), (target, "target")):
            if not server.has(EXTENSION):
                raise CommandFailed(
                    f"The {which} cannot move a running instance with a planned downtime: copy {self._name} "
                    "with --stateless, stop it, copy it again with --refresh, start it there, delete it here"
                )
        for reason in self._why:
            self._session.say(f"{self._name} cannot be moved while it runs: {reason}")
        if not self._agreed and not sys.stdin.isatty():
            raise CommandFailed(
                f"{self._name} has to be stopped for the move, after most of its files have been copied: "
                f"use --{FLAG} to agree to that"
            )

    def agree(self, source: Server, operation: dict[str, Any]) -> None:
        """Tell the expected downtime, and agree to it or ask. Raises CommandFailed if the user does not."""
        secret = quote(operation["metadata"]["downtime"])
        socket = source.websocket(f"/1.0/operations/{operation['id']}/websocket?secret={secret}")
        try:
            if self._agreed:
                socket.send_text("go")  # from now on, nothing depends on this client
            message = socket.receive()
            if message is None:
                return  # the operations tell what has happened
            expected = lean.loads(message[1].decode())
            self._session.say(
                f"Expected downtime of {self._name}: {expected['files']} s for the files, the time in which "
                f"it shuts down (at most {expected['stop_limit']} s), and its start"
            )
            if not self._agreed:
                if input(f"Stop {self._name} and complete the move (yes/no): ").lower() not in ("yes", "y"):
                    raise CommandFailed(f"{self._name} was not moved, and runs on")
                socket.send_text("go")
        finally:
            socket.close()

    def ended(self, record: dict[str, Any]) -> None:
        """Tell the downtime, from the record of the source's operation."""
        took = (record.get("metadata") or {}).get("downtime")
        self._session.say(f"Downtime of {self._name}: {took} s until it was started")

    def settle(self, source: Server, target: Server, where: dict[str, str]) -> bool:
        """After a failure, have the instance run on one server if neither takes that upon itself.

        Returns whether it has been moved nevertheless.
        """
        try:
            left = source.get(instance_path(self._name))
        except (ApiError, Unreachable, BadAnswer):
            return False
        if left["config"].get("volatile.last_state.power") != "MOVED" or left["status"] != "Stopped":
            return False
        moved = self._runs_on(target, where)
        if moved is None:
            return False
        if moved:
            self._session.wait(source, source.delete(instance_path(self._name)), f"Deleting {self._name}")
            return True
        body = {"action": "start", "timeout": -1, "force": False, "stateful": False}
        self._session.wait(source, source.put(f"{instance_path(self._name)}/state", body))
        return False

    def _runs_on(self, target: Server, where: dict[str, str]) -> bool | None:
        """Return whether the target runs it, or is about to; None if the target does not tell in time."""
        import time

        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                if target.get(instance_path(self._new), **where)["status"] in RUNNING:
                    return True
            except ApiError as error:
                return False if error.code == 404 else None
            except (Unreachable, BadAnswer):  # it may be starting
                target.close()
            time.sleep(1)
        return None
