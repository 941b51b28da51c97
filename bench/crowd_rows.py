"""Rows about many instances at a time, most of which are only listed, or all of which run."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING

from bench import wire
from bench.places import Place, create, launch, remove, start
from bench.wire import timed

if TYPE_CHECKING:
    from bench.rows import Bench

_SCRAPE_SECONDS = 10
_SCRAPES = 3


class CrowdRows:
    """The parts `many` and `crowd`, on each daemon's best pool."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure_list(self) -> None:
        """Full state of many instances, of which a burst's number run."""
        bench = self._bench
        sizes, best = bench.sizes, bench.best_places()
        running = {place: [place.name(f"m{i}") for i in range(sizes.burst)] for place in best}
        stopped = {place: [place.name(f"s{i}") for i in range(sizes.many)] for place in best}
        for place in best:
            bench.together(place, stopped[place] + running[place], partial(create, place))
            bench.together(place, running[place], start)
        for _ in range(sizes.rounds):
            url = "/1.0/instances?recursion=2"
            bench.turns("list-many", bench.running(lambda p: running[p], partial(bench.get, url)), best)
            scrape = partial(_scrape, sizes.burst)
            bench.turns("metrics", bench.running(lambda p: running[p], scrape), best)
        for place in best:
            bench.together(place, stopped[place] + running[place], remove)

    def measure_crowd(self) -> None:
        """As many running as others have in lists; those of one daemon at a time, for their memory."""
        bench = self._bench
        count = bench.sizes.instances

        def names_of(place: Place) -> list[str]:
            return [place.name(f"w{i}") for i in range(count)]

        for place in bench.best_places():
            names = names_of(place)
            bench.together(place, names, partial(launch, place))
            for _ in range(min(bench.sizes.rounds, _SCRAPES)):
                action = bench.running(names_of, partial(_scrape, count))
                bench.turns("metrics-crowd", action, [place])
            bench.together(place, names, remove)


def _scrape(count: int, place: Place) -> float:
    """One request after a pause, as a monitoring system makes it: LXD and Incus keep replies for 8 s."""
    time.sleep(_SCRAPE_SECONDS)
    replies: list[str] = []
    seconds = timed(lambda: replies.append(place.daemon.wire.metrics()))
    shown = len(re.findall(r"(?m)^\w+_procs_total\{", replies[0]))
    if shown < count:
        raise wire.WireError(f"metrics show {shown} of {count} running containers")
    return seconds
