"""The side that has the layers (`migration.layers`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.threads import in_thread
from utsuwa.host.archives import streams
from utsuwa.migration import beside, layers
from utsuwa.migration.ahead import Programs
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


async def send(
    files: Stream,
    offered: Layered,
    names: Sequence[str],
    programs: Programs,
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
        for number, layer in enumerate(wanted, 1):
            async with programs.next(more=number < len(wanted)) as program:
                await files.send_document(await in_thread(found.marks, layer))
                told = streams.to_send(found.tree(layer))
                await program.exchange(files, progress.add, told=told, rate=rate)
