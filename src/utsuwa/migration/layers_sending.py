"""The side that has the layers (`migration.layers`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.archives import streams
from utsuwa.migration import beside, layers
from utsuwa.migration.channel import Stream
from utsuwa.migration.progress import Progress
from utsuwa.migration.rsync import exchange
from utsuwa.storage.layer_transfer import OutgoingLayers


@dataclass(frozen=True)
class Layered:
    """What is offered in layers."""

    opened: Callable[[Sequence[str]], AbstractAsyncContextManager[OutgoingLayers]]
    """Has the layers of these snapshots, and of what is offered itself, for a block."""
    folder: Callable[[str | None], Path]
    """Returns the directory of a snapshot's volume, or of what is offered itself (None)."""


async def send(
    files: Stream,
    offered: Layered,
    names: Sequence[str],
    *,
    scratch: Path,
    progress: Progress,
    rate: int,
) -> None:
    """Send the layers that the other server lacks; `names` are those of the snapshots that it gets.

    Raises as `sending.send`.
    """
    async with offered.opened(names) as found:
        await files.send_document(layers.encode_chains(found.chains))
        wanted = layers.decode_wanted(await files.document(), found.chains)
        await beside.send(files, scratch, [offered.folder(name) for name in (*names, None)])
        for layer in wanted:
            await files.send_document(await asyncio.to_thread(found.marks, layer))
            await exchange(files, streams.sending(found.tree(layer)), progress.add, rate=rate)
