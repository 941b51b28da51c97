"""Chains of frozen layers: how many there may be, and which are merged.

Merging copies, so each layer is merged with others of about its size: the work is spread over many snapshots,
and in all grows only little faster than the changes between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utsuwa.core import faults
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers import overlay_merge, records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.layers import Claim, Layers
from utsuwa.storage.drivers.records import layers_of

MAX_FROZEN = 8
"""With the upper layer and the image these are ten: a lookup takes 20 times as long with a hundred."""
KEPT = 4
"""Longer chains are merged ahead of their use."""

Chain = tuple[str, ...]
"""Names of frozen layers, the newest first."""


def run_to_merge(sizes: Sequence[int], most: int) -> int:
    """Return how many of the newest layers to merge: at most `most` are left, and older ones are larger."""
    count, merged = 1, sizes[0]
    while count < len(sizes) and (len(sizes) - count >= most or merged >= sizes[count]):
        merged += sizes[count]
        count += 1
    return count


def merge_newest(
    layers: Layers, chain: Chain, most: int, claim: Claim, stopper: Stopper, *, has_image: bool
) -> Chain:
    """Merge so many of the newest layers of a chain that at most `most` are left; the result is claimed.

    `has_image` tells whether the chain is above an image.
    """
    count = run_to_merge([layers.size(name) for name in chain], most)
    claim.hold(chain[count:])
    name = claim.new()
    parts = [layers.tree(part) for part in chain[:count]]
    lowest = count == len(chain) and not has_image
    overlay_merge.merge(parts, layers.tree(name), stopper, lowest=lowest)
    return (name, *chain[count:])


class ChainMerge:
    """Merges layers of a volume ahead of its next snapshot or copy; a `LayerMerge` of the driver."""

    def __init__(self, layers: Layers, folder: Path) -> None:
        record = records.load_volume(folder)
        self._layers = layers
        self._folder = folder
        self._chain = record.merged or record.layers
        self._has_image = records.lower_folder(record) is not None
        self._merged: Chain = ()
        self._claim = Claim(layers)
        self._claim.hold(self._chain)

    @property
    def needed(self) -> bool:
        return len(self._chain) > KEPT

    @translated
    def run(self, stopper: Stopper) -> None:
        self._merged = merge_newest(
            self._layers, self._chain, KEPT, self._claim, stopper, has_image=self._has_image
        )
        faults.point("layers are merged")

    @translated
    def finish(self) -> None:
        try:
            record = records.load_volume(self._folder)
        except FileNotFoundError:
            return
        if (record.merged or record.layers) == self._chain:
            changed = replace(record, merged=self._merged)
            self._claim.hold(layers_of(changed))
            records.store_volume(self._folder, changed)
            self._claim.hand_over(layers_of(changed))
            self._layers.release(layers_of(record))

    def end(self) -> None:
        self._claim.end()
