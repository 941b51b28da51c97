"""The daemon is killed in the midst of changes; after its next start each is whole or was never made.

Once at random instants, and once at chosen points of its work: before and after each transaction and
each step of a storage driver. Variables of the environment:

- `UTSUWA_CRASH_KILLS`: how many kills at random instants;
- `UTSUWA_CRASH_POINTS`: how many at chosen points (0: at all that there are), otherwise half as many;
- `UTSUWA_CRASH_SEED`: the seed of a run that failed, which is printed;
- `UTSUWA_CRASH_ONLY`: the number of one random instant, to be repeated as often as there are kills;
- `UTSUWA_CRASH_TABLE`: a file for the table of random instants, which is printed as well.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import images
from tests.support.boxed import boxed_daemon
from tests.support.crash_images import RemoteImages
from tests.support.crash_steps import Leaked, Lost, Step, told_as
from tests.support.crash_world import EXTRA, World
from tests.support.faults import Faults
from tests.support.image_server import serving
from tests.support.images import Image
from tests.support.long import amount
from tests.support.tls import make_identity

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("UTSUWA_CRASH_KILLS", amount(8, long=200)))
POINTS = int(os.environ.get("UTSUWA_CRASH_POINTS", amount(KILLS // 2, long=0)))
SEED = os.environ.get("UTSUWA_CRASH_SEED") or secrets.token_hex(4)
ONLY = os.environ.get("UTSUWA_CRASH_ONLY")
TABLE = os.environ.get("UTSUWA_CRASH_TABLE")
COMMANDS_SECONDS = 0.15
"""Within this time of being asked to run a command for long the daemon is killed."""


@dataclass
class Row:
    """What became of the kills that met one operation."""

    tries: int = 0
    cut_off: int = 0
    lost: int = 0
    leaked: int = 0


class Table:
    """What a run of random kills found, by operation."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def row(self, operation: str) -> Row:
        return self.rows.setdefault(operation, Row())

    def text(self) -> str:
        lines = [
            f"Seed {SEED}",
            "",
            "| operation | tries | cut off | lost | leaked |",
            "|---|--:|--:|--:|--:|",
        ]
        for name, row in [*sorted(self.rows.items()), ("all", self._sum())]:
            lines.append(f"| {name} | {row.tries} | {row.cut_off} | {row.lost} | {row.leaked} |")
        return "\n".join(lines) + "\n"

    def _sum(self) -> Row:
        rows = self.rows.values()
        return Row(
            *(sum(getattr(row, key) for row in rows) for key in ("tries", "cut_off", "lost", "leaked"))
        )


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    folder = tmp_path / "faults"
    folder.mkdir()
    return Faults(folder)


@pytest.fixture
def world(busybox_image: Image, tmp_path: Path, faults: Faults) -> Iterator[World]:
    extra = images.build_busybox(tmp_path, {"name": EXTRA}).unified
    assert extra is not None
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        folder.mkdir()
    first, second = (images.build_busybox(folder, {"name": folder.name}) for folder in folders)
    identity = make_identity(tmp_path)
    with boxed_daemon() as daemon, serving(identity, box=daemon.box) as server:
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        daemon.env |= faults.env
        daemon.restart()
        world = World(daemon, random.Random(SEED), extra.read_bytes())
        world.operations |= RemoteImages(world, server, (first, second)).operations
        yield world
        say(daemon.log_tail(200))


def say(text: str) -> None:
    """For whoever reads the output of a test that failed."""
    print(text)  # noqa: T201


def test_kills_at_random_instants(world: World) -> None:
    say(f"UTSUWA_CRASH_SEED={SEED} UTSUWA_CRASH_KILLS={KILLS}")
    table, seconds = Table(), dict[str, float]()
    try:
        for number in [int(ONLY)] * KILLS if ONLY else range(KILLS):
            kill_at_random(world, number, table, seconds)
    finally:
        say(table.text())
        if TABLE:
            Path(TABLE).write_text(table.text())


def kill_at_random(world: World, number: int, table: Table, seconds: dict[str, float]) -> None:
    """Kill number `number` of the seed: its operation and its instant do not depend on those before it.

    `seconds` holds the shortest time that each operation has taken: the first time may be a long one.
    """
    operation = operation_of(world, number)
    rng = world.random = random.Random(f"{SEED}:{number}")
    instant = rng.uniform(0, 1.2)
    if operation not in seconds:
        alone = world.operations[operation]()
        seconds[operation] = COMMANDS_SECONDS if operation == "exec" else world.whole(alone)
    step, row = world.operations[operation](), table.row(operation)
    row.tries += 1
    step.request.start()
    step.request.join(instant * seconds[operation])
    world.daemon.kill()
    step.request.join(30)
    row.cut_off += not step.request.done
    if step.request.done:
        seconds[operation] = min(seconds[operation], step.request.seconds)
    how = "done" if step.request.done else "cut off"
    say(f"{number}: {operation}, at {instant:.2f} of {seconds[operation]:.3f} s: {step.request.what}, {how}")
    assert not step.request.error, step.request.error
    try:
        with told_as(Lost):
            start_again(world, rng)
        settle(world, step)
    except Lost:
        row.lost += 1
        raise
    except Leaked:
        row.leaked += 1
        raise


def operation_of(world: World, number: int) -> str:
    """Every operation is met once in each round, in an order of the round's own."""
    round_, place = divmod(number, len(world.operations))
    names = list(world.operations)
    random.Random(f"{SEED}:round {round_}").shuffle(names)
    return names[place]


def start_again(world: World, rng: random.Random) -> None:
    while rng.random() < 0.25:  # nor is its start safe
        world.daemon.start(wait=False)
        time.sleep(rng.uniform(0, 0.7))
        world.daemon.kill()
    world.daemon.start()


def settle(world: World, step: Step) -> None:
    """Look at what a step has come to, and at all the rest. Raises Lost or Leaked."""
    with told_as(Lost):
        step.after(step.request.done)
    world.check()
    world.check_that_all_start()


def test_kills_at_chosen_points(world: World, faults: Faults) -> None:
    say(f"UTSUWA_CRASH_SEED={SEED} UTSUWA_CRASH_POINTS={POINTS}")
    names = [name for name in world.operations if name != "exec"]
    each = max(POINTS // len(names), 1)
    for name in names if POINTS == 0 else world.random.sample(names, min(POINTS, len(names))):
        prepare = world.operations[name]
        step = prepare()
        faults.forget()
        world.whole(step)
        count = len(faults.reached())
        wanted = range(count) if not POINTS else sorted(world.random.sample(range(count), min(each, count)))
        for number in wanted:
            step = prepare()
            with faults.kill_at(world.daemon, number, required=False):
                step.request.run()
            done = "done" if step.request.done else "cut off"
            say(f"{name}, point {number} of {count} ({faults.last}): {done}")
            assert not step.request.error, step.request.error
            settle(world, step)
