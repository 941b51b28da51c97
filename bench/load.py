"""The load test: hundreds of containers on one daemon, dozens of clients at once, not one error."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support import images

from bench import machine, memory, wire
from bench.daemons import UTSUWA, Daemon
from bench.ground import run_on_ground
from bench.wire import Wire

FILE = Path(__file__).with_name("load.json")
AT_A_TIME = 8
IDLE_SECONDS = 30
HUNDRED = 100
"""Of so many containers, the first and the last ones, it is shown what one more costs."""
LISTS = 5
"""Lists that are made while nobody else asks; their median counts."""
_TICKS = os.sysconf("SC_CLK_TCK")
_LISTS = {"list": 1, "list with states": 2}


@dataclass(frozen=True)
class LoadResult:
    """What one run showed; times in seconds, memory in MiB."""

    date: str
    commit: str
    command: str
    containers: int
    clients: int
    seconds: float
    launched_in: float
    deleted_in: float
    memory_before: float
    memory_running: float
    memory_after: float
    """With no container, with all, and with all when the clients have gone."""
    monitor: float
    idle_cpu: float
    """Percent of one processor that daemon and helpers take while nobody asks."""
    requests: dict[str, int]
    medians: dict[str, float]
    worst: dict[str, float]
    errors: list[str]
    each: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What a container took while the first hundred, and while the last hundred, were launched or deleted."""
    lists: dict[str, float] = field(default_factory=dict)
    """Lists of all containers, with nobody else asking."""
    machine_memory: float = 0.0
    """Of the whole machine, for each container that runs."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LoadResult:
        each = {kind: (first, last) for kind, (first, last) in content.pop("each", {}).items()}
        return cls(**content, each=each)


@dataclass
class Counts:
    """What the clients saw, by kind of request."""

    times: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def measure(self, kind: str, action: Callable[[], object]) -> None:
        start = time.perf_counter()
        try:
            action()
        except Exception as error:
            with self.lock:
                self.errors.append(f"{kind}: {error}")
            return
        spent = time.perf_counter() - start
        with self.lock:
            self.times.setdefault(kind, []).append(spent)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where nothing failed and nothing was left behind."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="bench/load-test", description=__doc__)
    parser.add_argument("--containers", type=int, default=300, metavar="N", help="busybox containers (300)")
    parser.add_argument("--clients", type=int, default=50, metavar="N", help="clients at once (50)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="how long they ask (60)")
    options = parser.parse_args(arguments)
    command = " ".join(["bench/load-test", *arguments])
    return run_on_ground("bench/load-test", lambda folder: _keep(_run_on(folder, options, command)))


def _keep(result: LoadResult) -> int:
    FILE.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    print(section(result))
    print("bench/load-test: `bench/run --redraw` takes this into the report", file=sys.stderr)
    return 1 if result.errors else 0


def _run_on(folder: Path, options: argparse.Namespace, command: str) -> LoadResult:
    daemon = Daemon(UTSUWA, folder)
    try:
        with tempfile.TemporaryDirectory(prefix="ub-") as scratch:
            daemon.start()
            daemon.import_image(images.build_busybox(Path(scratch)), "busybox")
        return _Run(daemon, options).result(command)
    finally:
        for problem in daemon.close():
            print(f"bench/load-test: {problem}", file=sys.stderr)


class _Run:
    def __init__(self, daemon: Daemon, options: argparse.Namespace) -> None:
        self.daemon = daemon
        self.options = options
        self.names = [f"load-{number}" for number in range(options.containers)]
        self.counts = Counts()
        self.each: dict[str, tuple[float, float]] = {}

    def result(self, command: str) -> LoadResult:
        began, commit = datetime.now(UTC), machine.commit()
        before, free = memory.daemon(self.daemon), memory.available()
        launched_in = self._each("launch", self._launch)
        taken = (free - memory.available()) / len(self.names)
        running, monitor = memory.daemon(self.daemon), memory.monitor(self.daemon)
        idle = self._idle_cpu()
        lists = {kind: self._list_alone(recursion) for kind, recursion in _LISTS.items()}
        self._ask()
        after = memory.daemon(self.daemon)
        self._check_all_run()
        deleted_in = self._each("stop and delete", wire.remove)
        times = self.counts.times
        return LoadResult(
            date=began.strftime("%Y-%m-%d %H:%M"),
            commit=commit,
            command=command,
            containers=self.options.containers,
            clients=self.options.clients,
            seconds=self.options.seconds,
            launched_in=round(launched_in, 1),
            deleted_in=round(deleted_in, 1),
            memory_before=round(before, 1),
            memory_running=round(running, 1),
            memory_after=round(after, 1),
            monitor=round(monitor, 2),
            idle_cpu=round(idle, 2),
            requests={kind: len(found) for kind, found in times.items()},
            medians={kind: round(statistics.median(found), 4) for kind, found in times.items()},
            worst={kind: round(max(found), 4) for kind, found in times.items()},
            errors=self.counts.errors,
            each=self.each,
            lists=lists,
            machine_memory=round(taken, 2),
        )

    def _each(self, kind: str, action: Callable[[Wire, str], None]) -> float:
        """Do something with every container, some at a time; gives the seconds."""

        ends: list[float] = []

        def one(name: str) -> None:
            with Wire(self.daemon.socket) as own:
                self.counts.measure(kind, lambda: action(own, name))
            ends.append(time.monotonic())

        start = time.monotonic()
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(one, self.names))
        spent = time.monotonic() - start
        self.each[kind] = first_and_last(start, ends)
        print(f"bench/load-test: {kind}: {len(self.names)} in {spent:.1f} s", file=sys.stderr, flush=True)
        return spent

    def _launch(self, own: Wire, name: str) -> None:
        wire.create(own, name, "busybox", self.daemon.pools[0])
        wire.set_state(own, name, "start")

    def _idle_cpu(self) -> float:
        before = _cpu(self.daemon.pid)
        time.sleep(IDLE_SECONDS)
        return 100 * (_cpu(self.daemon.pid) - before) / IDLE_SECONDS

    def _ask(self) -> None:
        deadline = time.monotonic() + self.options.seconds
        with ThreadPoolExecutor(self.options.clients) as threads:
            for number in range(self.options.clients):
                threads.submit(self._client, number, deadline)

    def _client(self, number: int, deadline: float) -> None:
        """Mostly commands in containers, and now and then a list; one request at a time."""
        chance = random.Random(number)  # noqa: S311 - which container is asked is no secret
        with Wire(self.daemon.socket) as own:
            while time.monotonic() < deadline:
                match chance.randrange(10):
                    case 0:
                        self.counts.measure("list with states", lambda: self._list(own, 2))
                    case 1 | 2:
                        self.counts.measure("list", lambda: self._list(own, 1))
                    case _:
                        name = chance.choice(self.names)
                        self.counts.measure("exec", lambda name=name: wire.run_inside(own, name, "true"))  # type: ignore[misc]

    def _list(self, own: Wire, recursion: int) -> None:
        found = own.get(f"/1.0/instances?recursion={recursion}")
        if len(found) != len(self.names):
            raise wire.WireError(f"a list of {len(found)} instead of {len(self.names)} instances")

    def _list_alone(self, recursion: int) -> float:
        found = []
        for _ in range(LISTS):
            start = time.perf_counter()
            self._list(self.daemon.wire, recursion)
            found.append(time.perf_counter() - start)
        return round(statistics.median(found), 4)

    def _check_all_run(self) -> None:
        for instance in self.daemon.wire.get("/1.0/instances?recursion=1"):
            if instance["status"] != "Running":
                self.counts.errors.append(f"{instance['name']} is {instance['status']}")


def first_and_last(start: float, ends: Sequence[float]) -> tuple[float, float]:
    """Seconds for each of the first hundred that ended, and of the last hundred; of few, of half."""
    ends = sorted(ends)
    some = min(HUNDRED, len(ends) // 2)
    if not some:
        return 0.0, 0.0
    return round((ends[some - 1] - start) / some, 4), round((ends[-1] - ends[-1 - some]) / some, 4)


def _cpu(pid: int) -> float:
    """Seconds of processor that a process and its children, which are helpers, have taken."""
    total = 0.0
    for each in [pid, *memory.helpers(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def section(result: LoadResult) -> str:
    """The run as a section of the report."""
    said = (
        f"Written by `{result.command}` on {result.date} UTC, commit {result.commit}:"
        f" {result.containers} busybox containers on one daemon, launched {AT_A_TIME} at a time;"
        f" then {result.clients} clients that list and run `true` for {result.seconds:g} s."
    )
    lines = [
        "## Load",
        "",
        said,
        "",
        "|  | measured |",
        "| --- | ---: |",
        f"| launched in | {result.launched_in:.1f} s |",
        f"| stopped and deleted in | {result.deleted_in:.1f} s |",
        f"| daemon and helpers (PSS), no container | {result.memory_before:.0f} MiB |",
        f"| daemon and helpers, {result.containers} run | {result.memory_running:.0f} MiB |",
        f"| daemon and helpers, after the clients | {result.memory_after:.0f} MiB |",
        f"| monitor of one container | {result.monitor:.2f} MiB |",
        f"| daemon and helpers, idle with {result.containers} | {result.idle_cpu:.2f} % of a processor |",
        *_growth(result),
        f"| errors | {len(result.errors)} |",
        "",
        "| request | count | median | longest |",
        "| --- | ---: | ---: | ---: |",
    ]
    for kind, count in result.requests.items():
        median, worst = result.medians[kind] * 1000, result.worst[kind] * 1000
        lines.append(f"| {kind} | {count} | {median:.0f} ms | {worst:.0f} ms |")
    return "\n".join([*lines, *[f"- {error}" for error in result.errors[:10]], ""])


def _growth(result: LoadResult) -> Iterator[str]:
    """What one container more costs; runs of earlier versions do not tell."""
    few = min(HUNDRED, result.containers // 2)
    for kind, (first, last) in result.each.items():
        took = f"{first * 1000:.0f} and {last * 1000:.0f} ms"
        yield f"| {kind}, each of the first and of the last {few} | {took} |"
    for kind, seconds in result.lists.items():
        yield f"| {kind} of {result.containers}, alone | {seconds * 1000:.0f} ms |"
    if result.machine_memory:
        yield f"| memory of the machine, each container | {result.machine_memory:.2f} MiB |"


def read() -> LoadResult | None:
    """The kept run, where there is one."""
    return LoadResult.from_json(json.loads(FILE.read_text())) if FILE.exists() else None


if __name__ == "__main__":
    sys.exit(main())
