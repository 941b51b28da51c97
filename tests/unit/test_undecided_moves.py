"""What the sides of a move conclude from what the other one says, or does not know."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from socket import SO_KEEPALIVE, SOL_SOCKET
from types import SimpleNamespace
from typing import Any, Literal, cast

import msgspec
import pytest
from aiohttp import web
from yarl import URL

from tests.support.instances import C1, instance_row
from tests.support.tls import make_identity
from utsuwa.core.errors import HostError, Unavailable
from utsuwa.core.locks import NamedLocks
from utsuwa.core.proxies import Proxies
from utsuwa.instances.context import merge
from utsuwa.instances.model import BOOT_ID, MOVED, POWER, Loaded, RuntimePaths, RuntimeTable
from utsuwa.instances.running_state import leave
from utsuwa.migration import connecting, live_receiving, undecided
from utsuwa.migration.channel import ControlChannel
from utsuwa.migration.connecting import Remote, UnknownOperation
from utsuwa.migration.manager import MigrationManager
from utsuwa.migration.messages import Control
from utsuwa.migration.undecided import Record, UndecidedMoves
from utsuwa.operations import kinds
from utsuwa.projects.restrictions import Restrictions

Side = Literal["source", "target"]


@pytest.fixture
def moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UndecidedMoves:
    monkeypatch.setattr(undecided, "_FIRST_PAUSE", 0.001)
    return UndecidedMoves(cast(Any, SimpleNamespace(folder=tmp_path, proxies=None)))


def record_of(side: Side, *, runs: bool | None, connects: bool = True) -> Record:
    url = "https://far:8443/1.0/operations/move" if connects else ""
    return Record(
        side=side, project="default", name="c1", row_id=1, operation="move", secret="s", url=url, runs=runs
    )


async def settle(moves: UndecidedMoves, record: Record) -> None:
    async def act(runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        assert not runs, "nobody has said that"

    moves.store(record)
    await (moves.tell(record) if record.side == "target" else moves.ask(record, act))


def replies(monkeypatch: pytest.MonkeyPatch, error: type[Unavailable]) -> list[str]:
    """Have each connection fail; the result has an entry for each."""
    attempts: list[str] = []

    def opened(remote: Remote, *_: object) -> None:
        attempts.append(str(remote.url))
        raise error("no")

    monkeypatch.setattr(undecided, "opened", opened)
    return attempts


@pytest.mark.parametrize(("side", "runs"), [("target", True), ("source", True), ("source", False)])
async def test_it_is_settled_when_the_other_side_knows_nothing_of_it(
    moves: UndecidedMoves, monkeypatch: pytest.MonkeyPatch, side: Side, runs: bool
) -> None:
    replies(monkeypatch, UnknownOperation)
    await asyncio.wait_for(settle(moves, record_of(side, runs=runs)), 30)
    assert moves.load() == []


@pytest.mark.parametrize(
    ("side", "runs", "error"),
    [
        ("target", False, UnknownOperation),  # the source may be about to ask
        ("source", None, UnknownOperation),
        ("target", True, Unavailable),
        ("source", True, Unavailable),
    ],
)
async def test_it_goes_on_asking_otherwise(
    moves: UndecidedMoves,
    monkeypatch: pytest.MonkeyPatch,
    side: Side,
    runs: bool | None,
    error: type[Unavailable],
) -> None:
    attempts = replies(monkeypatch, error)
    record = record_of(side, runs=runs)
    task = asyncio.create_task(settle(moves, record))
    while len(attempts) < 3 and not task.done():
        await asyncio.sleep(0.01)
    assert not task.done()
    assert moves.load() == [record]
    task.cancel()


class Lost:
    """A websocket that is lost when something is sent; what was received before is its verdict."""

    def __init__(self, moves: UndecidedMoves) -> None:
        self._moves = moves
        self.known: list[Record] = []
        """The records when something was sent."""

    async def read(self) -> bytes:
        return Control(success=True).encode()

    async def send_bytes(self, data: bytes) -> None:
        self.known = self._moves.load()
        raise ConnectionResetError


async def test_the_side_that_was_connected_to_forgets_before_its_last_word(moves: UndecidedMoves) -> None:
    async def act(runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        raise AssertionError("it was acted on")

    sides: tuple[Side, ...] = ("source", "target")
    for side in sides:
        record = record_of(side, runs=None if side == "source" else True, connects=False)
        moves.store(record)
        socket = Lost(moves)
        control = ControlChannel(cast(Any, socket))
        if side == "source":
            await moves.confirm(record, control, act, runs=True)
        else:
            await moves.confirmed(record, control)
        assert socket.known == moves.load() == []


async def test_a_source_that_connects_has_recorded_the_decision_before_it_confirms(
    moves: UndecidedMoves, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        raise AssertionError("it was acted on")

    attempts = replies(monkeypatch, Unavailable)
    record, socket = record_of("source", runs=None), Lost(moves)
    moves.store(record)
    await moves.confirm(record, ControlChannel(cast(Any, socket)), act, runs=True)
    assert [found.runs for found in socket.known] == [True]
    while not attempts:  # it connects again
        await asyncio.sleep(0.01)
    assert [found.runs for found in moves.load()] == [True]
    await moves.stop()


class Target:
    """A server of which the first connection is never answered, as if its host had lost its power."""

    def __init__(self, *, upgrades: bool = True) -> None:
        self.connections = 0
        self._upgrades = upgrades
        """Whether the first connection becomes a websocket."""

    async def handle(self, request: web.BaseRequest) -> web.WebSocketResponse:
        self.connections += 1
        socket = web.WebSocketResponse(autoping=False)
        if self._upgrades or self.connections > 1:
            await socket.prepare(request)
        if self.connections == 1:
            await asyncio.Event().wait()
        await socket.send_bytes(Control(success=False).encode())
        await socket.receive_bytes()
        await socket.send_bytes(Control(success=True).encode())
        await socket.receive()
        return socket


@asynccontextmanager
async def serving(target: Target, folder: Path) -> AsyncIterator[Record]:
    """Have the record of a move to the target."""
    identity = make_identity(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate_file, identity.key_file)
    runner = web.ServerRunner(web.Server(target.handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        address = "https://{}:{}/1.0/operations/move".format(*runner.addresses[0])
        yield msgspec.structs.replace(record_of("source", runs=None), url=address, certificate=identity.pem)
    finally:
        await runner.cleanup()


async def test_a_side_that_vanishes_without_a_word_is_asked_again(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "INSTANCE_SETTLE", replace(kinds.INSTANCE_SETTLE, heartbeat=0.2))
    moves = UndecidedMoves(cast(Any, SimpleNamespace(folder=tmp_path, proxies=Proxies())))
    target, told = Target(), []

    async def act(runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        told.append(runs)

    async with serving(target, tmp_path_factory.mktemp("tls")) as record:
        moves.store(record)
        await asyncio.wait_for(moves.ask(record, act), 60)
    assert (target.connections, told, moves.load()) == (2, [False], [])


async def test_a_side_that_does_not_answer_the_request_is_asked_again(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 2)
    moves = UndecidedMoves(cast(Any, SimpleNamespace(folder=tmp_path, proxies=Proxies())))
    target, told = Target(upgrades=False), []

    async def act(runs: bool) -> None:  # noqa: FBT001 - the type of `undecided.Act`
        told.append(runs)

    async with serving(target, tmp_path_factory.mktemp("tls")) as record:
        moves.store(record)
        await asyncio.wait_for(moves.ask(record, act), 60)
    assert target.connections > 1
    assert (told, moves.load()) == ([False], [])


async def test_a_websocket_may_be_silent_for_longer_than_the_answer_to_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 2)
    async with serving(Target(), tmp_path) as record:
        remote = Remote(URL(record.url), {"control": record.secret}, record.certificate)
        async with connecting.opened(remote, Proxies(), ("control",)) as (socket,):
            reading = asyncio.create_task(socket.read())
            done, _ = await asyncio.wait([reading], timeout=4)
            assert not done
            reading.cancel()


def server(moves: UndecidedMoves) -> MigrationManager:
    """The manager of a daemon that is being started."""
    manager = MigrationManager(moves._ctx, cast(Any, None))
    manager._moves = moves
    return manager


async def test_a_daemon_starts_although_it_cannot_find_out_what_has_become_of_a_move(
    moves: UndecidedMoves, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> bool:
        raise HostError("the monitor does not respond")

    attempts = replies(monkeypatch, Unavailable)
    monkeypatch.setattr(live_receiving, "decide_interrupted", silent)
    monkeypatch.setattr(moves._ctx, "instances", None, raising=False)
    record = record_of("target", runs=None)
    moves.store(record)
    manager = server(moves)
    await manager.start()
    await manager.settle()
    assert moves.load() == [record]
    assert not moves._tasks
    assert attempts == []  # the source is told nothing


def lost_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: str, autostart: str = ""
) -> tuple[Any, Path, dict[str, str | None]]:
    """The context of an instance whose processes are gone, the file that says so, and what is stored."""
    config = {POWER: power} | ({"boot.autostart": autostart} if autostart else {})
    instance = merge(instance_row(id=1, state="ready", config=config), [], Restrictions("default"))
    stored: dict[str, str | None] = {}

    async def loaded(*_: object) -> Loaded:
        return instance

    async def patch_config(_: int, changes: dict[str, str | None]) -> None:
        stored.update(changes)

    monkeypatch.setattr(leave, "load", loaded)
    paths = RuntimePaths(tmp_path)
    paths.undecided.write_text("move")
    ctx = SimpleNamespace(
        runtime=RuntimeTable(),
        locks=NamedLocks(),
        runtime_paths=lambda _: paths,
        patch_config=patch_config,
    )
    return ctx, paths.undecided, stored


@pytest.mark.parametrize(("autostart", "starts"), [("", True), ("true", True), ("false", False)])
async def test_an_instance_that_has_not_moved_is_one_that_was_running_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autostart: str, starts: bool
) -> None:
    """Also if its start fails, or the daemon is killed before."""
    ctx, undecided_file, stored = lost_of(tmp_path, monkeypatch, MOVED, autostart)
    assert not await leave.decide(ctx, C1, 1, "an earlier move", runs=False)
    assert (stored, undecided_file.exists()) == ({}, True)
    assert await leave.decide(ctx, C1, 1, "move", runs=False) is starts
    assert stored == {POWER: "RUNNING" if starts else "STOPPED", BOOT_ID: None}
    assert not undecided_file.exists()
    assert not await leave.decide(ctx, C1, 1, "move", runs=False)  # it is told again


async def test_a_stopped_instance_stays_stopped_if_it_has_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, undecided_file, stored = lost_of(tmp_path, monkeypatch, "STOPPED")
    assert not await leave.decide(ctx, C1, 1, "move", runs=False)
    assert (stored, undecided_file.exists()) == ({}, False)


@pytest.mark.parametrize("power", ["RUNNING", "STOPPED", MOVED])
async def test_an_instance_that_has_moved_is_not_started_whatever_has_become_of_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: str
) -> None:
    ctx, _, stored = lost_of(tmp_path, monkeypatch, power)
    assert not await leave.decide(ctx, C1, 1, "move", runs=True)
    assert stored == {POWER: MOVED}


async def test_connections_to_the_other_side_notice_that_its_host_is_gone(tmp_path: Path) -> None:
    target = Target()
    async with serving(target, tmp_path) as record:
        remote = Remote(URL(record.url), {"control": record.secret}, record.certificate)
        async with connecting.opened(remote, Proxies(), ("control",)) as (socket,):
            raw = cast(Any, socket)._socket.get_extra_info("socket")
            assert raw.getsockopt(SOL_SOCKET, SO_KEEPALIVE) == 1


def test_records_are_on_disk_before_the_other_side_relies_on_them(
    moves: UndecidedMoves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power leaves is what was synced: the content before its name, and then the name."""
    synced: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        path = Path("/proc/self/fd", str(descriptor)).readlink()
        synced.append((path.name, sorted(one.name for one in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", fsync)
    record = record_of("source", runs=None)
    moves.store(record)
    moves.forget(record)
    folder, fresh, name = tmp_path.name, ".move.undecided.new", "move.undecided"
    assert synced == [(fresh, [fresh]), (folder, [name]), (folder, [])]


def test_any_text_may_be_asked_for(moves: UndecidedMoves, tmp_path: Path) -> None:
    moves.store(record_of("source", runs=None))
    (tmp_path.parent / "other.undecided").touch()
    asked = ("move", "mov", "", "../other", "move.undecided", "*", "\0")
    assert [text for text in asked if moves.knows(text)] == ["move"]
