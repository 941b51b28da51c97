"""`utsuwa top`: what running instances use, shown again and again."""

from __future__ import annotations

import sys
import time

from utsuwa.cli.errors import UsageError
from utsuwa.cli.output.render import natural, show_list, unsorted
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import NUMBER, TEXT, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from utsuwa.cli.output.render import Column
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

    Totals = tuple[int, int, int]
    """CPU time in nanoseconds, bytes received and bytes sent."""

_CLEAR = "\033[H\033[2J"
_LOOPBACK = "loopback"

# Name: value by which instances are sorted, largest first for numbers.
_ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cpu": lambda r: -r["cpu_percent"],
    "memory": lambda r: -r["memory"],
    "name": lambda r: natural(r["name"]),
    "network": lambda r: -(r["received_per_second"] + r["sent_per_second"]),
    "processes": lambda r: -r["processes"],
}


class Meter:
    """Turns the totals of successive readings into rates."""

    def __init__(self) -> None:
        self._earlier: dict[tuple[str, str, int], Totals] = {}
        self._moment = 0.0

    def read(self, instances: list[dict[str, Any]], moment: float) -> list[dict[str, Any]]:
        """Return the usage of the running instances; rates are 0 for one that was not there before.

        `moment` is in seconds. An instance that has been restarted counts as a new one, as do its totals.
        """
        seconds = moment - self._moment
        earlier, self._earlier, self._moment = self._earlier, {}, moment
        found = []
        for instance in instances:
            state = instance["state"]
            if not state or not state["pid"]:
                continue
            key = instance["project"], instance["name"], state["pid"]
            totals = self._earlier[key] = _totals(state)
            cpu, received, sent = _rates(earlier.get(key, totals), totals, seconds)
            found.append(
                {
                    "name": instance["name"],
                    "project": instance["project"],
                    "cpu_percent": round(cpu / 1e7, 1),
                    "cpu_seconds": totals[0] / 1e9,
                    "memory": state["memory"]["usage"],
                    "swap": state["memory"]["swap_usage"],
                    "processes": state["processes"],
                    "received_per_second": int(received),
                    "sent_per_second": int(sent),
                }
            )
        return found


def _totals(state: Mapping[str, Any]) -> Totals:
    counters = [nic["counters"] for nic in (state["network"] or {}).values() if nic["type"] != _LOOPBACK]
    received = sum(found["bytes_received"] for found in counters)
    return state["cpu"]["usage"], received, sum(found["bytes_sent"] for found in counters)


def _rates(earlier: Totals, now: Totals, seconds: float) -> tuple[float, float, float]:
    """Return what was added per second; an interface that is gone must not make a rate negative."""
    if seconds <= 0:
        return 0, 0, 0
    cpu, received, sent = (max(0, new - old) / seconds for old, new in zip(earlier, now, strict=True))
    return cpu, received, sent


def _columns(everywhere: bool) -> list[Column]:
    from utsuwa.cli.output.values import size

    project: list[Column] = [("PROJECT", lambda r: r["project"])] if everywhere else []
    return [
        *project,
        ("NAME", lambda r: r["name"]),
        ("CPU%", lambda r: f"{r['cpu_percent']:.1f}"),
        ("CPU TIME", lambda r: f"{r['cpu_seconds']:.2f}s"),
        ("MEMORY", lambda r: size(r["memory"])),
        ("SWAP", lambda r: size(r["swap"])),
        ("PROCESSES", lambda r: str(r["processes"])),
        ("RECEIVED/S", lambda r: size(r["received_per_second"])),
        ("SENT/S", lambda r: size(r["sent_per_second"])),
    ]


def _run(session: Session, arguments: list[str], flags: Flags) -> None:
    order, style = flags.text("sort"), flags.text("format")
    if order not in _ORDERS:
        raise UsageError(f"Cannot sort by {order!r}: use one of {', '.join(_ORDERS)}")
    delay, count = flags.number("delay"), flags.number("count")
    if delay < 1 or count < 0:
        raise UsageError("--delay is 1 or more seconds, and --count 0 or more")
    server, rest = session.takes_remote(arguments)
    if rest:
        raise UsageError(
            f"Unexpected argument {rest[0]!r}: only a remote can be given, as in `utsuwa top host:`"
        )
    everywhere = flags.on("all-projects")
    query = {"recursion": "2"} | ({"all_projects": "true"} if everywhere else {})
    meter, columns, fresh = Meter(), _columns(everywhere), style == "table" and sys.stdout.isatty()
    # Rates need two readings: the first, which is not shown, is followed by a short pause.
    meter.read(server.get("/1.0/instances", **query), time.monotonic())
    shown, pause = 0, 1
    try:
        while not count or shown < count:
            time.sleep(pause)
            rows = meter.read(server.get("/1.0/instances", **query), time.monotonic())
            rows.sort(key=lambda row: (_ORDERS[order](row), natural(row["name"])))
            if fresh:
                session.write(_CLEAR)
            show_list(session, style, columns, rows, "usage", order=unsorted)
            sys.stdout.flush()
            shown, pause = shown + 1, delay
    except KeyboardInterrupt:
        pass  # this is how it is ended


COMMAND = Command(
    "top",
    "Show what running instances use, until interrupted",
    _run,
    args="[<remote>:]",
    flags=(
        Flag("all-projects", "Show instances from all projects"),
        Flag("count", "How often to show it (0: until interrupted)", "n", kind=NUMBER, default="0"),
        Flag("delay", "Seconds between two readings", "d", kind=NUMBER, default="5"),
        format_flag(),
        Flag("sort", f"Order ({'|'.join(_ORDERS)})", kind=TEXT, default="cpu", complete=tuple(_ORDERS)),
    ),
    example=("utsuwa top --sort=memory -d 2", "Show every two seconds who uses most memory."),
    details="CPU% is the share of one processor: with two processors, at most 200.",
)
