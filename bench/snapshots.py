"""What snapshots cost when there are hundreds of them, and how long an instance with many takes to start."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.support import images

from bench import wire
from bench.daemons import UTSUWA, Daemon
from bench.ground import run_on_ground
from bench.wire import Wire, timed

POOL = "overlay"
MANY, PLAIN, CHANGED = "many", "plain", "changed"
"""The instances: one with all snapshots, one without, one that starts with some below it."""
GROUP = 20
"""Snapshots of which a median is taken."""
MOST_LAYERS = 10
MOST_OF_A_START = 1.2
MOST_OF_A_SNAPSHOT = 1.5
"""Times the first ones; more than what a busy machine varies."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where the last snapshots and the starts take no longer than they may."""
    parser = argparse.ArgumentParser(prog="bench/snapshots-test", description=__doc__)
    parser.add_argument("--snapshots", type=int, default=500, metavar="N", help="of one instance (500)")
    parser.add_argument("--below", type=int, default=100, metavar="N", help="below one that starts (100)")
    parser.add_argument("--starts", type=int, default=15, metavar="N", help="of each instance (15)")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if options.snapshots < 2 * GROUP or min(options.below, options.starts) < 1:
        parser.error(f"there must be at least {2 * GROUP} snapshots, one below, and one start")
    return run_on_ground("bench/snapshots-test", lambda folder: _run_on(folder, options))


def _run_on(folder: Path, options: argparse.Namespace) -> int:
    daemon = Daemon(UTSUWA, folder)
    try:
        with tempfile.TemporaryDirectory(prefix="ub-") as scratch:
            daemon.start()
            daemon.import_image(images.build_busybox(Path(scratch)), "busybox")
        return _report(_Run(daemon), options)
    finally:
        for problem in daemon.close():
            print(f"bench/snapshots-test: left behind: {problem}", file=sys.stderr)


def _report(run: _Run, options: argparse.Namespace) -> int:
    for name in (MANY, PLAIN, CHANGED):
        wire.create(run.wire, name, "busybox", POOL)
    taken = [run.snapshot(MANY, number) for number in range(options.snapshots)]
    first, last = statistics.median(taken[:GROUP]), statistics.median(taken[-GROUP:])
    for number in range(options.below):
        run.snapshot(CHANGED, number)
    starts = run.starts((PLAIN, CHANGED), options.starts)
    layers = max(run.layers.values())
    rows = [
        (f"snapshot of a stopped instance, the first {GROUP}", f"{first * 1000:.0f} ms"),
        (f"the last {GROUP} of {options.snapshots}", f"{last * 1000:.0f} ms, {last / first:.2f} of these"),
        ("start of an instance without snapshots", f"{starts[PLAIN] * 1000:.0f} ms"),
        (
            f"with {options.below} snapshots, files changed before each",
            f"{starts[CHANGED] * 1000:.0f} ms, {starts[CHANGED] / starts[PLAIN]:.2f} of that",
        ),
        ("layers of its mount", str(layers)),
    ]
    print("| operation | median |\n|---|---|")
    for row in rows:
        print("| {} | {} |".format(*row))
    good = (
        last <= first * MOST_OF_A_SNAPSHOT
        and starts[CHANGED] <= starts[PLAIN] * MOST_OF_A_START
        and layers <= MOST_LAYERS
    )
    return 0 if good else 1


class _Run:
    """One daemon with its instances."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.wire = Wire(daemon.socket)
        self.layers: dict[str, int] = {}
        """The layers of each instance's mount, when it was started last."""

    def snapshot(self, name: str, number: int) -> float:
        """Change a file and take a snapshot; return the seconds of the latter."""
        self.wire.do("POST", f"/1.0/instances/{name}/files?path=/root/file-{number % 50}", f"{number}" * 300)
        url = f"/1.0/instances/{name}/snapshots"
        return timed(lambda: self.wire.do("POST", url, {"name": f"s{number}"}))

    def starts(self, names: Sequence[str], count: int) -> dict[str, float]:
        """Start and stop the instances in turn; return the median of the seconds of each one's starts."""
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(count):
            for name in names if number % 2 else reversed(names):
                seconds[name].append(timed(partial(wire.set_state, self.wire, name, "start")))
                self.layers[name] = self._layers(name)
                wire.set_state(self.wire, name, "stop")
        return {name: statistics.median(found) for name, found in seconds.items()}

    def _layers(self, name: str) -> int:
        rootfs = self._daemon.dir / "storage-pools" / POOL / "containers" / name / "rootfs"
        for line in Path(f"/proc/{self._daemon.pid}/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind == "overlay" and before.split()[4] == str(rootfs):
                values = dict(option.partition("=")[::2] for option in options.split(","))
                return len(values["lowerdir"].split(":")) + ("upperdir" in values)
        raise wire.WireError(f"the instance {name} is not on an overlay")


if __name__ == "__main__":
    sys.exit(main())
