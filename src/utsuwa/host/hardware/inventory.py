"""All of the host's hardware, as `/1.0/resources` has it."""

from __future__ import annotations

from pathlib import Path

from utsuwa.host.hardware import disks, ethtool, gpu, network, pci, processors, system, usb
from utsuwa.wire.resources import Resources


def resources(root: Path = Path("/"), ask: network.Ask = ethtool.link) -> Resources:
    """Return the current hardware."""
    return Resources(
        cpu=processors.cpu(root),
        memory=processors.memory(root),
        gpu=gpu.gpu(root),
        network=network.network(root, ask),
        storage=disks.disks(root),
        usb=usb.devices(root),
        pci=pci.devices(root),
        system=system.system(root),
    )
