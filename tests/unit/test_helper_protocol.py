from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.host.helper import protocol, replies

Pair = tuple[socket.socket, socket.socket]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        yield a, b


@settings(max_examples=50)
@given(JSON)
def test_message_round_trip(value: object) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        protocol.send(a, value)
        assert protocol.receive(b) == (value, [])


@pytest.mark.parametrize("size", [0, protocol.PACKET - 2, protocol.PACKET, 5_000_000])
def test_any_size_with_descriptors(pair: Pair, size: int) -> None:
    reading, writing = os.pipe()
    protocol.send(pair[0], "x" * size, [writing])
    os.close(writing)
    received = protocol.receive(pair[1])
    assert received is not None
    value, fds = received
    assert value == "x" * size
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"hi")
    os.close(fds[0])
    assert os.read(reading, 10) == b"hi"
    assert os.read(reading, 10) == b""  # nobody holds the writing end any more
    os.close(reading)


def test_the_end(pair: Pair) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) is None


def test_a_full_socket_does_not_block(pair: Pair) -> None:
    pair[0].setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):  # noqa: PT012 - which of them does not fit is the kernel's to say
        while True:
            protocol.send(pair[0], "x" * 50_000)
            sent += 1
    for _ in range(sent):
        assert protocol.receive(pair[1]) is not None


async def test_late_message_does_not_lose_an_answer() -> None:
    """The worker ends without having read it, which the kernel tells before it gives the answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.setblocking(False)
        with theirs:
            protocol.send(theirs, {"code": 5, "errno": None})
            protocol.send(ours, {"kill": True})
        assert (await replies.receive(ours))[0] == {"code": 5, "errno": None}
        with pytest.raises(replies.HelperGone):
            await replies.receive(ours)
