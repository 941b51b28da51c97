"""The driver `overlay`: an instance is a layer over its image, and over frozen layers.

A volume's directory contains `layer/{upper,work}`, the upper layer, and `lower/`, where lower layers are
attached for the moment of mounting. Owners on disk are always the container's own.

A snapshot or copy freezes the upper layer (`storage/drivers/layers.py`): the volume gets a new, empty one
above it, and the snapshot or copy shares the frozen ones, so its time does not depend on the size of the
instance. The upper layer of a running instance cannot be frozen and is copied. The kernel becomes slow with
many layers, so the newest are merged from time to time (`storage/drivers/overlay_chains.py`).

Every change of a volume's layers is the replacement of its record. If the daemon is killed, layers that no
record mentions are removed at its next start.

Where the kernel cannot map the layers of a new instance, as in a container, its image is copied once with
owners that are shifted to the instance's map (`storage/drivers/overlay_images.py`), and all its layers have
such owners. An instance that is mounted with a map that its layers cannot have becomes a complete copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap
from utsuwa.core.image_source import ImageSource
from utsuwa.core.volumes import Volume
from utsuwa.host.mounts import mounts, overlays
from utsuwa.host.mounts.overlays import OverlayFolder
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.base import DriverType, LayerMerge
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.file_copies import FileCopies
from utsuwa.storage.drivers.folder_volumes import copy_beside, copy_description, own_folders
from utsuwa.storage.drivers.layers import Claim
from utsuwa.storage.drivers.overlay_chains import ChainMerge
from utsuwa.storage.drivers.overlay_images import UNPACK_KEY
from utsuwa.storage.drivers.overlay_options import DEFAULT_OPTIONS, check_options
from utsuwa.storage.drivers.overlay_transfer import (
    MAX_COPIED,
    ArrivedLayers,
    OverlayIncoming,
    OverlayOutgoing,
)
from utsuwa.storage.drivers.overlay_volumes import OverlayVolumes
from utsuwa.storage.drivers.records import VolumeRecord, layers_of
from utsuwa.storage.drivers.trees import bytes_below, copy_metadata, look_alike


class OverlayDriver(OverlayVolumes):
    """Layers over shared images."""

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        super().__init__(folder, config)
        self._arrived = ArrivedLayers()

    # Creating

    @translated
    def create_from_image(self, volume: Volume, idmap: IdMap, image: ImageSource, stopper: Stopper) -> None:
        form = self._form_for_new(image.fingerprint)
        if form is None:
            raise HostError(f"The image {image.fingerprint[:12]} is gone from its pool: try again")
        if self._can_layer([self._lower(form.name)], idmap):
            self._create(volume, idmap, lambda folder: self._lay_over(folder, image, form, IdMap()))
            return
        with self._shifted_form(form, idmap, stopper) as shifted:
            self._create(volume, idmap, lambda folder: self._lay_over(folder, image, shifted, idmap))

    @translated
    def image_of(self, volume: Volume) -> str | None:
        try:
            return records.load_volume(self.volume_folder(volume)).image
        except (FileNotFoundError, HostError):
            return None

    def _lay_over(self, folder: Path, image: ImageSource, form: Path, owners: IdMap) -> VolumeRecord:
        copy_metadata(form, folder)
        layers = OverlayFolder(folder)
        layers.make()
        look_alike(self._lower(form.name), layers.upper)
        return VolumeRecord(image=image.fingerprint, image_folder=form.name, owners=owners)

    def _remove(self, folder: Path) -> None:
        self._arrived.drop(folder)
        try:
            used = layers_of(records.load_volume(folder))
        except (OSError, HostError):
            used = frozenset()
        super()._remove(folder)
        self._layers.release(used)

    # Copying

    @translated
    def copy_volume(
        self,
        source: Volume,
        target: Volume,
        idmap: IdMap,
        stopper: Stopper,
        *,
        mounted: IdMap | None = None,
        like: Volume | None = None,
    ) -> None:
        if source.kind == "custom":
            super().copy_volume(source, target, idmap, stopper, mounted=mounted, like=like)
            return
        freezes = self._can_freeze(records.load_volume(self.volume_folder(source)))
        # The upper layer of a running instance would be copied whole.
        if not freezes or (mounted is not None and like is not None):
            FileCopies(self, self).copy_volume(source, target, idmap, stopper, mounted=mounted, like=like)
        elif not self._copy_layers(source, target, idmap, stopper, mounted=mounted):
            super().copy_volume(source, target, idmap, stopper, mounted=mounted, like=like)

    @translated
    def clone_volume(self, volume: Volume, new: Volume, idmap: IdMap, stopper: Stopper) -> bool:
        if volume.kind == "custom":  # without layers
            return False
        possible = self._can_freeze(records.load_volume(self.volume_folder(volume)))
        return possible and self._copy_layers(volume, new, idmap, stopper, beside=None)

    @translated
    def stand_in(self, volume: Volume, new: Volume, idmap: IdMap, stopper: Stopper) -> bool:
        record = records.load_volume(self.volume_folder(volume))
        lowers = self._lowers(record)
        if not lowers or self._can_mount(record, lowers, idmap) or not self._can_freeze(record):
            return False

        def describe(folder: Path, new: Path, _: Stopper) -> None:
            copy_description(folder, new)

        return self._copy_layers(volume, new, idmap, stopper, beside=describe)

    def _copy_layers(
        self,
        source: Volume,
        target: Volume,
        idmap: IdMap,
        stopper: Stopper,
        *,
        mounted: IdMap | None = None,
        beside: Callable[[Path, Path, Stopper], None] | None = copy_beside,
    ) -> bool:
        """Create a volume on the layers of another one; `beside` copies what is beside its rootfs.

        Returns False if the source has none, and cannot get any.
        """
        folder = self.volume_folder(source)
        if mounted is None:
            self.unmount_volume(source)
        with self._layers.claim() as claim:
            record = self._with_frozen(source, mounted, claim, stopper)
            if not record.layers and records.lower_folder(record) is None:
                return False
            claim.hold(record.layers)

            def lay_out(new: Path) -> VolumeRecord:
                if beside is not None:
                    beside(folder, new, stopper)
                return self._lay_over_frozen(target, new, record)

            self._create(target, idmap, lay_out)
            claim.hand_over(record.layers)
        return True

    # Transfers

    @translated
    def can_send_layers(self, volume: Volume, snapshots: Sequence[Volume], mounted: IdMap | None) -> bool:
        if volume.kind == "custom" or overlays.USERXATTR in self._options:
            return False
        whole = snapshots if volume.snapshot is None else (volume,)
        found = [records.load_volume(self.volume_folder(snapshot)) for snapshot in whole]
        if not all(record.layers or records.lower_folder(record) for record in found):
            return False
        folder = self.volume_folder(volume)
        record = records.load_volume(folder)
        if not self._can_freeze(record) or not all(one.owners.privileged for one in (record, *found)):
            return False
        if not record.layers and records.lower_folder(record) is None:
            return mounted is None and self._maps_overlays and mounts.can_idmap(folder / "rootfs")
        return mounted is None or bytes_below(self._settled(folder, record).upper) <= MAX_COPIED

    def can_receive_layers(self) -> bool:
        follows = self._options.get("redirect_dir") in ("on", "follow")
        return follows and self._options.get("metacopy") != "on"

    @translated
    def outgoing(
        self, volume: Volume, snapshots: Sequence[Volume], stopper: Stopper, *, mounted: IdMap | None = None
    ) -> OverlayOutgoing:
        claim = Claim(self._layers)
        found = OverlayOutgoing(self._layers, claim, self._lower)
        try:
            for snapshot in snapshots:
                found.add(records.load_volume(self.volume_folder(snapshot)))
            if mounted is None:
                self.unmount_volume(volume)
            found.add(self._with_frozen(volume, mounted, claim, stopper))
        except BaseException:
            found.end()
            raise
        return found

    @translated
    def incoming(self, like: Sequence[Volume]) -> OverlayIncoming:
        def create(volume: Volume, idmap: IdMap, record: VolumeRecord, beside: Path) -> None:
            def lay_out(new: Path) -> VolumeRecord:
                copy_description(beside, new)
                return self._lay_over_frozen(volume, new, record)

            self._create(volume, idmap, lay_out)

        there = [records.load_volume(self.volume_folder(volume)) for volume in like]
        known = [record for record in there if record.owners.privileged]
        if not like:
            return OverlayIncoming(self._layers, known, self._form_for_new, create, None, None)
        folder = self.volume_folder(like[0])
        keep = partial(self._arrived.keep, folder)
        arrived = self._arrived.take(folder)
        return OverlayIncoming(self._layers, known, self._form_for_new, create, arrived, keep)

    @translated
    def rename_volume(self, volume: Volume, new: Volume) -> None:
        self._arrived.drop(self.volume_folder(volume))
        super().rename_volume(volume, new)

    @translated
    def layer_merge(self, volume: Volume) -> LayerMerge | None:
        merge = ChainMerge(self._layers, self.volume_folder(volume))
        if merge.needed:
            return merge
        merge.end()
        return None

    @translated
    def volume_usage(self, volume: Volume) -> int | None:
        if volume.kind == "custom":
            return super().volume_usage(volume)
        folder = self.volume_folder(volume)
        record = records.load_volume(folder)
        if volume.snapshot is not None:
            trees = [self._layers.tree(name) for name in record.layers[:1]]
        elif record.top:
            trees = [self._layers.tree(record.top)]
        else:
            trees = [OverlayFolder(folder).upper]
        if not all(tree.is_dir() for tree in trees):
            return None
        return sum(bytes_below(tree) for tree in (*trees, *own_folders(folder)))


TYPE = DriverType(
    OverlayDriver.name,
    OverlayDriver,
    keys=(
        ConfigKey(
            "overlay.mount_options",
            default=DEFAULT_OPTIONS,
            live=False,
            help="Options of the overlay mounts. They shape what is on disk, so they are fixed at creation.",
            validate=check_options,
        ),
        UNPACK_KEY,
    ),
)
