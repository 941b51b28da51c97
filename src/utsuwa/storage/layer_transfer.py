"""The contract of drivers whose layers can be transferred between pools of different servers.

A layer has an id, which it keeps on every server: its content never changes. The layers of a volume are its
chain, the newest first; the last one may be an image, whose id says which. A chain has at most `MAX_CHAIN`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.volumes import Volume
from utsuwa.host.processes.stopper import Stopper

Chain = tuple[str, ...]

MAX_CHAIN = 16
_IMAGE = "image-"
_ID = re.compile(r"[0-9a-f]{16}|image-[0-9a-f]{64}")


def image_id(fingerprint: str) -> str:
    return f"{_IMAGE}{fingerprint}"


def fingerprint_of(layer: str) -> str | None:
    """Return the fingerprint of the image that a layer is, if it is one."""
    return layer.removeprefix(_IMAGE) if layer.startswith(_IMAGE) else None


def is_chain(layers: Sequence[str]) -> bool:
    """Return whether a chain may be this one."""
    return (
        0 < len(layers) <= MAX_CHAIN
        and len(set(layers)) == len(layers)
        and all(_ID.fullmatch(layer) for layer in layers)
        and not any(layer.startswith(_IMAGE) for layer in layers[:-1])
    )


class OutgoingLayers(Protocol):
    """Layers of a volume and its snapshots, which stay as they are until `end`."""

    chains: Sequence[Chain]
    """Those of the volumes that were asked for, in the same order."""

    def tree(self, layer: str) -> Path:
        """Return the files of a layer."""

    def marks(self, layer: str) -> bytes:
        """Return what a layer contains besides files, as a document."""

    def end(self) -> None: ...


class IncomingLayers(Protocol):
    """Layers that arrive for a volume. What is not needed any more when `end` is called is removed."""

    def has(self, layer: str) -> bool:
        """Return whether a layer is here already."""

    def use_image(self, image: ImageSource) -> None:
        """Use an image that the pool has and keeps until `end`."""

    def place(self, layer: str) -> Path:
        """Return a new, empty directory for the files of a layer."""

    def complete(self, layer: str, marks: bytes) -> None:
        """A layer has all its files. Raises InvalidRequest if `marks` are not those of `OutgoingLayers`."""

    def create(self, volume: Volume, idmap: IdMap, chain: Chain, beside: Path) -> None:
        """Create a volume, or a snapshot, of layers that are here.

        It gets the `metadata.yaml` and `templates/` of a directory, if there are any. Raises InvalidImage if
        these are not plain files.
        """

    def end(self) -> None: ...


@runtime_checkable
class LayerTransferDriver(Protocol):
    """A driver with layers that mean the same on pools of other servers."""

    def can_send_layers(self, volume: Volume, snapshots: Sequence[Volume], mounted: IdMap | None) -> bool:
        """Return whether `outgoing` works for a volume and its snapshots.

        `mounted` is the id map of its mount, if that belongs to a running instance: then it must not have
        changed much since its last layer was frozen.
        """

    def can_receive_layers(self) -> bool:
        """Return whether layers of other servers mean the same here."""

    def outgoing(
        self, volume: Volume, snapshots: Sequence[Volume], stopper: Stopper, *, mounted: IdMap | None = None
    ) -> OutgoingLayers:
        """Freeze what a volume has changed, as for a copy of it; return the layers of the snapshots and,
        at last, of the volume. `mounted` as for copies.
        """

    def incoming(self, like: Sequence[Volume]) -> IncomingLayers:
        """Begin to receive; the layers of the volumes `like` are here already.

        If that is interrupted, the layers that are complete are kept for the next time, at most until the
        daemon ends; the first one of these volumes, which are about to be replaced, tells for which.
        """
