"""Facts of the host that affect the configuration of every container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.system import lxcfs as mounted_lxcfs

_SHARED = ("/sys/fs/fuse/connections", "/sys/kernel/security")
_PROCESSORS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class HostFacts:
    """Facts of the host that affect every container: read before each start, as lxcfs may be restarted."""

    cgroup_namespaces: bool = True
    folders: tuple[Path, ...] = ()
    """Directories of the host that are shared with containers."""
    lxcfs: Path | None = None
    """The mount point of lxcfs, None if it is not running."""
    lxcfs_files: tuple[str, ...] = ()
    """Its files, relative to its mount point, such as `proc/uptime`, and the directory of CPUs."""


def read_host_facts(root: Path = Path("/"), lxcfs: Path | None = None) -> HostFacts:
    """Read the facts. Blocking, possibly for long if lxcfs has died."""
    lxcfs = lxcfs or mounted_lxcfs.folder()
    folders = tuple(Path(name) for name in _SHARED if (root / name.lstrip("/")).is_dir())
    files = _lxcfs_files(lxcfs)
    return HostFacts(
        cgroup_namespaces=(root / "proc/self/ns/cgroup").exists(),
        folders=folders,
        lxcfs=lxcfs if files else None,
        lxcfs_files=files,
    )


def _lxcfs_files(lxcfs: Path) -> tuple[str, ...]:
    try:
        files = sorted(f"proc/{file.name}" for file in (lxcfs / "proc").iterdir())
        if (lxcfs / _PROCESSORS / "uevent").exists():
            files.append(_PROCESSORS)
    except OSError:
        # not running, or the stale mount of one that has died
        return ()
    return tuple(files)
