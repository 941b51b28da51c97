"""Graphics cards: those with a driver that has DRM devices, and other PCI devices of that class."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from utsuwa.host.hardware import cards, ids, sysfs
from utsuwa.wire.hardware import Drm, Gpu, GpuCard, GpuSriov, Mdev, Nvidia

_DRM = "sys/class/drm"
_NVIDIA = "proc/driver/nvidia"
_CLASS = "0x03"
_CARD = re.compile(r"card([0-9]+)")
_MAJOR = 195
"""The major number of NVIDIA's devices, whose minor numbers its driver reports."""


def gpu(root: Path) -> Gpu:
    folders: dict[Path, None] = {}
    for entry in sysfs.entries(root / _DRM):
        at = sysfs.device(entry) if _CARD.fullmatch(entry.name) else None
        if at is not None:
            folders[at] = None
    folders |= dict.fromkeys(cards.of_class(root, _CLASS))
    names = cards.names(root, folders)
    found = [_card(folder, root, names) for folder in folders if not cards.is_function(folder)]
    total = sum(1 + (len(card.sriov.vfs) if card.sriov is not None else 0) for card in found)
    return Gpu(cards=found, total=total)


def _card(folder: Path, root: Path, names: ids.Names) -> GpuCard:
    card = cards.card(folder, root, names)
    return GpuCard(
        **msgspec.structs.asdict(card),
        drm=_drm(folder),
        mdev=_mdev(folder),
        nvidia=_nvidia(root, card.pci_address) if card.driver == "nvidia" else None,
        sriov=_sriov(folder, root, names),
    )


def _sriov(folder: Path, root: Path, names: ids.Names) -> GpuSriov | None:
    virtual = cards.functions(folder)
    if virtual is None:
        return None
    current, maximum, vfs = virtual
    return GpuSriov(current_vfs=current, maximum_vfs=maximum, vfs=[_card(vf, root, names) for vf in vfs])


def _drm(folder: Path) -> Drm | None:
    entries = {entry.name: sysfs.text(entry / "dev") for entry in sysfs.entries(folder / "drm")}
    card = next((match for name in entries if (match := _CARD.fullmatch(name))), None)
    if card is None:
        return None
    control, render = (
        next((name for name in entries if name.startswith(prefix)), "") for prefix in ("controlD", "renderD")
    )
    return Drm(
        id=int(card[1]),
        card_name=card[0],
        card_device=entries[card[0]],
        control_name=control,
        control_device=entries.get(control, ""),
        render_name=render,
        render_device=entries.get(render, ""),
    )


def _mdev(folder: Path) -> dict[str, Mdev]:
    return {
        kind.name: Mdev(
            api=sysfs.text(kind / "device_api"),
            available=sysfs.number(kind / "available_instances"),
            name=sysfs.text(kind / "name"),
            description=sysfs.text(kind / "description"),
            devices=[device.name for device in sysfs.entries(kind / "devices")],
        )
        for kind in sysfs.entries(folder / "mdev_supported_types")
    }


def _nvidia(root: Path, address: str) -> Nvidia:
    """Parse `Key:  value` lines of the driver; the version of CUDA is known to its libraries only."""
    lines = _text(root / _NVIDIA / "gpus" / address / "information").splitlines()
    pairs = (line.partition(":") for line in lines)
    found = {key.strip(): value.strip() for key, _, value in pairs}
    minor = found.get("Device Minor", "")
    version = re.search(r"Kernel Module\s+(?:for \S+\s+)?([0-9.]+)", _text(root / _NVIDIA / "version"))
    model = found.get("Model", "")
    return Nvidia(
        nvrm_version=version[1] if version else "",
        brand=model.split()[0] if model else "",
        model=model,
        uuid=found.get("GPU UUID", ""),
        card_name=f"nvidia{minor}" if minor else "",
        card_device=f"{_MAJOR}:{minor}" if minor else "",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
