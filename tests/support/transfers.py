"""Transfers of a volume between two pools with layers, by the programs that migrations run."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.support.pools import PRIVILEGED, TestedPool, container
from utsuwa.core.image_source import ImageSource
from utsuwa.host.archives import streams
from utsuwa.host.processes.stopper import Stopper
from utsuwa.migration.layers import in_order
from utsuwa.storage.layer_transfer import LayerTransferDriver, fingerprint_of


def send_tree(source: Path, target: Path) -> tuple[int, int]:
    """Send a tree to a directory; return the exit statuses of both programs."""
    reading, writing = os.pipe()
    with subprocess.Popen(streams.sending(source)[0], stdout=writing) as sender:
        os.close(writing)
        with subprocess.Popen(streams.receiving(target)[0], stdin=reading) as receiver:
            os.close(reading)
    return sender.returncode, receiver.returncode


def bring_up_to_date(source: TestedPool, target: TestedPool, image: ImageSource | None) -> list[str] | None:
    """Have `c1` with its snapshots be on the other pool as it is here; return the layers that were sent.

    With an image, the target uses it. Returns None if the volume has no layers.
    """
    sender, receiver = source.driver, target.driver
    assert isinstance(sender, LayerTransferDriver)
    assert isinstance(receiver, LayerTransferDriver)
    snapshots = source.snapshots()
    volumes = [container("c1", name) for name in snapshots]
    if not sender.can_send_layers(container("c1"), volumes, None):
        return None
    there = {name: container("c1", name) for name in target.snapshots()} if target.names() else {}
    for name in set(there).difference(snapshots):
        receiver.delete_volume(there.pop(name))
    outgoing = sender.outgoing(container("c1"), volumes, Stopper())
    incoming = receiver.incoming([*there.values(), *map(container, target.names())])
    sent = []
    for layer in in_order(outgoing.chains):
        if not incoming.has(layer) and fingerprint_of(layer) and image is not None:
            incoming.use_image(image)
        if not incoming.has(layer):
            assert send_tree(outgoing.tree(layer), incoming.place(layer)) == (0, 0)
            incoming.complete(layer, outgoing.marks(layer))
            sent.append(layer)
    with tempfile.TemporaryDirectory() as beside:
        for volume, chain in zip((*volumes, container("c2")), outgoing.chains, strict=True):
            if volume not in there.values():
                incoming.create(volume, PRIVILEGED, chain, Path(beside))
    incoming.end()
    outgoing.end()
    target.delete("c1")
    target.rename("c2", "c1")
    return sent
