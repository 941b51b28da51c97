"""The public site without containers: settings, addresses, records, metrics, and what its checks conclude."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import pytest
import yaml
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from utsuwa.core.errors import HostError, InvalidConfig, InvalidRequest, NotFound
from utsuwa.tryit import records, setup, tour, visitors
from utsuwa.tryit import settings as settings_file
from utsuwa.tryit import site as site_module
from utsuwa.tryit.addresses import Addresses, shares
from utsuwa.tryit.inside import Inside
from utsuwa.tryit.metrics import Metrics
from utsuwa.tryit.records import Records
from utsuwa.tryit.rest import Rest
from utsuwa.tryit.sessions import Sessions, TooMany
from utsuwa.tryit.settings import HELP, Settings
from utsuwa.tryit.site import FeedbackPost, TooSlow
from utsuwa.tryit.terminal import Terminal
from utsuwa.tryit.tour import BY_ID, Look, Verdict
from utsuwa.tryit.visitors import MARK, Container, Visitors
from utsuwa.tryit.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs/try.md"


def test_the_written_settings_are_read_again(tmp_path: Path) -> None:
    wanted = Settings(sessions=7, proxies=("127.0.0.1", "::1"), origin="https://try.example.org")
    text = settings_file.dump(wanted)
    (tmp_path / "try.yaml").write_text(text)
    assert settings_file.load(tmp_path) == wanted
    for help in HELP.values():
        assert f"# {help}\n" in text


def test_all_settings_are_described_with_their_defaults() -> None:
    defaults = msgspec.json.decode(msgspec.json.encode(Settings()))
    assert set(HELP) == set(defaults)
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| `?([^`|]*?)`? \|", DOCS.read_text(), re.MULTILINE))
    assert {key: yaml.safe_load(value) for key, value in rows.items()} == defaults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sesions: 3", "sesions"),
        ("sessions: 0", "sessions"),
        ("sessions: many", "sessions"),
        ("minutes: 0", "minutes"),
        ("listen: 8480", "listen"),
        ("listen: 127.0.0.1:x", "listen must be ADDRESS:PORT"),
        ("listen: 127.0.0.1:70000", "listen must be ADDRESS:PORT"),
        ("metrics: ':1'", "metrics must be ADDRESS:PORT"),
        ("origin: try.example.org", "origin must be"),
        ("server: http://127.0.0.1", "server must be"),
        ("proxies: [proxy.example]", "proxies must be"),
        ("proxies: [127.0.0.1, 10.0.0.1/8]", "host bits"),
        ("proxies: ['']", "proxies must be"),
        ("- a", "object"),
        ("a: [", "Cannot read"),
    ],
)
def test_invalid_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "try.yaml").write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        settings_file.load(tmp_path)


def test_without_settings_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="utsuwad try init"):
        settings_file.load(tmp_path)


class Transport:
    """A connection from an address."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.aborted = False

    def get_extra_info(self, name: str) -> object:
        return (self.host, 1) if name == "peername" else None

    def abort(self) -> None:
        self.aborted = True


def network(proxies: tuple[str, ...], peer: str, *told: str) -> str:
    headers = SimpleNamespace(getall=lambda name, default: told or default)
    raw = SimpleNamespace(transport=Transport(peer), headers=headers)
    return Addresses(proxies).network_of(cast("web.BaseRequest", raw))


@pytest.mark.parametrize(
    ("peer", "told", "found"),
    [
        ("192.0.2.1", ("198.51.100.1",), "192.0.2.1"),
        ("127.0.0.1", (), "127.0.0.1"),
        ("127.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:127.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("127.0.0.1", ("203.0.113.9, 198.51.100.1",), "198.51.100.1"),
        ("127.0.0.1", ("203.0.113.9", "198.51.100.1"), "198.51.100.1"),
        ("127.0.0.1", ("198.51.100.1, 10.0.0.1",), "198.51.100.1"),
        ("127.0.0.1", ("2001:db8::1:2:3:4",), "2001:db8::/64"),
        ("127.0.0.1", ("",), "127.0.0.1"),
        ("127.0.0.1", ("198.51.100.1:4711",), "198.51.100.1"),
        ("127.0.0.1", ("[2001:db8::1]:4711",), "2001:db8::/64"),
        ("127.0.0.1", ("[2001:db8::1]",), "2001:db8::/64"),
        ("127.0.0.1", ("::ffff:198.51.100.1",), "198.51.100.1"),
        ("172.16.9.9", ("198.51.100.1",), "198.51.100.1"),
        ("172.32.0.1", ("198.51.100.1",), "172.32.0.1"),
        ("fd00::9", ("198.51.100.1, 172.20.0.1",), "198.51.100.1"),
        ("192.168.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("192.0.2.1", ("nonsense",), "192.0.2.1"),
    ],
)
def test_only_proxies_are_believed(peer: str, told: tuple[str, ...], found: str) -> None:
    proxies = ("127.0.0.1", "10.0.0.1", "172.16.0.0/12", "fd00::/8", "::ffff:192.168.0.0/112")
    assert network(proxies, peer, *told) == found


@pytest.mark.parametrize("told", ["unknown", "198.51.100.1:1:2", "[]:1", "[2001:db8::1", "x" * 1000])
def test_a_proxy_that_tells_no_address_is_named(told: str) -> None:
    with pytest.raises(InvalidRequest, match="X-Forwarded-For"):
        network(("127.0.0.1",), "127.0.0.1", told)


def test_a_visitor_of_ipv6_counts_in_larger_networks_too() -> None:
    assert shares("192.0.2.1") == {"192.0.2.1": 1}
    assert shares("2001:db8:1:203::/64") == {
        "2001:db8:1:203::/64": 1,
        "2001:db8:1:200::/56": 2,
        "2001:db8:1::/48": 4,
    }


def test_one_address_has_few_connections_and_a_proxy_has_many() -> None:
    addresses = Addresses(("127.0.0.1",))
    for host, aborted in (("192.0.2.1", 36), ("127.0.0.1", 0), ("192.0.2.2", 0)):
        connections = [Transport(host) for _ in range(100 if host != "192.0.2.2" else 10)]
        for connection in connections:
            addresses.begun(connection, cast("Any", connection))
        assert sum(connection.aborted for connection in connections) == aborted
        for connection in connections:
            addresses.ended(connection)
    fresh = Transport("192.0.2.1")
    addresses.begun(fresh, cast("Any", fresh))
    assert not fresh.aborted, "closed connections still count"


async def test_records_have_the_day_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = records.Records(tmp_path / "data")
    monkeypatch.setattr(records, "_MOST", 300)
    for _ in range(10):
        await kept.feedback(stars=5, text="gut\n{", language="en", steps=["launch"])
    kept.close()
    lines = (tmp_path / "data/feedback.jsonl").read_text().splitlines()
    assert 1 < len(lines) < 5
    for line in lines:
        found = msgspec.json.decode(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found.pop("day"))
        assert found == {"stars": 5, "text": "gut\n{", "language": "en", "steps": ["launch"]}


def test_metrics_are_valid() -> None:
    metrics = Metrics(started=3)
    metrics.refused["too-many"] += 2
    metrics.waits.add(0.2)
    metrics.waits.add(100)
    metrics.turn_waits.add(100)
    text = metrics.text(sessions=1, most=20, ready=3, turns=2, waiting=4)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["utsuwa_try_sessions"].samples[0].value == 1
    assert families["utsuwa_try_sessions_refused"].samples[0].labels == {"code": "too-many"}
    buckets = {
        s.labels["le"]: s.value for s in families["utsuwa_try_wait_seconds"].samples if "le" in s.labels
    }
    assert (buckets["0.1"], buckets["0.25"], buckets["30.0"], buckets["+Inf"]) == (0, 1, 1, 2)
    assert families["utsuwa_try_docker_turns"].samples[0].value == 2
    assert families["utsuwa_try_docker_waiting"].samples[0].value == 4
    waits = {
        s.labels["le"]: s.value
        for s in families["utsuwa_try_docker_wait_seconds"].samples
        if "le" in s.labels
    }
    assert (waits["60.0"], waits["120.0"], waits["+Inf"]) == (0, 1, 1)


class Answers:
    """A visitor's daemon that gives these answers by the path without its query.

    `files` are the names in directories, and `read` the contents of files.
    """

    def __init__(self, *, read: Any = None, **answers: Any) -> None:
        self._answers = answers
        self._read = read

    async def ask(self, *paths: str) -> list[Any]:
        return [self._answers.get(path.partition("?")[0].rpartition("/")[2]) for path in paths]

    async def read(self, *paths: str) -> list[Any]:
        assert all("/files?path=/var/lib/docker/containers/" in path for path in paths)
        assert len(paths) <= 20
        return [self._read for _ in paths]


async def verdict(step: str, *events: str, **answers: Any) -> Verdict:
    before = Container("visitor", images=frozenset({"seed"}), profiles=frozenset({"default"}))
    look = Look(cast("Inside", Answers(**answers)), before, cast("Watch", set(events)))
    return await BY_ID[step].check(look)


FIRST = {
    "name": "first",
    "status": "Running",
    "created_at": "1",
    "config": {"volatile.x": "1", "image.os": "b"},
}
LIMITED = {**FIRST, "config": {**FIRST["config"], "limits.memory": "1GiB"}}  # type: ignore[dict-item]


BOX = {**FIRST, "name": "box", "profiles": ["default", "docker"]}
CREATED = {"State": {"StartedAt": "0001-01-01T00:00:00Z"}}
STARTED = {"State": {"StartedAt": "2026-12-01T10:00:00.5Z"}}


@pytest.mark.parametrize(
    ("step", "answers", "hint"),
    [
        ("launch", {"instances": []}, "no-instance"),
        ("launch", {"instances": [{**FIRST, "status": "Stopped"}]}, "not-running"),
        ("launch", {"instances": [{**FIRST, "status": "Stopped"}, FIRST]}, ""),
        ("exec", {}, "no-exec"),
        ("limits", {"instances": [FIRST]}, "no-limit"),
        ("limits", {"instances": [FIRST, LIMITED]}, ""),
        ("snapshot", {"instances": [FIRST]}, "no-snapshot"),
        ("snapshot", {"instances": [{**FIRST, "snapshots": [{"name": "before"}]}]}, ""),
        ("restore", {}, "no-restore"),
        ("profile", {"profiles": [{"name": "default", "used_by": ["x"]}]}, "no-profile"),
        ("profile", {"profiles": [{"name": "small", "used_by": []}]}, "profile-unused"),
        ("profile", {"profiles": [{"name": "small", "used_by": ["x"]}]}, ""),
        ("images", {"images": [{"fingerprint": "seed"}]}, "no-image"),
        ("images", {"images": [{"fingerprint": "new", "aliases": [{"name": "mine"}]}]}, ""),
        ("copy", {"instances": [LIMITED, FIRST, {**FIRST, "name": "second"}]}, "no-copy"),
        ("copy", {"instances": [LIMITED, {**LIMITED, "name": "twin"}]}, ""),
        ("docker", {"instances": [FIRST]}, "no-docker"),
        ("docker", {"instances": [{**BOX, "status": "Stopped"}]}, "no-docker"),
        ("docker", {"instances": [BOX]}, "no-docker-run"),
        ("docker", {"instances": [BOX], "files": ["x", None, "../" * 20, "a" * 63]}, "no-docker-run"),
        ("docker", {"instances": [BOX], "files": ["a" * 64], "read": CREATED}, "no-docker-run"),
        ("docker", {"instances": [BOX], "files": ["a" * 64], "read": {"type": "error"}}, "no-docker-run"),
        ("docker", {"instances": [BOX], "files": ["a" * 64] * 1000, "read": STARTED}, ""),
        ("docker", {"instances": [FIRST, BOX], "files": ["a" * 64], "read": STARTED}, ""),
        ("docker", {"instances": [{**BOX, "name": "x/../y"}], "files": ["a" * 64]}, "no-docker"),
    ],
)
async def test_what_checks_conclude(step: str, answers: dict[str, Any], hint: str) -> None:
    found = await verdict(step, **answers)
    assert (found.done, found.hint) == (not hint, hint)


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "x",
        {"a": 1},
        [1, None, "x"],
        [{}],
        [{"config": 1, "snapshots": 2}],
        [{"name": "box", "status": "Running", "profiles": 1}],
        [{"name": "box", "status": "Running", "profiles": ["docker", 1]}],
    ],
)
@pytest.mark.parametrize("step", list(BY_ID))
async def test_nonsense_from_the_visitors_daemon_is_no_error(step: str, value: object) -> None:
    answers = {"instances": value, "images": value, "profiles": value, "files": value}
    assert isinstance(await verdict(step, **answers, read={"State": value}), Verdict)


async def test_what_has_happened_counts() -> None:
    assert (await verdict("exec", "instance-exec")).done
    assert (await verdict("restore", "instance-snapshot-restored")).done
    assert [step.id for step in tour.STEPS] == list(BY_ID)


class Daemon:
    """A daemon that has some containers of visitors, which it cannot delete, and runs no command."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.asked: list[str] = []

    async def get(self, _path: str, **_query: str) -> object:
        return [{"name": name, "status": "Running", "config": {MARK: "true"}} for name in self.names]

    async def do(self, method: str, path: str, _body: object = None) -> None:
        self.asked.append(f"{method} {path}")
        raise HostError("the disk is broken")

    async def execute(self, *_arguments: object, **_options: object) -> None:
        raise HostError("the disk is broken")


async def test_a_container_that_cannot_be_deleted_does_not_keep_visitors_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_START_SECONDS", "_STOP_SECONDS"):
        monkeypatch.setattr(visitors, name, 0.05)
    monkeypatch.setattr(visitors, "_PAUSE", 0.01)
    daemon = Daemon("visitor-1")
    found = Visitors(cast("Rest", daemon), Settings(), Metrics())
    await found.start()
    async with asyncio.timeout(30):
        while "POST /1.0/instances" not in daemon.asked:
            await asyncio.sleep(0.01)
        while daemon.asked.count("DELETE /1.0/instances/visitor-1") < 3:
            await asyncio.sleep(0.01)
    await found.stop()


class Place:
    """Containers without end."""

    async def take(self) -> Container:
        return Container("visitor", images=frozenset(), profiles=frozenset())

    def exists(self, _name: str) -> bool:
        return True

    def remove(self, _name: str) -> None:
        pass


@asynccontextmanager
async def all_sessions(tmp_path: Path, **settings: int) -> AsyncIterator[Sessions]:
    kept = Records(tmp_path / "data")
    found = Sessions(
        cast("Rest", Daemon()),
        msgspec.structs.replace(Settings(), **settings),
        cast("Visitors", Place()),
        kept,
        Metrics(),
    )
    found.start()
    try:
        yield found
    finally:
        await found.stop()
        kept.close()


async def test_neighbours_of_ipv6_have_few_sessions_together(tmp_path: Path) -> None:
    async with all_sessions(tmp_path, sessions=100, sessions_per_address=1) as found:

        async def begun(*networks: str) -> list[bool]:
            return [await begins(found, network) for network in networks]

        assert await begun("2001:db8::/64", "2001:db8::/64") == [True, False]
        assert await begun("2001:db8:0:1::/64", "2001:db8:0:2::/64") == [True, False]
        assert await begun("2001:db8:0:100::/64", "2001:db8:0:200::/64") == [True, True]
        assert await begun("2001:db8:0:300::/64", "2001:db8:1::/64") == [False, True]
        assert found.now == 5


async def begins(found: Sessions, network: str) -> bool:
    try:
        await found.begin(network, "en")
    except TooMany:
        return False
    return True


async def test_a_session_that_nobody_sees_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with all_sessions(tmp_path) as found:
        unseen, _ = await found.begin("192.0.2.1", "en")
        seen, _ = await found.begin("192.0.2.2", "en")
        viewer = Viewer()
        showing = asyncio.create_task(seen.terminal.attach(cast("web.WebSocketResponse", viewer)))
        async with asyncio.timeout(30):
            await viewer.waited.wait()
            later = time.monotonic() + 301
            monkeypatch.setattr("utsuwa.tryit.terminal.time", SimpleNamespace(monotonic=lambda: later))
            statistics = tmp_path / "data/statistics.jsonl"
            while '"end":"unseen"' not in statistics.read_text():
                await asyncio.sleep(0.01)
            assert unseen.ended is not None
            assert seen.ended is None
            assert seen.terminal.unseen_seconds == 0
            viewer.left.set()
            await showing
        assert seen.terminal.unseen_seconds == 0


class Viewer:
    """A browser that shows a terminal until it leaves."""

    def __init__(self) -> None:
        self.shown = 0
        self.waited = asyncio.Event()
        self.left = asyncio.Event()

    async def send_bytes(self, data: bytes) -> None:
        self.shown += len(data)

    async def close(self, code: int) -> None:
        self.left.set()

    def __aiter__(self) -> Viewer:
        return self

    async def __anext__(self) -> object:
        self.waited.set()
        await self.left.wait()
        raise StopAsyncIteration


class Endless:
    """A shell whose output has no end."""

    def __init__(self) -> None:
        self.said = 0
        self.terminal = self

    async def execute(self, *_arguments: object, **_options: object) -> Endless:
        return self

    async def resize(self, _width: int, _height: int) -> None:
        pass

    async def close(self) -> None:
        pass

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> object:
        await asyncio.sleep(0)
        self.said += 4096
        return SimpleNamespace(type=aiohttp.WSMsgType.BINARY, data=bytes(4096))


async def test_a_shell_that_nobody_sees_waits() -> None:
    shell = Endless()
    terminal = Terminal(cast("Rest", shell), "visitor")
    async with asyncio.timeout(30):
        for _ in range(2):
            viewer = Viewer()
            showing = asyncio.create_task(terminal.attach(cast("web.WebSocketResponse", viewer)))
            before = shell.said
            while shell.said < before + 2**20:
                await asyncio.sleep(0)
            viewer.left.set()
            await showing
            before = shell.said
            for _ in range(1000):
                await asyncio.sleep(0)
            assert shell.said - before < 200 * 1024
            assert viewer.shown > 2**19
    await terminal.close()


async def test_a_flood_of_events_is_read_slowly() -> None:
    flood = Endless()
    watch = Watch(cast("Rest", flood), "visitor")
    async with asyncio.timeout(30):
        while not flood.said:
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
        await watch.close()
    assert flood.said < 500 * 4096


async def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "_BODY_SECONDS", 0.05)
    stream = asyncio.StreamReader()
    content = SimpleNamespace(iter_any=lambda: stream)
    raw = SimpleNamespace(content_type="application/json", content=content)
    with pytest.raises(TooSlow):
        await site_module._read(cast("web.BaseRequest", raw), FeedbackPost)


def test_the_unit_lets_the_site_write_its_data_and_leaves_their_owner_alone() -> None:
    unit = (DOCS.parents[1] / "scripts/systemd/utsuwa-try.service").read_text()
    assert f"ReadWritePaths={Settings().data}\n" in unit
    assert re.findall("^StateDirectory", unit, re.MULTILINE) == []


def test_the_limit_of_the_project_is_a_multiple_of_that_of_its_profile() -> None:
    assert setup._times(28, "limits.memory", "512MiB") == str(28 * 512 * 2**20)
    assert setup._times(28, "limits.processes", "500") == "14000"


@pytest.mark.parametrize("text", ["", "50%", "0"])
def test_a_limit_that_cannot_be_added_up_is_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"limits\.memory must be an amount"):
        setup._times(28, "limits.memory", text)


def test_the_page_has_texts_for_the_steps_and_hints_that_exist_and_no_others() -> None:
    text = (ROOT / "web/src/try/tour/en.ts").read_text()
    steps, hints = text.split("\n  hints: {\n")
    assert re.findall(r"^    ([a-z]+): \{$", steps, re.MULTILINE) == list(BY_ID)
    written = set(re.findall(r'^    "([a-z-]+)": ', hints, re.MULTILINE))
    given = r'Verdict\(False, "([a-z-]+)"|_happened\(look, "[a-z-]+", "([a-z-]+)"\)'
    assert written == {one or other for one, other in re.findall(given, inspect.getsource(tour))}
