"""The daemon is killed in the midst of changes; after its next start each is whole or was never made.

Once at random instants, and once at chosen points of its work: before and after each transaction and
each step of a storage driver. `UTSUWA_CRASH_KILLS` sets how many kills of either kind (0: of the second
kind all that there are), `UTSUWA_CRASH_SEED` repeats a run that failed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import images, leaks
from tests.support.daemon import Daemon
from tests.support.images import Image
from utsuwa.host import lxc

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("UTSUWA_CRASH_KILLS", "12"))
SEED = os.environ.get("UTSUWA_CRASH_SEED") or secrets.token_hex(4)
# Runs inside the daemon: kills it when the number in a file has been counted down.
POINTS = """
import os
from contextlib import asynccontextmanager
from pathlib import Path

import utsuwa.storage.manager as storage
from utsuwa.db.engine import Database

file = Path(os.environ["UTSUWA_TEST_POINTS"])
plain_write, plain_step = Database.write, storage._finished


def point():
    if file.exists():
        left = int(file.read_text())
        if left == 0:
            os.kill(os.getpid(), 9)
        file.write_text(str(left - 1))


@asynccontextmanager
async def write(self, name):
    point()
    async with plain_write(self, name) as conn:
        yield conn
    point()


async def step(*arguments, **named):
    point()
    result = await plain_step(*arguments, **named)
    point()
    return result


Database.write, storage._finished = write, step
"""
MANY = 1_000_000

NAMES = ("one", "two", "three")
EXTRA = "extra"
"""The name of the second image, which is imported and deleted."""


@dataclass
class Known:
    """What must be true of an instance: its files hold `mark`, its config has one of `values`."""

    mark: str
    values: set[str] = field(default_factory=lambda: {""})
    running: bool | None = False
    """None where a kill has left it open."""


class Request(threading.Thread):
    """One request under way; `done` says whether its success was told before the kill."""

    def __init__(self, daemon: Daemon, method: str, url: str, body: object = None) -> None:
        super().__init__(daemon=True)
        self._daemon, self._method, self._url, self._body = daemon, method, url, body
        self.what = f"{method} {url} {body}"[:120]
        self.done = False
        self.error = ""

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            try:
                self._daemon.do(self._method, self._url, self._body)
                self.done = True
            except AssertionError as error:  # refused, or the operation failed
                self.error = str(error)


@dataclass(frozen=True)
class Step:
    """A change that a kill meets: `after` tells the world of it, given whether it was told as done."""

    request: Request
    seconds: float
    """About how long it takes."""
    after: Callable[[bool], None]


class World:
    """The daemon, and what must be true of it."""

    def __init__(self, daemon: Daemon, random_: random.Random, extra: bytes) -> None:
        self.daemon = daemon
        self.random = random_
        self.extra = extra
        self.instances: dict[str, Known] = {}

    # ---- the steps

    def next_step(self) -> Step:
        there = sorted(self.instances)
        running = [name for name in there if self.instances[name].running]
        stopped = [name for name in there if not self.instances[name].running]
        steps: list[Callable[[], Step]] = [self.image, self.pool]
        if len(there) < len(NAMES):
            steps += [self.create] * 2
        if running:
            steps += [lambda: self.stop(self.random.choice(running))]
            steps += [lambda: self.execute(self.random.choice(running))]
        if stopped:
            steps += [lambda: self.start(self.random.choice(stopped))] * 2
            steps += [lambda: self.rename(self.random.choice(stopped))]
            steps += [lambda: self.delete(self.random.choice(stopped))]
        if there:
            steps += [lambda: self.change(self.random.choice(there))]
        return self.random.choice(steps)()

    def create(self) -> Step:
        name = self.random.choice([n for n in NAMES if n not in self.instances])
        body = {"name": name, "source": {"type": "image", "alias": "busybox"}}
        return self._step("POST", "/1.0/instances", body, 0.06, lambda done: self._created(name, done))

    def _created(self, name: str, done: bool) -> None:
        if self._there(name):
            self.instances[name] = Known(mark="")
        assert not done or name in self.instances, f"{name} was created, and is lost"

    def start(self, name: str) -> Step:
        body = {"action": "start"}
        return self._step("PUT", f"/1.0/instances/{name}/state", body, 0.15, self._power(name, True))

    def stop(self, name: str) -> Step:
        body = {"action": "stop", "force": True}
        return self._step("PUT", f"/1.0/instances/{name}/state", body, 0.08, self._power(name, False))

    def _power(self, name: str, running: bool) -> Callable[[bool], None]:
        def after(done: bool) -> None:
            self.instances[name].running = running if done else None

        return after

    def execute(self, name: str) -> Step:
        body = {"command": ["sleep", "600"], "wait-for-websocket": False}
        return self._step("POST", f"/1.0/instances/{name}/exec", body, 0.05, lambda done: None)

    def rename(self, name: str) -> Step:
        new = self.random.choice([n for n in (*NAMES, "four", "five") if n not in self.instances])

        def after(done: bool) -> None:
            moved = self._there(new)
            assert moved != self._there(name), f"{name} was renamed to {new}: exactly one must be there"
            assert moved or not done, f"{name} was renamed to {new}, and is called {name} again"
            if moved:
                self.instances[new] = self.instances.pop(name)

        return self._step("POST", f"/1.0/instances/{name}", {"name": new}, 0.05, after)

    def delete(self, name: str) -> Step:
        def after(done: bool) -> None:
            if not self._there(name):
                del self.instances[name]
            assert not done or name not in self.instances, f"{name} was deleted, and is there again"

        return self._step("DELETE", f"/1.0/instances/{name}", None, 0.05, after)

    def change(self, name: str) -> Step:
        known, value = self.instances[name], self.random.randbytes(4).hex()

        def after(done: bool) -> None:
            known.values = {value} if done else known.values | {value}

        body = {"config": {"user.a": value, "user.b": value}}
        return self._step("PATCH", f"/1.0/instances/{name}", body, 0.04, after)

    def image(self) -> Step:
        there = [i for i in self.daemon.get("/1.0/images?recursion=1") if i["properties"]["name"] == EXTRA]

        def after(done: bool) -> None:
            assert not done or self._has_extra() != bool(there), "an image came back, or was lost"

        if there:
            url = f"/1.0/images/{there[0]['fingerprint']}"
            return self._step("DELETE", url, None, 0.05, after)
        return self._step("POST", "/1.0/images", self.extra, 0.4, after)

    def pool(self) -> Step:
        url = "/1.0/storage-pools"
        there = f"{url}/spare" in self.daemon.get(url)

        def after(done: bool) -> None:
            now = f"{url}/spare" in self.daemon.get(url)
            assert not done or now != there, "a pool came back, or was lost"
            assert now == (self.daemon.dir / "storage-pools" / "spare").exists()

        if there:
            return self._step("DELETE", f"{url}/spare", None, 0.05, after)
        return self._step("POST", url, {"name": "spare", "driver": "overlay"}, 0.08, after)

    def _has_extra(self) -> bool:
        found = self.daemon.get("/1.0/images?recursion=1")
        return any(image["properties"]["name"] == EXTRA for image in found)

    def _step(
        self, method: str, url: str, body: object, seconds: float, after: Callable[[bool], None]
    ) -> Step:
        return Step(Request(self.daemon, method, url, body), seconds, after)

    def _there(self, name: str) -> bool:
        return self.daemon.api("GET", f"/1.0/instances/{name}").status == 200

    # ---- to a known state

    def have(self, *, running: bool) -> str:
        """The name of an instance that runs, or does not; made or stopped or started where there is none."""
        if not self.instances:
            self._whole(self.create())
        name = min(self.instances)
        if self.instances[name].running != running:
            self._whole(self.start(name) if running else self.stop(name))
        return name

    def create_in_room(self) -> Step:
        """Create one, and delete another before where there are as many as there may be."""
        if len(self.instances) == len(NAMES):
            self._whole(self.delete(self.have(running=False)))
        return self.create()

    def _whole(self, step: Step) -> None:
        """Do a step that nothing cuts off."""
        step.request.run()
        assert step.request.done, step.request.error
        step.after(True)

    # ---- what must be true after every kill

    def check(self) -> None:
        daemon = self.daemon
        found = {i["name"]: i for i in daemon.get("/1.0/instances?recursion=1")}
        assert set(found) == set(self.instances)
        for name, known in self.instances.items():
            config, state = found[name]["config"], found[name]["status"]
            assert config.get("user.a", "") == config.get("user.b", ""), "half a change was stored"
            assert config.get("user.a", "") in known.values
            known.values = {config.get("user.a", "")}
            running = state == "Running"
            assert known.running in (None, running), f"{name} is {state}"
            known.running = running
        self.check_files()
        self.check_host()

    def check_files(self) -> None:
        folder, names = self.daemon.dir, set(self.instances)
        pool = folder / "storage-pools" / "default"
        assert entries(folder / "containers") == names
        assert entries(pool / "containers") == names
        assert entries(folder / "logs") <= names
        fingerprints = {i["fingerprint"] for i in self.daemon.get("/1.0/images?recursion=1")}
        assert {name.partition(".")[0] for name in entries(folder / "images")} == fingerprints
        assert entries(pool / "images") <= fingerprints
        volumes = self.daemon.get("/1.0/storage-pools/default/volumes?recursion=1")
        assert {v["name"] for v in volumes if v["type"] == "container"} == names
        assert {v["name"] for v in volumes if v["type"] == "image"} == entries(pool / "images")

    def check_host(self) -> None:
        daemon = self.daemon
        running = {name for name, known in self.instances.items() if known.running}
        pool = daemon.dir / "storage-pools" / "default"
        roots = {str(pool / "containers" / name / "rootfs") for name in running}
        mounts = leaks.mounts_below(daemon.home)
        assert len(mounts) == len(set(mounts))
        assert {m for m in mounts if not m.startswith(f"{pool}/images/")} == roots
        assert len(leaks.loop_devices(daemon.home)) == len(mounts) - len(roots)
        assert set(lxc.active(daemon.dir / "containers")) == running
        for name in running:
            assert daemon.get(f"/1.0/instances/{name}/state")["processes"] == 1, "a command runs on"

    def check_that_all_start(self) -> None:
        """Start what is stopped, find what was written, and stop some again."""
        for name, known in self.instances.items():
            if not known.running:
                self.daemon.do("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
                known.running = True
            if not known.mark:
                known.mark = name
                self.daemon.lxc("exec", name, "--", "sh", "-c", f"echo {name} > /root/mark")
            text = self.daemon.lxc("exec", name, "--", "cat", "/root/mark").stdout
            assert text == f"{known.mark}\n"
            if self.random.random() < 0.6:
                body = {"action": "stop", "force": True}
                self.daemon.do("PUT", f"/1.0/instances/{name}/state", body)
                known.running = False


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """The file with the number of points that the daemon passes before it is killed."""
    return tmp_path / "points"


@pytest.fixture
def world(daemon: Daemon, busybox_image: Image, tmp_path: Path, points: Path) -> Iterator[World]:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    extra = images.build_busybox(tmp_path, {"name": EXTRA}).unified
    assert extra is not None
    patch = tmp_path / "python"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(POINTS)
    daemon.env |= {"PYTHONPATH": os.pathsep.join([str(patch), os.environ.get("PYTHONPATH", "")])}
    daemon.env |= {"UTSUWA_TEST_POINTS": str(points)}
    daemon.restart()
    yield World(daemon, random.Random(SEED), extra.read_bytes())
    say(daemon.log_tail(200))


def say(text: str) -> None:
    """For whoever reads the output of a test that failed."""
    print(text)  # noqa: T201


def test_kills_at_random_instants(world: World) -> None:
    say(f"UTSUWA_CRASH_SEED={SEED} UTSUWA_CRASH_KILLS={KILLS}")
    daemon, rng = world.daemon, world.random
    for number in range(KILLS):
        step = world.next_step()
        step.request.start()
        step.request.join(rng.uniform(0, step.seconds * 1.2))
        daemon.kill()
        step.request.join(30)
        say(f"{number}: {step.request.what}, {'done' if step.request.done else 'cut off'}")
        assert not step.request.error, step.request.error
        while rng.random() < 0.25:  # nor is its start safe
            daemon.start(wait=False)
            time.sleep(rng.uniform(0, 0.7))
            daemon.kill()
        daemon.start()
        step.after(step.request.done)
        world.check()
        world.check_that_all_start()


def test_kills_at_chosen_points(world: World, points: Path) -> None:
    say(f"UTSUWA_CRASH_SEED={SEED} UTSUWA_CRASH_KILLS={KILLS}")
    steps: dict[str, Callable[[], Step]] = {
        "image": world.image,
        "create": world.create_in_room,
        "start": lambda: world.start(world.have(running=False)),
        "rename": lambda: world.rename(world.have(running=False)),
        "change": lambda: world.change(world.have(running=True)),
        "stop": lambda: world.stop(world.have(running=True)),
        "delete": lambda: world.delete(world.have(running=False)),
        "image again": world.image,
        "pool": world.pool,
        "pool again": world.pool,
    }
    each = max(KILLS // len(steps), 1)
    for name, prepare in steps.items():
        count = passed(prepare(), points)
        wanted = range(count) if not KILLS else sorted(world.random.sample(range(count), min(each, count)))
        for point in wanted:
            step = prepare()
            points.write_text(str(point))
            step.request.run()
            say(f"{name}, point {point} of {count}: {'done' if step.request.done else 'cut off'}")
            assert not step.request.error, step.request.error
            world.daemon.kill()
            points.unlink()
            world.daemon.start()
            step.after(step.request.done)
            world.check()
            world.check_that_all_start()


def passed(step: Step, points: Path) -> int:
    """How many points the daemon passes while it does the whole step."""
    points.write_text(str(MANY))
    step.request.run()
    count = MANY - int(points.read_text())
    points.unlink()
    assert step.request.done, step.request.error
    step.after(True)
    return count
