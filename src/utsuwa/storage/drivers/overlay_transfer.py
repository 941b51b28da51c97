"""Layers of the driver `overlay` on their way from and to pools of other servers.

A received layer is a frozen one under a new name, with its id in a file beside its content. It keeps what
later layers need to lie over any others that are the same: opaque and renamed directories, and no attribute
that mentions inodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidRequest
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.volumes import Volume
from utsuwa.storage.drivers import layer_marks, records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.layers import Claim, Layers
from utsuwa.storage.drivers.records import VolumeRecord
from utsuwa.storage.layer_transfer import Chain, image_id

MAX_COPIED = 64 * 2**20
"""The most bytes of a running instance's upper layer that are copied while its processes are frozen."""


def chain_of(record: VolumeRecord, layers: Layers) -> Chain:
    """Return the ids of the frozen layers of a volume, and of its image."""
    ids = [layers.identity(name) for name in record.layers]
    return tuple(ids) if record.image is None else (*ids, image_id(record.image))


class OverlayOutgoing:
    """The `OutgoingLayers` of records whose layers are claimed."""

    def __init__(self, layers: Layers, claim: Claim, lower: Callable[[str], Path]) -> None:
        self.chains: list[Chain] = []
        self._layers = layers
        self._claim = claim
        self._lower = lower
        self._trees: dict[str, Path] = {}

    def add(self, record: VolumeRecord) -> None:
        self._claim.hold(record.layers)
        for name in record.layers:
            self._trees[self._layers.identity(name)] = self._layers.tree(name)
        image = records.lower_folder(record)
        if record.image is not None and image is not None:
            self._trees[image_id(record.image)] = self._lower(image)
        self.chains.append(chain_of(record, self._layers))

    def tree(self, layer: str) -> Path:
        return self._trees[layer]

    @translated
    def marks(self, layer: str) -> bytes:
        return layer_marks.collect(self._trees[layer])

    def end(self) -> None:
        self._claim.end()


class ArrivedLayers:
    """The layers that interrupted refreshes have received: the next one of the same volume has them already.

    They are known by the directories of the volumes, in memory: who stops the daemon gives them up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[Path, Arrival] = {}

    def keep(self, folder: Path, arrival: Arrival) -> None:
        with self._lock:
            old, self._of[folder] = self._of.get(folder), arrival
        if old is not None:
            old.claim.end()

    def take(self, folder: Path) -> Arrival | None:
        with self._lock:
            return self._of.pop(folder, None)

    def drop(self, folder: Path) -> None:
        arrival = self.take(folder)
        if arrival is not None:
            arrival.claim.end()


@dataclass(frozen=True)
class Arrival:
    """Layers that have been received, of which no record says so yet."""

    claim: Claim
    names: dict[str, str]
    """By the ids of layers that are complete, their names here."""


class OverlayIncoming:
    """The `IncomingLayers` of a pool."""

    def __init__(
        self,
        layers: Layers,
        known: Sequence[VolumeRecord],
        form: Callable[[str], Path | None],
        create: Callable[[Volume, IdMap, VolumeRecord, Path], None],
        arrived: Arrival | None,
        keep: Callable[[Arrival], None] | None,
    ) -> None:
        """`arrived` is what an interrupted refresh has received; `keep` is given what this one has."""
        self._layers = layers
        self._arrival = arrived or Arrival(Claim(layers), {})
        self._keep = keep
        self._unfinished: set[str] = set()
        self._claim = Claim(layers)
        self._form = form
        self._create = create
        self._names: dict[str, str] = {}
        self._images: dict[str, VolumeRecord] = {}
        """By the ids of images, what a record says of them."""
        for record in known:
            self._claim.hold(record.layers)
            self._names |= {layers.identity(name): name for name in record.layers}
            if record.image is not None:
                image = VolumeRecord(image=record.image, image_folder=record.image_folder)
                self._images[image_id(record.image)] = image
        self._names |= self._arrival.names

    def has(self, layer: str) -> bool:
        return layer in self._names or layer in self._images

    def use_image(self, image: ImageSource) -> None:
        form = self._form(image.fingerprint)
        if form is None:
            raise HostError(f"The image {image.fingerprint[:12]} is gone from its pool: try again")
        record = VolumeRecord(image=image.fingerprint, image_folder=form.name)
        self._images[image_id(image.fingerprint)] = record

    @translated
    def place(self, layer: str) -> Path:
        name = self._names[layer] = self._arrival.claim.new()
        self._unfinished.add(name)
        tree = self._layers.tree(name)
        tree.mkdir(mode=0o755)
        return tree

    @translated
    def complete(self, layer: str, marks: bytes) -> None:
        name = self._names[layer]
        layer_marks.apply(self._layers.tree(name), layer_marks.parse(marks))
        self._layers.note_identity(name, layer)
        self._unfinished.discard(name)
        self._arrival.names[layer] = name

    @translated
    def create(self, volume: Volume, idmap: IdMap, chain: Chain, beside: Path) -> None:
        record = self._record(chain)
        self._claim.hold(record.layers)
        self._create(volume, idmap, record, beside)
        self._claim.hand_over(record.layers)
        if volume.snapshot is None:
            self._keep = None

    def _record(self, chain: Chain) -> VolumeRecord:
        below = self._images.get(chain[-1])
        above = chain if below is None else chain[:-1]
        try:
            names = tuple(self._names[layer] for layer in above)
        except KeyError:
            raise InvalidRequest("The other server did not send all layers") from None
        return replace(below or VolumeRecord(), layers=names)

    @translated
    def end(self) -> None:
        self._claim.end()
        arrival = self._arrival
        if self._keep is None or not arrival.names:
            arrival.claim.end()
            return
        arrival.claim.hand_over(self._unfinished)
        self._layers.release(self._unfinished)
        self._keep(arrival)
