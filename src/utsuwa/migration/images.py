"""The images of a running state on their way between two servers.

They come in rounds of four streams. The first one is a document that lists the files (`_Round`). The second
one has all files but those of memory, one after the other. The third one tells for the files of memory which
runs of pages they consist of (`_RUN`): a run is among the pages of the round before, or its pages are in the
fourth stream.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import msgspec

from utsuwa.core.errors import InvalidRequest, OutOfSpace
from utsuwa.core.threads import in_thread
from utsuwa.migration.channel import Stream
from utsuwa.migration.extents import CHUNK, Extents, contents, receive, send
from utsuwa.migration.memory import NEW, PAGE, Memory, Run
from utsuwa.migration.racing import all_of

_PAGES = re.compile(r"pages-[0-9]{1,9}\.img\Z")
_LEFT_OUT = ("dump.log", "stats-dump")
_RUN = struct.Struct("<qq")
_MAX_FILES = 100_000

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")]
_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class _Round(msgspec.Struct, forbid_unknown_fields=True):
    files: Annotated[list[tuple[_Name, _Size]], msgspec.Meta(max_length=_MAX_FILES)]
    last: bool


@dataclass(frozen=True)
class Share:
    """How much of the memory of a round the other server had already, in pages."""

    known: int
    total: int

    @property
    def percent(self) -> int:
        return 100 * self.known // self.total if self.total else 100


class Sender:
    """The side that has the images; `count` is called with the bytes that are sent.

    It keeps the files of memory of the round before open, until `close`.
    """

    def __init__(self, stream: Stream, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count
        self._before: Memory | None = None

    def close(self) -> None:
        """Blocking."""
        if self._before is not None:
            self._before.close()
            self._before = None

    async def send(self, folder: Path, *, last: bool) -> Share:
        """Send the images in a directory, without the pages of the round before. Raises Unavailable."""
        files = await in_thread(_files, folder)
        await self._send_document(msgspec.json.encode(_Round(files, last)))
        others = [folder / name for name, _ in files if not _PAGES.match(name)]
        await send(self._stream, contents(others), self._count)
        memory = await in_thread(Memory, folder, [name for name, _ in files if _PAGES.match(name)])
        before, self._before = self._before, memory
        try:
            runs = await in_thread(memory.runs, before)
        finally:
            if before is not None:
                await in_thread(before.close)
        await self._send_document(b"".join(_RUN.pack(*run) for own in runs for run in own))
        await send(self._stream, memory.new_pages(runs, CHUNK), self._count)
        known = sum(count for own in runs for first, count in own if first != NEW)
        return Share(known, memory.count)

    async def _send_document(self, data: bytes) -> None:
        await all_of(self._stream.send_document(data), watched_by=self._stream.watch())


def _files(folder: Path) -> list[tuple[str, int]]:
    """Return names and sizes of the images, sorted."""
    found = [path for path in folder.iterdir() if path.name not in _LEFT_OUT]
    return sorted((path.name, path.stat().st_size) for path in found)


class Receiver:
    """The side that gets the images; `count` is called with the bytes that are received."""

    def __init__(self, stream: Stream, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count
        self._memory: list[tuple[str, int]] = []
        """The files of memory of the round before, with their numbers of pages."""

    async def receive(self, folder: Path, before: Path | None = None) -> bool:
        """Receive a round into an empty directory; return whether it is the last one.

        That of the round before, if there was one, is `before` by now. Files of memory are taken from it.

        Raises InvalidRequest for anything but images, OutOfSpace, Unavailable.
        """
        try:
            found = msgspec.json.decode(await self._stream.document(), type=_Round)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"The other server sent an invalid list of images: {error}") from error
        names = [name for name, _ in found.files]
        if len(set(names)) != len(names):
            raise InvalidRequest("The other server sent two images of the same name")
        try:
            others = [(folder / name, 0, size) for name, size in found.files if not _PAGES.match(name)]
            await receive(self._stream, Extents(others), self._count)
            await self._receive_memory(folder, before, [one for one in found.files if _PAGES.match(one[0])])
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfSpace(
                    "No space left for the running state: free some space, and try again"
                ) from error
            raise
        return found.last

    async def _receive_memory(
        self, folder: Path, before: Path | None, files: Sequence[tuple[str, int]]
    ) -> None:
        runs = self._runs(await self._stream.document(), files)
        known = _Known([] if before is None else [(before / name, pages) for name, pages in self._memory])
        paths = [(folder / name, size) for name, size in files]
        plans = [_Plan(*place, own, known) for place, own in zip(paths, runs, strict=True)]
        incomplete = await in_thread(_begin, plans, known)
        new = [extent for plan in plans for extent in plan.new]
        await all_of(_copied(incomplete, known), receive(self._stream, Extents(new), self._count))
        self._memory = [(name, size // PAGE) for name, size in files]

    def _runs(self, data: bytes, files: Sequence[tuple[str, int]]) -> list[list[Run]]:
        """Return the runs of each file of memory. Raises InvalidRequest."""
        if len(data) % _RUN.size:
            raise InvalidRequest("The other server sent an invalid image of memory")
        known = sum(count for _, count in self._memory)
        left = _RUN.iter_unpack(data)
        found: list[list[Run]] = []
        for _, size in files:
            left_of_file, of_file = size, list[Run]()
            while left_of_file > 0:
                first, count = next(left, (NEW, 0))
                if count <= 0 or first < NEW or (first != NEW and first + count > known):
                    raise InvalidRequest("The other server refers to memory that it has not sent")
                of_file.append((first, count))
                left_of_file -= count * PAGE
            if left_of_file:
                raise InvalidRequest("The other server sent an image of another size than it said")
            found.append(of_file)
        if next(left, None) is not None:
            raise InvalidRequest("The other server sent more memory than it said")
        return found


class _Known:
    """The files of memory of the round before."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        """They come with their numbers of pages."""
        self.paths = [path for path, _ in files]
        self._ends = list(accumulate(count for _, count in files))

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of a run: the number of the file, the first page in that, and how many they are."""
        number = bisect_right(self._ends, first)
        while count:
            base = self._ends[number - 1] if number else 0
            here = min(count, self._ends[number] - first)
            if here:
                yield number, first - base, here
            first, count, number = first + here, count - here, number + 1


class _Plan:
    """A file of memory that is put together of runs."""

    def __init__(self, path: Path, size: int, runs: Sequence[Run], known: _Known) -> None:
        self.path = path
        self.size = size
        self.new: list[tuple[Path, int, int]] = []
        """The parts that are received (`Extents`)."""
        self.pieces: list[tuple[int, int, int, int]] = []
        """The parts that are known: the number of the file that has them, the first page there, the first
        page here, and how many there are."""
        at = 0
        for first, count in runs:
            if first == NEW:
                self.new.append((path, at * PAGE, count * PAGE))
                at += count
                continue
            for number, there, pages in known.pieces(first, count):
                self.pieces.append((number, there, at, pages))
                at += pages


def _begin(plans: Sequence[_Plan], known: _Known) -> list[_Plan]:
    """Give each file of memory its size, and return those in which known pages are missing.

    A file of the round before becomes one of this round if all of its pages that are known have the same
    place there, and no other file has pages of it. Blocking.
    """
    users = defaultdict[int, set[int]](set)
    for index, plan in enumerate(plans):
        for number, *_ in plan.pieces:
            users[number].add(index)
    incomplete = []
    for index, plan in enumerate(plans):
        sources = {number for number, *_ in plan.pieces}
        stays = len(sources) == 1 and all(there == here for _, there, here, _ in plan.pieces)
        if stays and all(users[number] == {index} for number in sources):
            known.paths[sources.pop()].rename(plan.path)
        elif sources:
            incomplete.append(plan)
        with plan.path.open("ab") as file:
            file.truncate(plan.size)
    return incomplete


async def _copied(plans: Sequence[_Plan], known: _Known) -> None:
    await in_thread(_copy_known, plans, known)


def _copy_known(plans: Sequence[_Plan], known: _Known) -> None:
    """Copy known pages from the files of the round before. Blocking."""
    with ExitStack() as stack:
        sources: dict[int, int] = {}
        for plan in plans:
            target = stack.enter_context(plan.path.open("r+b")).fileno()
            for number, there, here, pages in plan.pieces:
                if number not in sources:
                    sources[number] = stack.enter_context(known.paths[number].open("rb")).fileno()
                _copy(sources[number], there * PAGE, target, here * PAGE, pages * PAGE)


def _copy(source: int, there: int, target: int, here: int, size: int) -> None:
    while size:
        copied = os.copy_file_range(source, target, size, there, here)
        if not copied:
            raise InvalidRequest("A part of the memory that was received is missing")
        there, here, size = there + copied, here + copied, size - copied
