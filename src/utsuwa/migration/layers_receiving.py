"""The side that gets the layers (`migration.layers`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import InvalidImage
from utsuwa.core.image_source import ImageSource
from utsuwa.migration import beside, layers
from utsuwa.migration.ahead import LayerTransfers
from utsuwa.migration.channel import Stream
from utsuwa.migration.progress import Progress
from utsuwa.storage.layer_transfer import fingerprint_of
from utsuwa.storage.layered import LayeredVolume

FindImage = Callable[[str], Awaitable[ImageSource | None]]
"""Returns the image with a fingerprint, if it is here and may be used."""


async def receive(
    files: Stream,
    volume: LayeredVolume,
    names: list[str],
    find_image: FindImage,
    transfers: LayerTransfers,
    *,
    scratch: Path,
    progress: Progress,
) -> None:
    """Receive the layers that are not here, and create the snapshots, oldest first, and the volume.

    Raises as `receiving.receive_trees`.
    """
    chains = layers.decode_chains(await files.document(), len(names) + 1)
    missing = [layer for layer in layers.in_order(chains) if not volume.layers.has(layer)]
    for layer in missing:
        fingerprint = fingerprint_of(layer)
        image = None if fingerprint is None else await find_image(fingerprint)
        if image is not None:
            await volume.use_image(image)
    wanted = [layer for layer in missing if not volume.layers.has(layer)]
    await files.send_document(layers.encode_wanted(wanted))
    async with beside.scratch(scratch) as metadata:
        await beside.receive(files, metadata, len(chains))
        for number, layer in enumerate(wanted, 1):
            async with transfers.next(more=number < len(wanted)) as transfer:
                marks = await files.document()
                tree = await volume.threads.quick.run(volume.layers.place, layer)
                await transfer.receive(files, tree, progress.add)
            await volume.threads.fill.run(volume.layers.complete, layer, marks)
            faults.point("migration received layer")
        for number, name in enumerate([*names, None]):
            await _create(volume, name, chains[number], beside.of_volume(metadata, number))
    faults.point("migration received")


async def _create(volume: LayeredVolume, name: str | None, chain: tuple[str, ...], metadata: Path) -> None:
    try:
        await volume.create(name, chain, metadata)
    except InvalidImage as error:
        raise beside.invalid(error) from error
    if name is not None:
        faults.point("migration received snapshot")
