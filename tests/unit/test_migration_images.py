"""The images of a running state on their way: what arrives is what was sent, and nothing else is accepted."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_migration_channel import Socket
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.scope import EVERYTHING, Policy, Scope
from utsuwa.migration import images, live_receiving, memory
from utsuwa.migration.channel import Stream
from utsuwa.migration.images import Receiver, Sender
from utsuwa.migration.memory import PAGE, Area, Head
from utsuwa.wire.instances import InstancesPost

Memory = Sequence[Sequence[tuple[int, Sequence[int]]]]
"""The areas of several address spaces: the distance from the end of the one before, and the pages by what is
in them."""


def write(folder: Path, spaces: Memory) -> None:
    folder.mkdir()
    (folder / "core-1.img").write_bytes(os.urandom(10))
    (folder / "dump.log").write_text("not sent")
    for number, areas in enumerate(spaces):
        messages, end = [Head(number).encode()], 0
        for distance, pages in areas:
            messages.append(Area((end + distance) * PAGE, 4, len(pages)).encode())
            end += distance + len(pages)
        described = b"".join(struct.pack("<I", len(one)) + one for one in messages)
        (folder / f"pagemap-{number}.img").write_bytes(bytes(8) + described)
        data = b"".join(bytes([page]) * PAGE for _, pages in areas for page in pages)
        (folder / f"pages-{number}.img").write_bytes(data)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dump.log"}


async def received(sent: Sequence[bytes | str], folder: Path, rounds: int) -> list[dict[str, bytes]]:
    """Receive rounds as the receiving side does; return what arrived in each."""
    receiver = Receiver(Stream(Socket(*sent, None)), lambda _: None)
    found = []
    for number in range(rounds):
        (folder / str(number)).mkdir(parents=True)
        before = folder / str(number - 1) if number else None
        assert await receiver.receive(folder / str(number), before) == (number == rounds - 1)
        found.append(content(folder / str(number)))
    return found


memories = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), max_size=6)), max_size=3), max_size=3
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(memories, min_size=1, max_size=4))
async def test_all_rounds_arrive_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rounds: Sequence[Memory]
) -> None:
    folder = tmp_path_factory.mktemp("rounds")
    socket = Socket()
    sender = Sender(Stream(socket), lambda _: None)
    for number, sent in enumerate(rounds):
        write(folder / "sent", sent)
        await sender.send(folder / "sent", last=number == len(rounds) - 1)
        (folder / "sent").rename(folder / f"sent-{number}")
    sender.close()
    arrived = await received(socket.sent, folder / "got", len(rounds))
    assert arrived == [content(folder / f"sent-{number}") for number in range(len(rounds))]


async def share_of_second(folder: Path, first: Memory, second: Memory) -> tuple[images.Share, int]:
    """Return how much of the second round was known, and how many bytes were sent of it."""
    sent: list[int] = []
    sender = Sender(Stream(Socket()), sent.append)
    write(folder / "1", first)
    assert (await sender.send(folder / "1", last=False)).known == 0
    sent.clear()
    write(folder / "2", second)
    share = await sender.send(folder / "2", last=True)
    sender.close()
    return share, sum(sent)


async def test_known_pages_are_not_sent_again(tmp_path: Path) -> None:
    first: Memory = [[(0, [1, 2, 3]), (5, [4, 5])], [(7, [6])]]
    second: Memory = [[(0, [1, 9, 3, 3]), (4, [4, 5])], [(7, [6])]]
    share, sent = await share_of_second(tmp_path, first, second)
    assert share == images.Share(known=5, total=7)
    assert 2 * PAGE < sent < 3 * PAGE


async def test_memory_in_a_format_that_is_not_known_is_sent_as_a_whole(tmp_path: Path) -> None:
    same: Memory = [[(0, [1, 2])]]
    write(tmp_path / "same", same)
    described = (tmp_path / "same/pagemap-0.img").read_bytes()
    for damaged in (b"", bytes(9), described[:-1], described + described[8:]):
        folder = tmp_path / str(len(damaged))
        folder.mkdir()
        sender = Sender(Stream(Socket()), lambda _: None)
        for number in ("1", "2"):
            write(folder / number, same)
            (folder / number / "pagemap-0.img").write_bytes(damaged)
            assert (await sender.send(folder / number, last=number == "2")).known == 0
        sender.close()


def listing(*files: tuple[str, int]) -> bytes:
    return msgspec.json.encode({"files": files, "last": True})


def run(first: int, count: int) -> bytes:
    return struct.pack("<qq", first, count)


@pytest.mark.parametrize(
    "sent",
    [
        [b"no list", ""],
        [listing(("../x", 1)), "", b"x", "", "", ""],
        [listing((".x", 1)), "", b"x", "", "", ""],
        [listing(("x", -1)), "", "", "", ""],
        [listing(("x", 1), ("x", 1)), "", b"xx", "", "", ""],
        [listing(("x", 1)), "", b"xy", "", "", ""],
        [listing(("x", 2)), "", b"x", "", "", ""],
        [listing(("x", 0), ("y", 1)), "", "", "", ""],
        [listing(("pages-1.img", PAGE)), "", "", b"odd", "", bytes(PAGE), ""],
        [listing(("pages-1.img", 7)), "", "", run(-1, 1), "", bytes(7), ""],
        [listing(("pages-1.img", PAGE)), "", "", "", bytes(PAGE), ""],
        [listing(("pages-1.img", PAGE)), "", "", run(0, 1), "", ""],
        [listing(("pages-1.img", PAGE)), "", "", run(-2, 1), "", ""],
        [listing(("pages-1.img", PAGE)), "", "", run(-1, -1) + run(-1, 2), "", bytes(PAGE), ""],
        [listing(("pages-1.img", PAGE)), "", "", run(-1, 2), "", bytes(2 * PAGE), ""],
        [listing(("pages-1.img", PAGE)), "", "", run(-1, 1) * 2, "", bytes(2 * PAGE), ""],
        [listing(("pages-1.img", PAGE)), "", "", run(-1, 1), "", bytes(PAGE - 1), ""],
        [listing(("pages-1.img", PAGE)), "", "", run(-1, 1), "", bytes(PAGE + 1), ""],
    ],
)
async def test_nonsense_is_refused(tmp_path: Path, sent: Sequence[bytes | str]) -> None:
    with pytest.raises(InvalidRequest):
        await received(sent, tmp_path / "got", 1)


async def test_too_many_runs_are_sent_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_RUNS", 2)
    share, _ = await share_of_second(tmp_path, [[(0, [1, 2, 3])]], [[(0, [1, 9, 3])]])
    assert share.known == 0


def request(config: dict[str, str]) -> InstancesPost:
    return msgspec.convert({"name": "c1", "config": config}, InstancesPost)


def test_restricted_callers_cannot_bring_a_running_state() -> None:
    moved = request({"volatile.cloud-init.instance-id": "x"})
    for scope in (Scope(frozenset({"default"})), Scope(policy=Policy(restricted=True))):
        with pytest.raises(Forbidden, match="without restrictions"):
            live_receiving.check_request(scope, moved)
    live_receiving.check_request(EVERYTHING, moved)


def test_a_running_state_is_not_copied() -> None:
    with pytest.raises(InvalidRequest, match="not copied"):
        live_receiving.check_request(EVERYTHING, request({}))
