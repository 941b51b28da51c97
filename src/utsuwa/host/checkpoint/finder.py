"""Finding a CRIU that works on this host: new enough, and proven once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from pathlib import Path

import msgspec

from utsuwa.core.errors import Unavailable
from utsuwa.host.checkpoint.program import (
    OLDEST_TEXT,
    REMEDY,
    Criu,
    candidates,
    is_new_enough,
    prove,
    version_of,
)
from utsuwa.host.files.atomic import replace_file

log = logging.getLogger(__name__)

_VALID = 5.0
"""Seconds for which what was found is not looked up again, except to use it."""


class Proof(msgspec.Struct, kw_only=True):
    """The result of the last proof, as stored: `failure` is empty if it succeeded."""

    key: str
    failure: str


class CriuFinder:
    """Finds and proves CRIU on demand; the proof is kept in a file."""

    def __init__(self, folder: Path, proof: Path) -> None:
        """`folder` is that of `utsuwad criu install`, `proof` the file for the last result."""
        self._folder = folder
        self._file = proof
        self._versions: dict[tuple[str, int], str] = {}
        self._lock = asyncio.Lock()
        self._works = False
        self._looked = -math.inf
        """When `_works` was determined, by the monotonic clock."""

    async def find(self) -> Criu:
        """Return a CRIU that works here. Raises Unavailable, whose message has the remedy."""
        async with self._lock:
            works = False
            try:
                criu = await self._new_enough()
                failure = await self._proven(criu)
                works = not failure
            finally:
                self._works, self._looked = works, time.monotonic()
        if failure:
            raise Unavailable(f"CRIU {criu.version} ({criu.program}) does not work on this host: {failure}")
        return criu

    async def works(self) -> bool:
        """Return whether there is a CRIU that works, as it was at most `_VALID` seconds ago.

        Every client asks for this first, with `GET /1.0`.
        """
        if time.monotonic() - self._looked < _VALID:
            return self._works
        with contextlib.suppress(Unavailable):
            await self.find()
        return self._works

    async def _new_enough(self) -> Criu:
        old = []
        for program in await asyncio.to_thread(candidates, self._folder):
            version = await self._version(program)
            if is_new_enough(version):
                return Criu(program, version)
            old.append(f"{program} has version {version or 'unknown'}")
        raise Unavailable(
            f"Running state needs CRIU {OLDEST_TEXT} or newer, and "
            f"{'; '.join(old) if old else 'this host has none'}: {REMEDY}"
        )

    async def _version(self, program: str) -> str:
        try:
            key = (program, (await asyncio.to_thread(os.stat, program)).st_mtime_ns)
        except OSError:
            return ""
        if key not in self._versions:
            self._versions[key] = await version_of(program)
        return self._versions[key]

    async def _proven(self, criu: Criu) -> str:
        """Return why this CRIU does not work here, empty if it does."""
        known = await asyncio.to_thread(self._read)
        key = await asyncio.to_thread(lambda: criu.key)
        if known is not None and known.key == key:
            return known.failure
        failure = await prove(criu)
        log.log(
            logging.WARNING if failure else logging.INFO,
            "CRIU %s on this host: %s",
            criu.version,
            failure or "works",
        )
        await asyncio.to_thread(self._store, Proof(key=key, failure=failure))
        return failure

    def _read(self) -> Proof | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Proof)
        except (OSError, msgspec.DecodeError):
            return None

    def _store(self, proof: Proof) -> None:
        try:
            replace_file(self._file, msgspec.json.encode(proof).decode())
        except OSError as error:  # it is proven again next time
            log.warning("cannot store that CRIU was tried: %s", error)
