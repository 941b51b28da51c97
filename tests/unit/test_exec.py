from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.instances import C1, ref
from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host.processes import pipes
from utsuwa.instances.commands.exec import ExecManager, ExecTarget, environment
from utsuwa.instances.commands.exec_streams import resize
from utsuwa.instances.commands.lasting import History
from utsuwa.operations.events import EventHub
from utsuwa.operations.operations import Operation, Operations
from utsuwa.wire.codec import decode
from utsuwa.wire.exec import InstanceExecPost

IDMAP = IdMap((IdRange(0, 100000, 65536),), (IdRange(0, 200000, 65536),))


def target(**changes: Any) -> ExecTarget:
    found = ExecTarget(
        instance=C1,
        lxcpath=Path("/containers"),
        logs=Path("/logs/c1"),
        config={},
        idmap=IDMAP,
        running=True,
    )
    return replace(found, **changes)


class RecordingHelper:
    """Takes the place of the helper: remembers what it was asked for, and fails."""

    def __init__(self) -> None:
        self.specs: list[Any] = []

    async def attach(self, spec: Any, *_fds: int) -> None:
        self.specs.append(spec)
        raise InvalidRequest("recorded")


@pytest.fixture
def helper() -> RecordingHelper:
    return RecordingHelper()


@pytest.fixture
def manager(helper: RecordingHelper) -> ExecManager:
    return ExecManager(Operations(EventHub()), helper)  # type: ignore[arg-type]


def post(*command: str, **fields: Any) -> InstanceExecPost:
    return InstanceExecPost(command=list(command or ("true",)), **fields)


def test_the_request_on_the_wire() -> None:
    body = b'{"command":["a"],"wait-for-websocket":true,"record-output":true,"user":null,"new-field":1}'
    request = decode(body, InstanceExecPost)
    assert request.wait_for_websocket
    assert request.record_output
    assert request.user == 0


USUAL = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "USER": "root",
}


@pytest.mark.parametrize(
    ("config", "request_", "expected"),
    [
        ({}, post(), USUAL),
        ({}, post(user=7), {k: USUAL[k] for k in ("PATH", "LANG")}),
        (
            {"environment.A": "1", "environment.HOME": "/h", "user.x": "2"},
            post(),
            USUAL | {"A": "1", "HOME": "/h"},
        ),
        (
            {"environment.A": "1"},
            post(environment={"A": "2", "PATH": "/b"}),
            USUAL | {"A": "2", "PATH": "/b"},
        ),
        ({}, post(interactive=True, wait_for_websocket=True), USUAL | {"TERM": "xterm"}),
        ({}, post(interactive=True), USUAL),
    ],
)
def test_environment(config: dict[str, str], request_: InstanceExecPost, expected: dict[str, str]) -> None:
    assert environment(config, request_) == expected


@given(st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text()))
def test_the_request_overrides_the_config(config: dict[str, str], asked: dict[str, str]) -> None:
    found = environment({f"environment.{k}": v for k, v in config.items()}, post(environment=asked))
    assert {k: found[k] for k in asked} == asked
    assert {k: found[k] for k in config if k not in asked} == {
        k: v for k, v in config.items() if k not in asked
    }


@pytest.mark.parametrize(
    ("changes", "request_", "why"),
    [
        ({"running": False}, post(), "^Instance is not running: start it with `utsuwa start "),
        ({"frozen": True}, post(), "frozen"),
        ({}, InstanceExecPost(command=[]), "No command"),
        ({}, post(""), "No command"),
        ({}, post("a\0b"), "NUL"),
        ({}, post(cwd="/a\0"), "NUL"),
        ({}, post(environment={"A": "\0"}), "NUL"),
        ({}, post(environment={"A=B": "x"}), "environment variable: 'A=B'"),
        ({}, post(environment={"": "x"}), "environment variable"),
        ({}, post(cwd="relative"), "absolute"),
        ({}, post(user=-1), "Invalid user -1"),
        ({}, post(group=2**32), "Invalid group"),
        ({}, post(user=65536), "user 65536 is not mapped"),
        ({}, post(group=70000), "group 70000 is not mapped"),
        ({}, post(interactive=True, wait_for_websocket=True, width=-1), "terminal size"),
        ({}, post(interactive=True, wait_for_websocket=True, height=65536), "terminal size"),
        ({}, post(interactive=True, wait_for_websocket=True, linger=3601), "Invalid linger 3601"),
        ({}, post(interactive=True, wait_for_websocket=True, linger=-1), "Invalid linger -1"),
        ({}, post(wait_for_websocket=True, linger=1), "Only a command on a terminal"),
        ({}, post(interactive=True, linger=1), "Only a command on a terminal"),
    ],
)
async def test_invalid_requests(
    manager: ExecManager, changes: dict[str, Any], request_: InstanceExecPost, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        manager.start(target(**changes), request_)


async def ended(operation: Operation) -> Operation:
    assert await operation.wait(30)
    return operation


async def test_the_request_to_the_helper(manager: ExecManager, helper: RecordingHelper) -> None:
    request = post("ls", "-l", user=3, group=4, environment={"HOME": "/home/x"})
    operation = await ended(manager.start(target(instance=ref("c1", "p")), request))
    (spec,) = helper.specs
    assert (spec.name, spec.lxcpath, spec.argv) == ("p_c1", Path("/containers"), ["ls", "-l"])
    assert (spec.uid, spec.gid, spec.cwd, spec.terminal) == (3, 4, "/home/x", None)
    assert operation.error == "recorded"


@pytest.mark.parametrize(("fields", "cwd"), [({}, "/root"), ({"user": 5}, "/"), ({"cwd": "/srv"}, "/srv")])
async def test_the_working_directory(
    manager: ExecManager, helper: RecordingHelper, fields: dict[str, Any], cwd: str
) -> None:
    await ended(manager.start(target(), post(**fields)))
    assert helper.specs[0].cwd == cwd


async def test_operations_look_like_lxds(manager: ExecManager) -> None:
    plain = manager.start(target(), post())
    record = plain.record()
    assert (record.class_, record.description, record.metadata) == ("task", "Executing command", None)
    assert plain.resources == {"instances": ["/1.0/instances/c1"], "containers": ["/1.0/containers/c1"]}
    three = manager.start(target(), post(wait_for_websocket=True))
    assert three.record().class_ == "websocket"
    assert set(three.metadata["fds"]) == {"0", "1", "2", "control"}
    assert three.metadata["command"] == ["true"]
    assert three.metadata["environment"] == USUAL
    assert three.metadata["interactive"] is False
    one = manager.start(target(instance=ref("c1", "p")), post(wait_for_websocket=True, interactive=True))
    assert set(one.metadata["fds"]) == {"0", "control"}
    assert one.resources["instances"] == ["/1.0/instances/c1"]
    for operation in (three, one):
        operation.stop()
        await ended(operation)


async def test_a_client_that_does_not_connect(
    manager: ExecManager, helper: RecordingHelper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utsuwa.instances.commands.exec.CONNECT_TIMEOUT", 0.05)
    operation = await ended(manager.start(target(), post(wait_for_websocket=True)))
    assert operation.status == "Failure"
    assert "in time" in operation.error
    assert helper.specs == []


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (65536, 5)])
def test_invalid_terminal_sizes_are_ignored(size: tuple[int, int]) -> None:
    resize(-1, *size)  # would fail with EBADF if it did anything


@given(st.lists(st.binary(max_size=40)), st.integers(0, 200), st.integers(0, 50))
def test_the_history_of_a_terminal(chunks: list[bytes], offset: int, size: int) -> None:
    history = History(64)
    for chunk in chunks:
        history.append(chunk)
    stream = b"".join(chunks)
    assert (history.start, history.end) == (max(0, len(stream) - 64), len(stream))
    first = max(offset, history.start)
    assert history.read(first, size) == stream[first : first + size]


def test_a_client_that_begins_at_the_start_misses_nothing_of_the_next_output() -> None:
    history = History(64)
    history.append(bytes(range(100)))
    begun = history.start
    history.append(bytes(pipes.CHUNK))
    assert history.read(begun, 64) == bytes(range(36, 100))
