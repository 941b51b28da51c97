"""The websockets of a migration, with peers that stall, disappear or send too much."""

from __future__ import annotations

import asyncio
import time

import pytest

from utsuwa.core.errors import InvalidRequest, Unavailable
from utsuwa.migration import channel
from utsuwa.migration.channel import ControlChannel, Stream, reporting
from utsuwa.migration.messages import Control, Header
from utsuwa.migration.racing import all_of


class Socket:
    """A websocket with messages that were received already; None is its end."""

    def __init__(self, *messages: bytes | str | None) -> None:
        self._messages = list(messages)
        self.sent: list[bytes | str] = []
        self.closed = False
        self.left_on_purpose = False

    async def read(self) -> bytes | str | None:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def send_bytes(self, data: bytes) -> None:
        if self.closed:
            raise ConnectionResetError
        self.sent.append(data)

    async def send_str(self, data: str) -> None:
        if self.closed:
            raise ConnectionResetError
        self.sent.append(data)


async def test_streams_follow_each_other() -> None:
    stream = Stream(Socket(b"a", b"b", "", b"c", ""))
    assert await stream.document() == b"ab"
    assert await stream.document() == b"c"


async def test_zeros_are_counted_if_both_sides_can() -> None:
    data = [bytes(2**18), bytes(100), b"x" + bytes(5000), bytes(4096), b"y" * 5000]
    socket = Socket()
    sender = Stream(socket)
    sender.counts_zeros = True
    assert [await sender.send(part) for part in data] == [6, 100, 5001, 4, 5000]
    await sender.end()
    assert socket.sent == [str(2**18), data[1], data[2], "4096", data[4], ""]
    receiver = Stream(Socket(*socket.sent))
    receiver.counts_zeros = True
    assert await receiver.document() == b"".join(data)
    socket.sent.clear()
    for part in (bytes(2**20 - 5000), bytes(4096), bytes(4096), b"x", bytes(5000)):
        await sender.send(part, more=True)
    await sender.end()
    assert socket.sent == [str(2**20 - 904), "4096", b"x", "5000", ""]
    plain = Socket()
    await Stream(plain).send(data[0])
    assert plain.sent == [data[0]]
    assert await Stream(Socket(b"a", "4096", b"b", "")).document() == b"a"


@pytest.mark.parametrize(
    "count", ["0", "-1", "1048577", "9999999", "99999999999", "x", "1.5", " 7", "７", "0x10"]
)
async def test_a_number_of_zeros_is_checked(count: str) -> None:
    stream = Stream(Socket(count))
    stream.counts_zeros = True
    with pytest.raises(InvalidRequest, match="invalid number of zeros"):
        await stream.read()


async def test_a_peer_that_disappears_is_an_error() -> None:
    with pytest.raises(Unavailable):
        await Stream(Socket(b"a", None)).document()
    with pytest.raises(Unavailable):
        await ControlChannel(Socket(None)).receive(Header)
    gone = Socket()
    gone.closed = True
    for send in (Stream(gone).send(b"x"), Stream(gone).end(), ControlChannel(gone).send(Control())):
        with pytest.raises(Unavailable):
            await send


async def test_a_document_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_DOCUMENT", 3)
    with pytest.raises(InvalidRequest):
        await Stream(Socket(b"aa", b"bb", "")).document()


async def test_a_peer_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "STALL_SECONDS", 0.01)
    monkeypatch.setattr(channel, "HEADER_SECONDS", 0.01)
    stream = Stream(Socket())
    with pytest.raises(Unavailable):
        await all_of(stream.read(), watched_by=stream.watch())
    with pytest.raises(Unavailable):
        await ControlChannel(Socket()).receive_header()


async def test_a_transfer_that_is_watched_already_can_be_hurried() -> None:
    stream = Stream(Socket())
    reading = asyncio.create_task(all_of(stream.read(), watched_by=stream.watch()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stream.hurry(0.01)
    with pytest.raises(Unavailable, match=r"for 0\.01 seconds"):
        await reading


async def test_what_moves_beside_a_stream_counts() -> None:
    files = Stream(Socket())
    state = Stream(Socket(), beside=files)
    state.hurry(0.01)
    files.moved = moved = time.monotonic() + 0.1
    with pytest.raises(Unavailable):
        await state.watch()
    assert time.monotonic() > moved


async def test_a_peer_that_fails_before_its_header_is_quoted() -> None:
    failed = Control(success=False, message="there is no room").encode()
    with pytest.raises(InvalidRequest, match="there is no room"):
        await ControlChannel(Socket(failed)).receive_header()
    for nonsense in ("text", b"\xff", Control(success=True, message="x").encode()):
        with pytest.raises(InvalidRequest, match="invalid message"):
            await ControlChannel(Socket(nonsense)).receive_header()


@pytest.mark.parametrize("message", ["text", b"\xff", Control(success=False, message="full").encode()])
async def test_only_a_success_is_a_good_verdict(message: bytes | str) -> None:
    await ControlChannel(Socket(Control(success=True).encode())).verdict()
    with pytest.raises(InvalidRequest):
        await ControlChannel(Socket(message)).verdict()


async def test_the_peer_is_told_of_a_failure() -> None:
    socket = Socket()
    with pytest.raises(InvalidRequest):
        async with reporting(ControlChannel(socket)):
            raise InvalidRequest("no room")
    (sent,) = socket.sent
    assert isinstance(sent, bytes)
    assert Control.decode(sent) == Control(success=False, message="no room")
    socket.closed = True
    with pytest.raises(ValueError, match="first"):
        async with reporting(ControlChannel(socket)):
            raise ValueError("first")


async def test_all_work_ends_with_the_first_error() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fail() -> None:
        raise InvalidRequest("no")

    async def succeed() -> None:
        pass

    with pytest.raises(InvalidRequest):
        await all_of(wait(), fail(), watched_by=wait())
    assert ended == [True, True]
    await all_of(succeed(), watched_by=wait())
    await all_of(succeed(), succeed())
