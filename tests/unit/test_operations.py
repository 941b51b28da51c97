"""The life of background operations: order of states, waiting, cancelling, errors, websockets."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from utsuwa.core.entitlements import Entitlement
from utsuwa.core.errors import Cancelled, Forbidden, InvalidRequest, NotFound, Unavailable
from utsuwa.core.scope import EVERYTHING, Scope
from utsuwa.operations import kinds
from utsuwa.operations import operations as module
from utsuwa.operations.events import EventHub, Subscription, act_as, current_requestor
from utsuwa.operations.kinds import Kind
from utsuwa.operations.operations import Operation, Operations
from utsuwa.wire.codec import encode
from utsuwa.wire.events import Requestor

Run = Callable[[Operation], Awaitable[None]]


@pytest.fixture
def operations() -> Operations:
    return Operations(EventHub(), keep_seconds=0.02)


PLAIN = Kind("Testing", ("instances", "containers"), Entitlement.CAN_EDIT)
CANCELLABLE = replace(PLAIN, cancellable=True)


def start(operations: Operations, run: Run, kind: Kind = PLAIN, **more: Any) -> Operation:
    return operations.start(kind, "default", run, **more)


def states(subscription: Subscription) -> list[tuple[str, str]]:
    shown = [json.loads(text)["metadata"] for text in subscription._buffer]
    return [(op["status"], op["err"]) for op in shown]


async def nothing(operation: Operation) -> None:
    pass


async def forever(operation: Operation) -> None:
    await asyncio.Event().wait()


async def test_states_are_published_in_order(operations: Operations) -> None:
    async def run(operation: Operation) -> None:
        operation.update_metadata({"step": 1})
        operation.update_metadata({"more": "x"})

    with operations.events.subscribe(["operation"]) as listener:
        operation = start(operations, run)
        assert operation.status == "Running"
        assert await operation.wait(30)
        assert [s for s, _ in states(listener)] == ["Pending", "Running", "Running", "Running", "Success"]
    assert operation.metadata == {"step": 1, "more": "x"}


async def test_the_record_has_the_shape_that_clients_know(operations: Operations) -> None:
    urls = {"instances": ["/1.0/instances/x"], "containers": ["/1.0/containers/x"]}
    operation = start(operations, forever, CANCELLABLE, names=["x"])
    shown = json.loads(encode(operation.record()))
    created, updated = shown.pop("created_at"), shown.pop("updated_at")
    assert created.endswith("Z")
    assert updated >= created
    assert shown == {
        "id": operation.id,
        "class": "task",
        "description": "Testing",
        "status": "Running",
        "status_code": 103,
        "resources": urls,
        "metadata": None,
        "may_cancel": True,
        "err": "",
        "location": "none",
    }
    await operations.stop()


async def test_typed_errors_are_shown(operations: Operations) -> None:
    async def run(operation: Operation) -> None:
        raise NotFound("No such image: import it first")

    operation = start(operations, run)
    await operation.wait(30)
    record = operation.record()
    assert (record.status, record.status_code) == ("Failure", 400)
    assert record.err == "No such image: import it first"


async def test_other_errors_are_logged_and_hidden(
    operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(operation: Operation) -> None:
        raise ZeroDivisionError("secret detail")

    operation = start(operations, run)
    await operation.wait(30)
    assert operation.error == module.INTERNAL_ERROR
    assert operation.status == "Failure"
    assert "secret detail" in caplog.text


async def test_cancelling_runs_undo_steps_and_sets_the_status(operations: Operations) -> None:
    undone = []

    async def run(operation: Operation) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(True)

    with operations.events.subscribe(["operation"]) as listener:
        operation = start(operations, run, CANCELLABLE)
        await asyncio.sleep(0)
        operation.cancel()
        await operation.wait(30)
        assert states(listener)[-1] == ("Cancelled", module.CANCELLED_ERROR)
    assert undone == [True]
    assert operation.status_code == 401
    assert not operation.record().may_cancel


async def test_one_that_is_cancelled_before_its_first_step_ends_too(operations: Operations) -> None:
    operation = start(operations, forever, CANCELLABLE)
    operation.cancel()
    assert await operation.wait(30)
    assert operation.status == "Cancelled"


async def test_work_may_end_itself_as_cancelled(operations: Operations) -> None:
    async def run(operation: Operation) -> None:
        raise Cancelled("The client left")

    operation = start(operations, run)
    await operation.wait(30)
    assert (operation.status, operation.error) == ("Cancelled", "The client left")


async def test_cancel_is_refused_where_it_cannot_be(operations: Operations) -> None:
    operation = start(operations, nothing)
    with pytest.raises(InvalidRequest, match="cannot be cancelled"):
        operation.cancel()
    await operation.wait(30)
    with pytest.raises(InvalidRequest, match="already ended"):
        operation.cancel()


async def test_wait_times_out_without_affecting_the_operation(operations: Operations) -> None:
    operation = start(operations, forever)
    assert not await operation.wait(0.01)
    assert operation.status == "Running"
    await operations.stop()
    assert await operation.wait(0)


async def test_ended_operations_are_kept_for_a_while() -> None:
    operations = Operations(EventHub(), keep_seconds=600)
    operation = start(operations, nothing)
    await operation.wait(30)
    assert operations.get(EVERYTHING, operation.id) is operation


async def test_ended_operations_are_removed_after_a_while(operations: Operations) -> None:
    operation = start(operations, nothing)
    await operation.wait(30)
    await asyncio.sleep(0.05)
    with pytest.raises(NotFound, match="Operation not found"):
        operations.get(EVERYTHING, operation.id)
    assert operations.all(EVERYTHING) == []


async def test_the_list_is_held_to_a_project(operations: Operations) -> None:
    mine = start(operations, nothing)
    theirs = operations.start(PLAIN, "other", nothing)
    servers = operations.start(PLAIN, "", nothing)
    assert operations.all(EVERYTHING, "default") == [mine, servers]
    assert operations.all(EVERYTHING) == [mine, theirs, servers]
    await operations.stop()


async def test_operations_outside_of_the_scope_are_not_found(operations: Operations) -> None:
    mine = start(operations, nothing)
    theirs = operations.start(PLAIN, "other", forever, websockets=("0",))
    servers = operations.start(PLAIN, "", nothing)
    held = Scope(frozenset({"default"}))
    assert operations.all(held) == [mine]
    assert operations.get(held, mine.id) is mine
    for hidden in (theirs, servers):
        for secret in ("", "x"):
            with pytest.raises(NotFound, match="Operation not found"):
                operations.get(held, hidden.id, secret)
    assert operations.get(held, theirs.id, theirs.secrets["0"]) is theirs
    await operations.stop()


async def test_progress_is_published_once_per_step(operations: Operations) -> None:
    async def run(operation: Operation) -> None:
        operation.set_progress("download", "Download", percent=10, processed=999, speed=2048)
        operation.set_progress("download", "Download", percent=10, processed=1000, speed=2049)
        operation.set_progress("copy", "Copy", processed=1_234_567)
        operation.set_progress("unpack", "Unpacking")

    with operations.events.subscribe(["operation"]) as listener:
        operation = start(operations, run)
        await operation.wait(30)
        assert len(states(listener)) == 6
    assert operation.metadata["download_progress"] == "Download: 10% (2.05kB/s)"
    assert operation.metadata["copy_progress"] == "Copy: 1.23MB"
    assert operation.metadata["unpack_progress"] == "Unpacking"
    assert operation.metadata["progress"] == {"stage": "unpack"}


async def test_metadata_no_longer_changes_after_the_end(operations: Operations) -> None:
    operation = start(operations, nothing)
    await operation.wait(30)
    with operations.events.subscribe() as listener:
        operation.update_metadata({"late": 1})
        assert not states(listener)
    assert operation.metadata == {}


async def test_each_websocket_secret_can_be_used_once(operations: Operations) -> None:
    operation = start(operations, forever, websockets=("0", "control"))
    secrets = operation.metadata["fds"]
    assert set(secrets) == {"0", "control"}
    assert len(set(secrets.values())) == 2
    assert operation.knows_secret(secrets["control"])
    assert not operation.knows_secret("")
    assert operation.claim(secrets["control"]) == "control"
    with pytest.raises(Forbidden):
        operation.claim(secrets["control"])
    for wrong in ("", "x", secrets["0"][:-1], "ü"):
        with pytest.raises(Forbidden):
            operation.claim(wrong)
    await operations.stop()
    with pytest.raises(Forbidden):
        operation.claim(secrets["0"])


class Endless:
    """The end of websockets that are served until they are lost."""

    async def serve(self, name: str, socket: Any, *, offset: int, window: int) -> None:
        await asyncio.Event().wait()


async def test_only_its_creator_connects_a_lasting_websocket_and_may_do_it_again(
    operations: Operations,
) -> None:
    alice = Requestor(username="alice", protocol="unix", address="@")
    act_as(alice)
    operation = start(operations, forever, websockets=("0",), lasting=Endless())
    secret = operation.secrets["0"]
    elsewhere = Requestor(username="alice", protocol="unix", address="127.0.0.1:1")
    assert [operation.claim(secret, who) for who in (alice, elsewhere)] == ["0", "0"]
    for other in (
        None,
        Requestor(username="bob", protocol="unix"),
        Requestor(username="alice", protocol="tls"),
        Requestor(username="", protocol=""),
    ):
        with pytest.raises(Forbidden):
            operation.claim(secret, other)
    with pytest.raises(Forbidden):
        operation.claim("wrong", alice)
    operation.cancel()
    await operation.wait(30)
    with pytest.raises(Forbidden):
        operation.claim(secret, alice)


async def test_the_work_gets_the_connected_socket(operations: Operations) -> None:
    got: list[Any] = []

    async def run(operation: Operation) -> None:
        got.append(await operation.websocket("0", 1))

    socket: Any = object()
    operation = start(operations, run, websockets=("0",))
    operation.connect(operation.claim(operation.secrets["0"]), socket)
    await operation.wait(30)
    assert got == [socket]


async def test_a_missing_websocket_fails_the_operation(operations: Operations) -> None:
    async def run(operation: Operation) -> None:
        await operation.websocket("0", 0.01)

    operation = start(operations, run, websockets=("0",))
    await operation.wait(30)
    assert operation.status == "Failure"
    assert "did not connect the websocket '0'" in operation.error


async def test_stopping_cancels_all_operations_and_rejects_new_ones(operations: Operations) -> None:
    operation = start(operations, forever)
    await operations.stop()
    assert operation.status == "Cancelled"
    with pytest.raises(Unavailable, match="shutting down"):
        start(operations, nothing)


async def test_completing_waits_for_running_operations_and_refuses_new_ones(operations: Operations) -> None:
    go_on = asyncio.Event()

    async def run(operation: Operation) -> None:
        await go_on.wait()

    operation = start(operations, run)
    completing = asyncio.ensure_future(operations.complete(60, asyncio.Event()))
    await asyncio.sleep(0.05)
    assert not completing.done()
    with pytest.raises(Unavailable, match="shutting down"):
        start(operations, nothing)
    go_on.set()
    await completing
    assert operation.status == "Success"


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_completing_ends_after_its_timeout(operations: Operations, seconds: float) -> None:
    operation = start(operations, forever)
    await operations.complete(seconds, asyncio.Event())
    assert operation.status == "Running"
    await operations.stop()


async def test_completing_cancels_what_clients_may_cancel(operations: Operations) -> None:
    operation = start(operations, forever, CANCELLABLE)
    await operations.complete(60, asyncio.Event())
    assert operation.status == "Cancelled"


async def test_completing_ends_when_there_is_a_hurry(operations: Operations) -> None:
    operation, hurry = start(operations, forever), asyncio.Event()
    completing = asyncio.ensure_future(operations.complete(60, hurry))
    await asyncio.sleep(0)
    assert not completing.done()
    hurry.set()
    await asyncio.wait_for(completing, 30)
    await operations.complete(60, hurry)
    assert operation.status == "Running"
    await operations.stop()


async def test_work_knows_its_operation_and_its_requestor(operations: Operations) -> None:
    seen: list[object] = []

    async def run(operation: Operation) -> None:
        seen.extend((module.current.get(), current_requestor()))

    actor = act_as(Requestor(username="alice", protocol="unix", address="@"))
    operation = start(operations, run)
    actor.active = False
    await operation.wait(30)
    assert seen[0] is operation
    assert seen[1] == actor.requestor
    assert current_requestor() is None


async def test_an_ended_one_keeps_no_connection(operations: Operations) -> None:
    """It stays visible for a while, which must not hold the memory of its clients' websockets."""

    class Socket:
        pass

    async def run(operation: Operation) -> None:
        await operation.websocket("0")

    operation = start(operations, run, websockets=["0", "control"])
    socket = Socket()
    gone = weakref.ref(socket)
    operation.connect(operation.claim(operation.secrets["0"]), cast(Any, socket))
    del socket
    gc.disable()
    try:
        assert await operation.wait(30)
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


async def test_a_websocket_after_completion_is_ignored(operations: Operations) -> None:
    operation = start(operations, nothing, websockets=["0"])
    name = operation.claim(operation.secrets["0"])
    assert await operation.wait(30)
    operation.connect(name, cast(Any, object()))
    assert operation.status == "Success"


async def test_cancellation_by_client_differs_from_shutdown(operations: Operations) -> None:
    told: list[bool] = []

    async def run(operation: Operation) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append(module.cancelled_by_client())

    first = start(operations, run, CANCELLABLE)
    await asyncio.sleep(0)
    first.cancel()
    await first.wait(30)
    start(operations, run, CANCELLABLE)
    await asyncio.sleep(0)
    await operations.stop()
    assert told == [True, False]


async def test_operation_can_become_uncancellable(operations: Operations) -> None:
    async def run(operation: Operation) -> None:
        module.forbid_cancellation()
        await asyncio.Event().wait()

    operation = start(operations, run, CANCELLABLE)
    assert operation.record().may_cancel
    await asyncio.sleep(0)
    assert not operation.record().may_cancel
    with pytest.raises(InvalidRequest, match="cannot be cancelled"):
        operation.cancel()
    await operations.stop()


def test_kinds_have_titles_of_their_own() -> None:
    table = [kind for kind in vars(kinds).values() if isinstance(kind, Kind)]
    assert len({kind.text for kind in table}) == len(table) >= 13
    entities = {"instances", "containers", "images", "storage_volumes"}
    assert {entity for kind in table for entity in kind.entities} == entities


async def test_objects_are_named_by_urls_that_are_escaped_and_without_project(operations: Operations) -> None:
    operation = operations.start(PLAIN, "a b", nothing, names=["x/y", "z"])
    assert operation.record().resources == {
        "instances": ["/1.0/instances/x%2Fy", "/1.0/instances/z"],
        "containers": ["/1.0/containers/x%2Fy", "/1.0/containers/z"],
    }
    await operation.wait(30)
    assert operations.start(replace(PLAIN, entities=()), "default", nothing).record().resources is None
