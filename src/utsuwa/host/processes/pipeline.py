"""Programs of which each reads what the one before it writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from utsuwa.core.errors import ProcessFailed
from utsuwa.host.processes import pipes
from utsuwa.host.processes.run import Child, start_program
from utsuwa.host.processes.stopper import Stopper

_CHUNK = 1024 * 1024
_SIGPIPE = -13
_SAID = 64 * 1024
"""Bytes of a program's stderr that its error may contain."""


def run_pipeline(
    commands: Sequence[Sequence[str]], take: Callable[[bytes], object], *, stopper: Stopper
) -> None:
    """Run programs in a pipeline to completion, and pass the output of the last one to `take`. Blocking.

    If one fails, `take` raises or `stopper` stops them, all are ended. Raises ProcessFailed, for the first
    one that failed by itself, and what `take` raises.
    """
    with ExitStack() as stack:
        started: list[tuple[Child, BinaryIO]] = []
        source = stack.enter_context(Path(os.devnull).open("rb", buffering=0))
        for command in commands:
            reading, writing = pipes.pipe()
            output = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
            with os.fdopen(writing, "wb", buffering=0) as sink:
                said = stack.enter_context(tempfile.TemporaryFile())
                streams = (source.fileno(), sink.fileno(), said.fileno())
                child = Child(start_program(command, None, streams, None, ()))
            stack.callback(child.kill)
            stack.enter_context(stopper.watch(child))
            started.append((child, said))
            source.close()
            source = output
        while data := source.read(_CHUNK):
            take(data)
        codes = [child.wait() for child, _ in started]
        if stopper.stopped:
            raise ProcessFailed(commands[0], codes[0], "was stopped before its end")
        _judge(commands, codes, [said for _, said in started])


def _judge(commands: Sequence[Sequence[str]], codes: Sequence[int], said: Sequence[BinaryIO]) -> None:
    """Raise the error of the program that failed first: those before it may have lost their reader."""
    failed = [number for number, code in enumerate(codes) if code]
    if not failed:
        return
    first = next((number for number in failed if codes[number] != _SIGPIPE), failed[0])
    said[first].seek(0)
    text = said[first].read(_SAID).decode(errors="replace")
    raise ProcessFailed(commands[first], codes[first], text)
