"""The memory in images of a running state, and which of its pages are as they were in the round before.

CRIU writes the pages of each address space to a file of its own, and which ones they are to another one. A
page is compared with that of the same address before: comparing takes a quarter of the time of hashing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from utsuwa.core.protobuf import Field, InvalidMessage, Message
from utsuwa.host.checkpoint.image_format import messages

PAGE = 4096
NEW = -1
"""In place of the number of a page in the round before, if it was not among that."""
Run = tuple[int, int]
"""The number of the first page in the round before, all of whose files count as one, or `NEW`; and the number
of pages."""
MAX_RUNS = 500_000
_CHUNK = 256
"""Pages that are compared at once."""
_PRESENT = 4
"""The flag of areas whose pages are in the file."""


@dataclass
class Head(Message):
    """The first message of an image that says which pages are in a file."""

    pages_id: int | None = None

    FIELDS: ClassVar = {1: Field("pages_id", "int")}


@dataclass
class Area(Message):
    """One of the others: consecutive pages."""

    address: int | None = None
    flags: int | None = None
    pages: int | None = None

    FIELDS: ClassVar = {1: Field("address", "int"), 4: Field("flags", "int"), 5: Field("pages", "int")}


@dataclass(frozen=True)
class _Span:
    """Consecutive pages: `first` is the number of their address, `at` that of the page in the file."""

    first: int
    count: int
    at: int


@dataclass(frozen=True)
class _File:
    """A file of pages, which is open. `base` is the number of its first page among those of all files."""

    descriptor: int
    owner: str
    """Whose memory it is; empty if that is not known."""
    base: int
    count: int
    spans: Sequence[_Span]
    """By address."""


class Memory:
    """The files of pages of one round, in the order of their names; they are open until `close`."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Blocking. Raises OSError."""
        described = _described(folder)
        self._open = ExitStack()
        self._files: list[_File] = []
        self.count = 0
        with ExitStack() as stack:
            for name in names:
                descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                count = os.fstat(descriptor).st_size // PAGE
                owner, spans = described.get(name, ("", ()))
                if sum(span.count for span in spans) != count:  # a format that is not known
                    owner, spans = "", ()
                self._files.append(_File(descriptor, owner, self.count, count, spans))
                self.count += count
            self._open = stack.pop_all()

    def close(self) -> None:
        self._open.close()

    def runs(self, before: Memory | None) -> list[list[Run]]:
        """Return the runs of each file. Blocking."""
        known = {} if before is None else {file.owner: file for file in before._files if file.owner}
        runs = [_compare(file, known.get(file.owner)) for file in self._files]
        if sum(map(len, runs)) > MAX_RUNS:
            return [_compare(file, None) for file in self._files]
        return runs

    def new_pages(self, runs: Sequence[Sequence[Run]], size: int) -> Iterator[bytes]:
        """Yield the pages that are `NEW`, in parts of about `size` bytes. Blocking."""
        part = bytearray()
        for file, of_file in zip(self._files, runs, strict=True):
            at = 0
            for first, count in of_file:
                left = count * PAGE if first == NEW else 0
                while left:
                    data = os.pread(file.descriptor, min(left, size), (at + count) * PAGE - left)
                    if not data:
                        raise OSError("an image of the running state is shorter than it was")
                    part += data
                    left -= len(data)
                    if len(part) >= size:
                        yield bytes(part)
                        part.clear()
                at += count
        if part:
            yield bytes(part)


def _described(folder: Path) -> dict[str, tuple[str, Sequence[_Span]]]:
    """Return whose memory is in the files of pages of a directory, and which, as far as it can be read."""
    found: dict[str, tuple[str, Sequence[_Span]]] = {}
    for path in folder.glob("pagemap-*.img"):
        try:
            described = messages(path.read_bytes())
            head = Head.decode(next(described))
            spans, at = [], 0
            for area in map(Area.decode, described):
                count = area.pages or 0
                if (area.flags or 0) & _PRESENT:
                    spans.append(_Span((area.address or 0) // PAGE, count, at))
                    at += count
        except (InvalidMessage, StopIteration):
            continue
        found[f"pages-{head.pages_id}.img"] = path.name, sorted(spans, key=lambda span: span.first)
    return found


def _compare(file: _File, before: _File | None) -> list[Run]:
    """Compare a file with that of the same memory before; without one, all is new."""
    runs = _Runs()
    if before is None or not file.spans:
        runs.add(NEW, file.count)
        return runs.found
    old = iter(before.spans)
    other = next(old, None)
    by_place: list[tuple[int, list[Run]]] = []
    for span in file.spans:
        part, first, end = _Runs(), span.first, span.first + span.count
        while first < end:
            while other is not None and other.first + other.count <= first:
                other = next(old, None)
            if other is None or other.first >= end:
                part.add(NEW, end - first)
                break
            if other.first > first:
                part.add(NEW, other.first - first)
                first = other.first
            count = min(end, other.first + other.count) - first
            at, there = span.at + first - span.first, other.at + first - other.first
            _compare_pages(file, at, before, there, count, part)
            first += count
        by_place.append((span.at, part.found))
    for _, found in sorted(by_place):
        for first, count in found:
            runs.add(first, count)
    return runs.found


def _compare_pages(file: _File, at: int, before: _File, there: int, count: int, runs: _Runs) -> None:
    """Compare consecutive pages of two files, and add them to the runs."""
    for start in range(0, count, _CHUNK):
        pages = min(_CHUNK, count - start)
        now = os.pread(file.descriptor, pages * PAGE, (at + start) * PAGE)
        then = os.pread(before.descriptor, pages * PAGE, (there + start) * PAGE)
        number = before.base + there + start
        if now == then:
            runs.add(number, pages)
            continue
        for page in range(pages):
            place = slice(page * PAGE, (page + 1) * PAGE)
            runs.add(number + page if now[place] == then[place] else NEW, 1)


class _Runs:
    """Runs of pages, of which those that belong together become one."""

    def __init__(self) -> None:
        self.found: list[Run] = []

    def add(self, first: int, count: int) -> None:
        if self.found:
            start, length = self.found[-1]
            if first == NEW == start or (start != NEW and first == start + length):
                self.found[-1] = start, length + count
                return
        if count:
            self.found.append((first, count))
