"""Pairs of descriptors that programs are connected by."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Thread

import pytest

from utsuwa.host.processes import pipes

CONTENT = bytes(range(256)) * 20_000

Pipe = Callable[[], tuple[int, int]]


@pytest.fixture(params=[pipes.pipe, pipes.wide_pipe])
def pipe(request: pytest.FixtureRequest) -> Pipe:
    made: Pipe = request.param
    return made


def test_what_is_written_can_be_read_to_its_end(pipe: Pipe) -> None:
    reading, writing = pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(CONTENT)

    writer = Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as file:
        assert file.read() == CONTENT
    writer.join()


def test_a_writer_learns_that_the_reader_has_gone(pipe: Pipe) -> None:
    reading, writing = pipe()
    os.write(writing, b"left behind")
    os.close(reading)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        os.write(writing, b"more")
    os.close(writing)


def test_nothing_passes_in_the_other_direction(pipe: Pipe) -> None:
    reading, writing = pipe()
    with pytest.raises(OSError, match="Bad file descriptor|Broken pipe"):
        os.write(reading, b"back")
    os.close(reading)
    os.close(writing)


def test_much_fits_in_before_anybody_reads(pipe: Pipe) -> None:
    reading, writing = pipe()
    os.set_blocking(writing, False)
    sent = 0
    while sent < 512 * 1024:
        sent += os.write(writing, bytes(64 * 1024))
    os.close(reading)
    os.close(writing)
