"""The command: bring all daemons up, measure, take them down, and write the report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from tests.support import images
from tests.support.disks import DiskError

from bench import chart, load, machine
from bench.bare import Bare
from bench.daemons import KINDS, Daemon, Missing, version_of
from bench.ground import ground
from bench.report import BARE, Report
from bench.rows import Bench, Sizes
from bench.samples import Result
from bench.table import (
    ALIASES,
    ALIASES_KEY,
    BIG_KEY,
    BIG_MIB,
    BURST_KEY,
    BUSYBOX,
    COUNT_KEY,
    DEBIAN,
    EXECS_KEY,
    FAR_KEY,
    FAR_MIB,
    FILES,
    FILES_KEY,
    MANY_KEY,
    PARTS,
    PAUSE_KEY,
    PAUSE_SECONDS,
    RUNNING_KEY,
    TOUCHED_KEY,
    TOUCHED_MIB,
    chosen,
)

FOLDER = Path(__file__).resolve().parent
FULL = Sizes(rounds=7, other_rounds=7, bursts=3, burst=50, instances=200, execs=1000, many=1000, seconds=3600)
SHOWN_RUNS = 8
QUICK = Sizes(rounds=3, other_rounds=1, bursts=1, burst=16, instances=50, execs=200, many=200, seconds=150)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 where something was left behind, or only one side could be measured."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _options(arguments)
    if not options.redraw:
        if os.geteuid() != 0:
            print("bench: containers need root; run it as root", file=sys.stderr)
            return 1
        # An interrupted run cleans up, and is not kept.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            result = _measure(options, _command_line(arguments))
        except KeyboardInterrupt:
            print("bench: interrupted", file=sys.stderr)
            return 130
        except DiskError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        _keep(result, options.out)
    return _write(options.out)


def _command_line(arguments: Sequence[str]) -> str:
    wrapper = ["bench/with-incus", "FOLDER"] if "WITH_INCUS_FILES" in os.environ else []
    return " ".join([*wrapper, "bench/run", *arguments])


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure Utsuwa beside LXD and Incus.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and containers, under 5 minutes")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds over rows of one container")
    parser.add_argument("--bursts", type=int, metavar="N", help="times that many are launched at once")
    parser.add_argument("--burst", type=int, metavar="N", help="containers of a burst; so many run in lists")
    parser.add_argument("--instances", type=int, metavar="N", help="instances in lists, running or not")
    parser.add_argument("--execs", type=int, metavar="N", help="commands over HTTPS before memory is read")
    parser.add_argument("--many", type=int, metavar="N", help="stopped instances in the longest list")
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help=f"measure these, or parts: {', '.join(PARTS)}"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[kind.name for kind in KINDS])
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, write the report anew")
    options = parser.parse_args(arguments)
    try:
        options.rows = chosen(options.rows or PARTS)
    except LookupError as error:
        parser.error(error.args[0])
    return options


def _sizes(options: argparse.Namespace) -> Sizes:
    base = QUICK if options.quick else FULL
    burst = options.burst or base.burst
    return Sizes(
        rounds=options.rounds or base.rounds,
        other_rounds=base.other_rounds,
        bursts=options.bursts or base.bursts,
        burst=burst,
        instances=max(options.instances or base.instances, burst),
        execs=options.execs or base.execs,
        many=options.many or base.many,
        seconds=base.seconds,
    )


def _measure(options: argparse.Namespace, command: str) -> Result:
    sizes = _sizes(options)
    start = time.monotonic()
    began, commit = datetime.now(UTC), machine.commit()
    absent: dict[str, str] = {}
    versions: dict[str, str] = {}
    problems: list[str] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ub-")))
        folder = stack.enter_context(ground())
        built = {BUSYBOX: images.build_busybox(scratch), DEBIAN: images.debian()}
        daemons = []
        for kind in KINDS:
            if not options.only or kind.name in options.only:
                try:
                    versions[kind.name] = version_of(kind)
                    daemons.append(_start(Daemon(kind, folder), stack, problems))
                    daemons[-1].make_bridge()
                    absent |= {f"{kind.name} {pool}": why for pool, why in daemons[-1].problems.items()}
                except Missing as error:
                    absent[kind.name] = str(error)
        bare = _bare(built[DEBIAN], folder, stack, absent)
        bench = Bench(daemons, bare, built, sizes, options.rows)
        watch = stack.enter_context(machine.LoadWatch())
        bench.run()
        surroundings = machine.describe(folder)
    return Result(
        date=began.strftime("%Y-%m-%d %H:%M"),
        commit=commit,
        command=command,
        seconds=round(time.monotonic() - start),
        rounds=bench.rounds,
        counts={
            RUNNING_KEY: sizes.burst,
            BURST_KEY: sizes.burst,
            COUNT_KEY: sizes.instances,
            PAUSE_KEY: PAUSE_SECONDS,
            EXECS_KEY: sizes.execs,
            MANY_KEY: sizes.many,
            FILES_KEY: FILES,
            ALIASES_KEY: ALIASES,
            BIG_KEY: BIG_MIB,
            TOUCHED_KEY: TOUCHED_MIB,
            FAR_KEY: FAR_MIB,
        },
        machine=surroundings,
        versions=versions | machine.libraries(),
        absent=absent,
        load=watch.load,
        subjects=[place.subject for place in bench.places],
        samples=bench.samples,
        problems=[*bench.problems, *problems],
    )


def _start(daemon: Daemon, stack: ExitStack, problems: list[str]) -> Daemon:
    stack.callback(lambda: problems.extend(daemon.close()))
    daemon.start()
    return daemon


def _bare(image: images.Image, folder: Path, stack: ExitStack, absent: dict[str, str]) -> Bare | None:
    try:
        bare = Bare(image, folder)
    except Exception as error:
        absent[f"bare {BARE}"] = str(error)
        return None
    stack.callback(bare.close)
    return bare


def _keep(result: Result, out: Path) -> None:
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{result.date[:10]}-{result.commit.rstrip('+')}.json"
    (folder / name).write_text(json.dumps(result.to_json(), indent=1) + "\n")


def _write(out: Path) -> int:
    """The report of the newest kept run, with the course of all."""
    paths = (out / "results").glob("*.json")
    results = sorted((Result.from_json(json.loads(path.read_text())) for path in paths), key=lambda r: r.date)
    if not results:
        print(f"bench: no results in {out / 'results'}; run without --redraw", file=sys.stderr)
        return 1
    newest, results = results[-1], results[-SHOWN_RUNS:]
    kept = load.read()
    more = f"\n{load.section(kept)}" if kept is not None else ""
    (out / "RESULTS.md").write_text(Report(newest, results[:-1]).text() + more)
    (out / "ratios.svg").write_text(chart.bars(newest))
    if len(results) > 1:
        (out / "course.svg").write_text(chart.course(results))
    print((out / "RESULTS.md").read_text())
    both = {subject.ours for subject in newest.subjects} == {True, False}
    return 0 if both and not newest.problems else 1


if __name__ == "__main__":
    sys.exit(main())
