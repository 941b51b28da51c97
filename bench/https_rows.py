"""Rows about HTTPS: connections, and the memory that many commands leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import memory, wire
from bench.daemons import ADDRESS, ROOT
from bench.places import AT_A_TIME, Place
from bench.table import BUSYBOX

if TYPE_CHECKING:
    from bench.rows import Bench

_REST_SECONDS = 60
_CONNECTIONS = 400
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


class HttpsRows:
    """The part `https`, on each daemon's best pool, after a restart with one running container."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measure(self) -> None:
        """Also the memory of daemons just started, and what is left of many commands after a rest."""
        bench = self._bench
        best = bench.best_places()
        running = partial(bench.running, lambda p: [p.name("x")])
        for place in best:
            place.daemon.restart()
            wire.create(place.daemon.wire, place.name("x"), BUSYBOX, place.pool)
            wire.set_state(place.daemon.wire, place.name("x"), "start")
            place.daemon.listen()
            self._exec(place)
        if bench.wants("memory-fresh") or bench.wants("memory-execs"):
            bench.turns("memory-fresh", running(lambda p: memory.daemon(p.daemon)), best)
            failed = {place.subject.label: self._execs(place) for place in best}
            time.sleep(_REST_SECONDS)
            bench.turns("memory-execs", running(lambda p: memory.daemon(p.daemon)), best)
            for label, reasons in failed.items():
                if reasons:
                    remark = f"{len(reasons)} of {bench.sizes.execs} commands failed: {reasons[0]}"
                    bench.samples.remark("memory-execs", label, remark)
        if bench.wants("tls-connect"):
            for _ in range(bench.sizes.rounds):
                bench.turns("tls-connect", _connect, best)

    def _exec(self, place: Place) -> None:
        place.daemon.remote_exec(place.name("x"), "true")

    def _execs(self, place: Place) -> list[str]:
        """All of them, several at a time; returns the reasons of those that failed."""
        failed = []

        def one(_number: int) -> None:
            try:
                self._exec(place)
            except (wire.WireError, subprocess.TimeoutExpired) as error:
                failed.append(str(error))

        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(one, range(self._bench.sizes.execs)))
        return failed


def _connect(place: Place) -> float:
    """Seconds for each of many new connections with a request, the daemon on a processor of its own."""
    conf = place.daemon.home / "client"
    first, *others = sorted(os.sched_getaffinity(0))
    argv = [
        *place.daemon.box.prefix, "taskset", "-c", ",".join(map(str, others or [first])),
        sys.executable, "-m", "bench.connects",
        ADDRESS, str(conf / "client.crt"), str(conf / "client.key"), str(_CONNECTIONS),
    ]  # fmt: skip
    with _only_on(place.daemon.pid, first):
        done = subprocess.run(argv, env=_ENVIRONMENT, capture_output=True, text=True, timeout=wire.SECONDS)
    if done.returncode:
        raise wire.WireError(f"connecting ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return float(done.stdout) / _CONNECTIONS


@contextmanager
def _only_on(pid: int, processor: int) -> Iterator[None]:
    """Have all threads of a process run on one processor only."""
    before = os.sched_getaffinity(pid)
    _bind(pid, {processor})
    try:
        yield
    finally:
        _bind(pid, before)


def _bind(pid: int, processors: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), processors)
