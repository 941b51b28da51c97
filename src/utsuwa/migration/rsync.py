"""One stream of files: a program in its sandbox, with its input and output on the websocket."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence

from utsuwa.core.errors import HostError, InvalidRequest, OutOfSpace, ProcessFailed
from utsuwa.host.processes import pipes
from utsuwa.host.processes.run import run
from utsuwa.migration.channel import Stream
from utsuwa.migration.racing import Work, all_of

_CHUNK = 2**18
_MOST_DISCARDED = 16 * 2**20
"""Bytes that may still come for a program that does not read any more: the end of an archive is padded."""
_FULL = ("No space left on device", "Disk quota exceeded")


class Ends:
    """The ends of two wide pipes, each of which is closed once."""

    def __init__(self) -> None:
        self.their_input, self.our_input = pipes.wide_pipe()
        self.our_output, self.their_output = pipes.wide_pipe()
        self._open = {self.their_input, self.our_input, self.our_output, self.their_output}
        for descriptor in (self.our_input, self.our_output):
            os.set_blocking(descriptor, False)

    def close(self, *descriptors: int) -> None:
        for descriptor in descriptors or tuple(self._open):
            if descriptor in self._open:
                self._open.discard(descriptor)
                os.close(descriptor)

    def close_theirs(self) -> None:
        """The program has its ends."""
        self.close(self.their_input, self.their_output)


Command = tuple[Sequence[str], Mapping[str, str | None]]
"""A command of `host.rsync` or `host.archives.streams`."""


async def exchange(
    stream: Stream,
    command: Command,
    count: Callable[[int], None],
    accept: Sequence[int] = (0,),
    rate: int = 0,
    gate: asyncio.Event | None = None,
    *,
    archive: bool = False,
) -> None:
    """Run a command until both directions have ended, as `connect`.

    With a `gate`, the program is started, but hears nothing of the other side before that is set: an rsync
    that sends has not looked at the files yet.
    """
    argv, env = command
    ends = Ends()
    program = run(
        argv,
        stdin_fd=ends.their_input,
        stdout_fd=ends.their_output,
        accept=accept,
        timeout=None,
        env=env,
        started=ends.close_theirs,
    )
    try:
        await connect(stream, ends, program, count, rate=rate, gate=gate, archive=archive)
    finally:
        ends.close()


async def connect(
    stream: Stream,
    ends: Ends,
    program: Work,
    count: Callable[[int], None],
    *,
    rate: int = 0,
    gate: asyncio.Event | None = None,
    archive: bool = False,
) -> None:
    """Connect a program, which ends with the coroutine, to a stream until both directions have ended.

    `count` is called with the bytes that are sent or received; `rate` is the most that are sent in a second,
    if it is not 0, without zeros of which only the number is sent. What an `archive` consists of does not
    depend on the other side. Raises InvalidRequest if the program fails or the other side does not end,
    OutOfSpace, Unavailable.
    """
    ended = asyncio.Event()

    async def run_program() -> None:
        await program
        ended.set()

    async def pump_out() -> None:
        began, sent = time.monotonic(), 0
        while data := await pipes.read(ends.our_output, _CHUNK):
            sent += await stream.send(data, more=archive)
            count(len(data))
            if rate and (ahead := began + sent / rate - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
        await stream.end()

    async def pump_in() -> None:
        if gate is not None:
            await gate.wait()
        await _forward(stream, ends.our_input, count, ended)
        ends.close(ends.our_input)

    try:
        await all_of(run_program(), pump_out(), pump_in(), watched_by=stream.watch())
    except ProcessFailed as error:
        raise _explained(error) from error
    finally:
        program.close()  # if this was cancelled before it has begun


async def _forward(
    stream: Stream, program_input: int, count: Callable[[int], None], ended: asyncio.Event
) -> None:
    """Forward what is received; what comes when the program does not read any more is discarded.

    Raises InvalidRequest if that is too much, once the program has `ended`.
    """
    discarded = 0
    while (data := await stream.read()) is not None:
        count(len(data))
        try:
            await pipes.write(program_input, data)
        except (BrokenPipeError, ConnectionResetError):
            discarded += len(data)
            if discarded > _MOST_DISCARDED:
                await ended.wait()  # if it has failed, that is what is told
                raise InvalidRequest("The other server sends more than the files that it has") from None
            await asyncio.sleep(0)


def _explained(error: ProcessFailed) -> InvalidRequest | OutOfSpace | HostError:
    lines = [line for line in error.stderr.splitlines() if line.strip()]
    if any(sign in line for line in lines for sign in _FULL):
        return OutOfSpace("No space left for the files of the other server: free some space, and try again")
    if error.code is None or error.code in (126, 127):  # could not be started
        return error
    last = lines[-1] if lines else f"status {error.code}"
    reason = next((line for line in lines if "rsync" in line or line.startswith("tar: ")), last)
    return InvalidRequest(f"The files cannot be transferred: {reason[:300]}")
