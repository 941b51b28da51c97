"""Volumes of the driver `overlay`: how they consist of layers and are mounted, and how layers are frozen."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.volumes import Volume
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.mounts import mounts, overlays
from utsuwa.host.mounts.overlays import OverlayFolder
from utsuwa.host.mounts.userns import in_user_namespace
from utsuwa.host.processes.stopper import Stopper
from utsuwa.storage.drivers import records
from utsuwa.storage.drivers.failures import translated
from utsuwa.storage.drivers.folder_pool import TRIAL
from utsuwa.storage.drivers.folder_volumes import shift_volume
from utsuwa.storage.drivers.layers import Claim, Layers
from utsuwa.storage.drivers.overlay_chains import MAX_FROZEN, merge_newest
from utsuwa.storage.drivers.overlay_images import OverlayImages
from utsuwa.storage.drivers.overlay_links import complete_links, forget_complete_links, has_incomplete_links
from utsuwa.storage.drivers.overlay_options import mount_options
from utsuwa.storage.drivers.records import PoolRecord, VolumeRecord, layers_of
from utsuwa.storage.drivers.trees import copy_tree, look_alike, looks_alike

log = logging.getLogger(__name__)

_PRIVILEGED = IdMap()
_WHERE = {False: "in a container", True: "outside of containers"}
"""By whether this is one: where a pool can be used instead."""


class OverlayVolumes(OverlayImages):
    """A pool with volumes that consist of layers."""

    name = "overlay"
    folders = {**OverlayImages.folders, "layers": 0o700}
    frozen = (*OverlayImages.frozen, "layers")

    def __init__(self, folder: Path, config: Mapping[str, str]) -> None:
        super().__init__(folder, config)
        self._options = mount_options(config.get("overlay.mount_options", ""))
        self._layers = Layers(folder / "layers")

    def _fix_options(self) -> None:
        record = PoolRecord(self.name, self._options)
        records.store_pool(self.folder, record)
        if not self._trial(overlays.can_overlay):
            raise InvalidConfig(
                f"The file system of {self.source} cannot hold overlay layers with these mount options (it "
                "may be an overlay itself, or lack extended attributes, as tmpfs in a container does before "
                "Linux 6.6): use the driver 'dir', or a source on another file system"
            )
        self._maps_overlays = self._trial(overlays.can_overlay_idmapped)

    @translated
    def mount(self) -> None:
        super().mount()
        # The options with which the pool was created apply, even if the daemon's defaults have changed.
        self._options = records.load_pool(self.folder).mount_options
        if (overlays.USERXATTR in self._options) != in_user_namespace():
            raise HostError(
                f"The layers in {self.source} can be used {_WHERE[in_user_namespace()]} only, where the pool "
                "was created: the attributes that belong to them are others"
            )
        self._maps_overlays = self._trial(overlays.can_overlay_idmapped)
        self._layers.count(self._volume_folders().values())

    def _trial(self, possible: Callable[[Path, Mapping[str, str]], bool]) -> bool:
        folder = self.folder / "containers" / f"{TRIAL}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o711)
        try:
            return possible(folder, self._options)
        finally:
            mounts.unmount_below(folder)
            remove_tree(folder)

    # Mounting

    def _lowers(self, record: VolumeRecord) -> list[Path]:
        """Return the lower layers of a volume, the newest first; none if it is a tree of its own."""
        frozen = [self._layers.tree(name) for name in record.layers]
        image = records.lower_folder(record)
        return frozen if image is None else [*frozen, self._lower(image)]

    def _can_layer(self, lowers: Sequence[Path], idmap: IdMap) -> bool:
        """Return whether layers with the container's own ids can be mounted for a map."""
        return idmap.privileged or (self._maps_overlays and all(map(mounts.can_idmap, lowers)))

    def _can_mount(self, record: VolumeRecord, lowers: Sequence[Path], idmap: IdMap) -> bool:
        return self._can_layer(lowers, idmap) if record.owners.privileged else record.owners == idmap

    def _mount(self, folder: Path, idmap: IdMap, record: VolumeRecord, *, readonly: bool) -> None:
        layers = self._settled(folder, record)
        lowers = self._lowers(record)
        if lowers and not self._can_mount(record, lowers, idmap):
            log.warning("%s becomes a complete copy: its layers cannot be mapped to its ids", folder.name)
            record, lowers = self._flatten(layers, lowers, record, readonly=readonly), []
        if not lowers:
            super()._mount(folder, idmap, record, readonly=readonly)
            return
        records.change_volume(folder, record, mounted=idmap)
        shifted = not record.owners.privileged
        self._mount_layers(layers, lowers, idmap, readonly=readonly, shifted=shifted)

    def _mount_layers(
        self,
        layers: OverlayFolder,
        lowers: Sequence[Path],
        idmap: IdMap,
        *,
        readonly: bool,
        shifted: bool = False,
    ) -> None:
        layers.detach()
        layers.make_mount_points()
        if readonly:
            overlays.mount_readonly(layers, lowers, idmap, self._options, shifted=shifted)
        else:
            forget_complete_links(layers)
            overlays.mount_overlay(layers, lowers, idmap, self._options, shifted=shifted)

    def _unmount(self, folder: Path) -> None:
        super()._unmount(folder)
        OverlayFolder(folder).detach()  # left by a mount that was interrupted

    def _flatten(
        self, layers: OverlayFolder, lowers: Sequence[Path], record: VolumeRecord, *, readonly: bool
    ) -> VolumeRecord:
        """Turn layers into a tree of the volume's own; started again if it was interrupted."""
        whole = layers.path / "rootfs.whole"
        remove_tree(whole)
        self._mount_layers(layers, lowers, _PRIVILEGED, readonly=readonly)
        try:
            copy_tree(layers.rootfs, whole)
        except BaseException:
            remove_tree(whole)
            raise
        finally:
            mounts.unmount(layers.rootfs)
        remove_tree(layers.rootfs)
        whole.rename(layers.rootfs)
        used = layers_of(record)
        record = records.change_volume(
            layers.path, record, image=None, image_folder="", top="", layers=(), merged=()
        )
        for rest in (layers.attached_layer, layers.lower):
            remove_tree(rest)
        self._layers.release(used)
        return record

    # Freezing

    def _can_freeze(self, record: VolumeRecord) -> bool:
        """Return whether a volume's upper layer keeps its meaning as a lower one."""
        if self._options.get("metacopy") == "on":
            return False  # files without content of their own cannot be merged
        return not self._is_packed(record) or overlays.has_uuid(self.folder)

    def _with_frozen(
        self, source: Volume, mounted: IdMap | None, claim: Claim, stopper: Stopper
    ) -> VolumeRecord:
        """Freeze or copy the upper layer of a volume; return the record of one that has what is frozen now.

        It has neither lower layers nor an image if the volume remains a tree of its own.
        """
        folder = self.volume_folder(source)
        record = records.load_volume(folder)
        if source.snapshot is not None:
            return record
        if records.lower_folder(record) is None and not record.layers:
            return record if mounted is not None else self._tree_as_layer(folder, record, claim)
        record = self._shortened(folder, record, claim, stopper)
        below = record.merged or record.layers
        layers = self._settled(folder, record)
        if not any(layers.upper.iterdir()) and looks_alike(layers.upper, self._lowers(record)[0]):
            return replace(record, layers=below)
        self._complete_links(layers, record, mounted)
        if mounted is None:
            return self._freeze(folder, record, claim)
        name = claim.new()
        copy_tree(layers.upper, self._layers.tree(name), stopper)
        return replace(record, layers=(name, *below))

    def _lay_over_frozen(self, target: Volume, new: Path, record: VolumeRecord) -> VolumeRecord:
        """Lay out a copy of a volume above the lower layers of a record."""
        layers = OverlayFolder(new)
        if target.snapshot is not None:
            layers.make_mount_points()
        else:
            layers.make()
            look_alike(self._lowers(record)[0], layers.upper)
        return replace(record, top="", merged=(), mounted=None)

    def _settled(self, folder: Path, record: VolumeRecord) -> OverlayFolder:
        """Return the layers of a volume; completes moves of its trees that were interrupted."""
        if record.layers and records.lower_folder(record) is None:
            oldest = self._layers.tree(record.layers[-1])
            if not oldest.exists():
                (folder / "rootfs").rename(oldest)
        if not record.top:
            return OverlayFolder(folder)
        layers = OverlayFolder(folder, self._layers.folder(record.top))
        if not layers.layer.exists():
            layers.detach()
            layers.attached_layer.rename(layers.layer)
        return layers

    def _shortened(self, folder: Path, record: VolumeRecord, claim: Claim, stopper: Stopper) -> VolumeRecord:
        """Merge frozen layers, if there is no room for another one and it was not done ahead."""
        chain = record.merged or record.layers
        if len(chain) < MAX_FROZEN:
            return record
        has_image = records.lower_folder(record) is not None
        merged = merge_newest(self._layers, chain, MAX_FROZEN - 1, claim, stopper, has_image=has_image)
        return self._store(folder, record, replace(record, merged=merged), claim)

    def _complete_links(self, layers: OverlayFolder, record: VolumeRecord, mounted: IdMap | None) -> None:
        if not has_incomplete_links(layers):
            return
        if mounted is None:
            self._mount_layers(layers, self._lowers(record), _PRIVILEGED, readonly=False)
        try:
            complete_links(layers, mounted or _PRIVILEGED)
        finally:
            if mounted is None:
                mounts.unmount(layers.rootfs)

    def _freeze(self, folder: Path, record: VolumeRecord, claim: Claim) -> VolumeRecord:
        """Freeze the upper layer of an unmounted volume, which gets a new one. Returns its new record."""
        if not record.top:
            record = self._store(folder, record, replace(record, top=claim.name()), claim)
            faults.point("layer is named")
        old = self._settled(folder, record)
        faults.point("layer is moved")
        new = OverlayFolder(folder, self._layers.folder(claim.new()))
        new.make()
        look_alike(old.upper, new.upper)
        frozen = (record.top, *(record.merged or record.layers))
        changed = replace(record, top=new.layer.name, layers=frozen, merged=())
        changed = self._store(folder, record, changed, claim)
        faults.point("layer is frozen")
        self._layers.seal(record.top)
        return changed

    def _tree_as_layer(self, folder: Path, record: VolumeRecord, claim: Claim) -> VolumeRecord:
        """Turn an unmounted tree of the volume's own into a frozen layer, if the kernel can map layers."""
        rootfs = folder / "rootfs"
        if not self._maps_overlays or not mounts.can_idmap(rootfs):
            return record
        record = shift_volume(folder, record, IdMap())
        tree, top = claim.new(), claim.new()
        new = OverlayFolder(folder, self._layers.folder(top))
        new.make()
        look_alike(rootfs, new.upper)
        record = self._store(folder, record, replace(record, top=top, layers=(tree,), mounted=None), claim)
        faults.point("tree is named")
        self._settled(folder, record).make_mount_points()
        return record

    def _store(self, folder: Path, old: VolumeRecord, new: VolumeRecord, claim: Claim) -> VolumeRecord:
        """Replace a record, and with it the use of layers."""
        claim.hold(layers_of(new))
        records.store_volume(folder, new)
        claim.hand_over(layers_of(new))
        self._layers.release(layers_of(old))
        return new
