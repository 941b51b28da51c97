"""What makes launching containers fast: idmapped mounts, overlays, squashfs and its tools."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.daemon.checks.verdicts import Source, Status, Verdict, no_program
from utsuwa.host.system.probes import Facts

_NONE = "none inside a container"


def file_systems(facts: Facts) -> Iterator[Verdict]:
    """Yield verdicts on file systems; none if mounting is not allowed, which is reported separately."""
    can = facts.mounting
    if not can.allowed:
        return
    place = f"the state folder ({can.fstype})"
    yield _fallback(
        "idmapped mounts of the state folder",
        can.folder_idmapped,
        f"{place} can be mapped",
        f"{place} cannot be mapped",
        _cost_of_shifting(facts),
        _remedy(facts, "use a kernel from 5.12 on, and a state folder on ext4, xfs or btrfs"),
    )
    yield _fallback(
        "overlay",
        can.overlay,
        f"{place} can hold layers",
        f"{place} cannot hold the upper layer of an overlay",
        "storage pools need a driver that copies the image for every container",
        "give this container a folder beside its root disk, by a device disk with source=instance:utsuwa and "
        "path=/var/lib/utsuwa; tmpfs needs Linux 6.6"
        if facts.nested
        else "put the state folder (or the pool's source) on ext4, xfs or btrfs; load the module overlay",
    )
    if can.overlay:
        yield _fallback(
            "overlay of idmapped layers",
            can.overlay_idmapped,
            "works",
            f"does not work on the kernel {facts.kernel}",
            _cost_of_shifting(facts),
            _remedy(facts, "use kernel 5.19 or newer"),
        )
    yield _loop(facts)
    if can.squashfs:
        yield _fallback(
            "idmapped mounts of squashfs",
            can.squashfs_idmapped,
            "works",
            f"the kernel {facts.kernel} cannot map ids on squashfs",
            "each image is unpacked once before its first launch: some seconds, and some hundred MB",
            _remedy(facts, "none is needed; newer kernels (such as Debian 13's) do without"),
        )


def _cost_of_shifting(facts: Facts) -> str:
    if facts.mounting.overlay:
        return (
            "each image is copied once for each id map, with owners shifted: the first launch takes seconds"
        )
    return "every container gets a whole copy of its image with owners of its own: slow to launch, and large"


def _remedy(facts: Facts, remedy: str) -> str:
    """Return the remedy for missing idmapped mounts."""
    if facts.mounting.idmapping_disabled:
        return "unset UTSUWA_IDMAPPED_MOUNTS_DISABLE"
    return _NONE if facts.nested else remedy


def _fallback(name: str, works: bool, found: str, lacking: str, cost: str, remedy: str) -> Verdict:
    if works:
        return Verdict(name, Status.FOUND, found)
    return Verdict(name, Status.DEGRADED, lacking, cost, remedy)


def _loop(facts: Facts) -> Verdict:
    can = facts.mounting
    if can.loop and can.squashfs:
        return Verdict("squashfs on loop devices", Status.FOUND, "works")
    missing = "squashfs" if can.loop else "loop"
    return Verdict(
        "squashfs on loop devices",
        Status.MISSING,
        "the kernel cannot mount squashfs" if can.loop else "there are no loop devices",
        "each image is unpacked once before its first launch: some seconds, and some hundred MB",
        _NONE if facts.nested else f"load the module {missing}, or use a kernel that has it",
    )


def squashfs_tools(facts: Facts) -> Iterator[Verdict]:
    for name, cost in (
        ("unsquashfs", "images that cannot be mounted directly cannot be used at all"),
        ("mksquashfs", "containers cannot be published as squashfs images"),
    ):
        if version := facts.programs.get(name):
            yield Verdict(name, Status.FOUND, f"version {version}", source=Source.SETUP)
        else:
            yield no_program(name, "squashfs-tools", cost)
