"""The side that has the layers (`migration.layers`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.threads import in_thread
from utsuwa.migration import beside, layers
from utsuwa.migration.ahead import Build, LayerTransfers
from utsuwa.migration.channel import Stream
from utsuwa.migration.progress import Progress
from utsuwa.storage.layer_transfer import OutgoingLayers


@dataclass(frozen=True)
class Layered:
    """What is offered in layers."""

    opened: Callable[[Sequence[str]], AbstractAsyncContextManager[OutgoingLayers]]
    """Has the layers of these snapshots, and of what is offered itself, for a block."""
    folder: Callable[[str | None], Path]
    """Returns the directory of a snapshot's volume, or of what is offered itself (None)."""
    build: Build
    """Has a sandbox built for a layer."""


async def offer(
    files: Stream, offered: Layered, found: OutgoingLayers, names: Sequence[str], *, scratch: Path
) -> None:
    """Say of which layers snapshots and the volume consist, and send what is beside their trees."""
    await files.send_document(layers.encode_chains(found.chains))
    await beside.send(files, scratch, [offered.folder(name) for name in (*names, None)])


async def send(
    files: Stream, found: OutgoingLayers, transfers: LayerTransfers, *, progress: Progress, rate: int
) -> None:
    """Send the layers that the other server lacks. Raises as `sending.send`."""
    wanted = layers.decode_wanted(await files.document(), found.chains)
    for number, layer in enumerate(wanted, 1):
        async with transfers.next(more=number < len(wanted)) as transfer:
            await files.send_document(await in_thread(found.marks, layer))
            await transfer.send(files, found.tree(layer), progress.add, rate)
