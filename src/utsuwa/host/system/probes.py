"""Probes of what a host can do for containers. Blocking, and to be run in a separate process.

`gather` moves the calling process into a new mount namespace, so that no probe can leave mounts on the
host. Uses only the standard library, as it runs before anything is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host import syscalls
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.checkpoint import program as criu_program
from utsuwa.host.mounts import mounts, overlays
from utsuwa.host.mounts.loop import mount_squashfs
from utsuwa.host.mounts.userns import in_user_namespace, user_namespace
from utsuwa.host.network import ip_switches
from utsuwa.host.processes.run import PATH, run_blocking
from utsuwa.host.system import kernel_limits, lxcfs

PROGRAMS = ("lxc-start", "nft", "dnsmasq", "unsquashfs", "mksquashfs", "apparmor_parser", "ip")

_VERSION_OPTION = {"unsquashfs": "-version", "mksquashfs": "-version", "ip": "-V"}
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_RANGES = (IdRange(0, 100_000, 65_536),)
_PROC = Path("/proc")
_NAT_RULES = b"""table inet probe {
    chain nat { type nat hook postrouting priority srcnat; ip saddr 192.0.2.0/24 masquerade; }
    chain forward { type filter hook forward priority filter; ct state established accept; }
}
"""
_LINKS: Mapping[str, tuple[str, ...]] = {"veth": ("type", "veth"), "bridge": ("type", "bridge")}
_EMPTY_SQUASHFS = bytes.fromhex(
    "687371730100000000000000000002000000000001001100c002010004000000000000000000000097000000"
    "000000008f00000000000000ffffffffffffffff600000000000000077000000000000007700000000000000"
    "8100000000000000150078da636478cbc8000530061310334369001c6f00f808800000000000000000770000"
    "00000000000480000000008900000000000000"
)
"""An empty directory as squashfs (gzip)."""


@dataclass(frozen=True)
class Mounting:
    """Which mounts are possible. `fstype` is that of the state directory."""

    allowed: bool = True
    """Whether this process may mount at all."""
    fstype: str = ""
    idmapping_disabled: bool = False
    """By `UTSUWA_IDMAPPED_MOUNTS_DISABLE`; all `*_idmapped` are False then."""
    folder_idmapped: bool = True
    loop: bool = True
    squashfs: bool = True
    squashfs_idmapped: bool = True
    overlay: bool = True
    """Whether the state directory can hold the upper layer of an overlay."""
    overlay_idmapped: bool = True


@dataclass(frozen=True)
class Facts:
    """The results of `gather`; the defaults describe a host that lacks only programs."""

    kernel: str = ""
    nested: bool = False
    """Whether this is a user namespace of its own, as in a container."""
    namespaces: frozenset[str] = frozenset()
    user_namespace_error: str = ""
    """Why no user namespace could be created; empty on success."""
    mounting: Mounting = field(default_factory=Mounting)
    controllers: Mapping[str, int] = field(default_factory=dict)
    """Cgroup controllers with the version (1, 2) of their hierarchy."""
    cgroup2: bool = True
    """Whether a cgroup v2 hierarchy is mounted, with controllers or without."""
    cgroups_writable: bool = True
    seccomp_actions: frozenset[str] = frozenset()
    lxcfs: bool = True
    liblxc: str = ""
    """The library's version; empty if it is not installed."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """The version of each installed one of `PROGRAMS` and of CRIU, `?` if unknown."""
    criu_failure: str = ""
    """Why `programs["criu"]` does not work here; empty if it does, is too old, or is missing."""
    links: Mapping[str, bool] = field(default_factory=dict)
    """Which kinds of network interfaces could be created; empty if `ip` is missing."""
    nft_error: str = ""
    """Why NAT rules could not be loaded; empty on success, or if `nft` is missing."""
    ipv6_lack: str = ""
    """Why IPv6 is not available; empty if it is."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """The kernel's values of the limits that are checked."""
    limits_writable: bool = True


def gather(state_folder: Path) -> Facts:
    """Run all probes. If `state_folder` does not exist, its nearest existing parent is used."""
    programs = {name: version for name in PROGRAMS if (version := _program_version(name)) is not None}
    criu, criu_failure = _criu(state_folder / "criu")
    controllers = cgroups.controllers()
    return Facts(
        kernel=os.uname().release,
        nested=in_user_namespace(),
        namespaces=frozenset(entry.name for entry in (_PROC / "self" / "ns").iterdir()),
        user_namespace_error=_user_namespace_error(),
        mounting=_mounting(_existing(state_folder)),
        controllers={name: version for name, (version, _) in controllers.items()},
        cgroup2=any(m.fstype == "cgroup2" for m in _mounts()),
        cgroups_writable=_cgroups_writable(),
        seccomp_actions=frozenset(_text(_PROC / "sys/kernel/seccomp/actions_avail").split()),
        lxcfs=any(m.target == lxcfs.folder() and m.fstype == lxcfs.FILESYSTEM for m in _mounts()),
        liblxc=_liblxc_version(),
        programs=programs | ({"criu": criu} if criu else {}),
        criu_failure=criu_failure,
        links=_links() if "ip" in programs else {},
        nft_error=_nft_error() if "nft" in programs else "",
        ipv6_lack=ip_switches.ipv6_lack(),
        limits=kernel_limits.current(),
        limits_writable=kernel_limits.can_write(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.is_dir())


def _mounts() -> list[mounts.Mount]:
    return mounts.parse_mountinfo((_PROC / "self" / "mountinfo").read_bytes())


def _program_version(name: str) -> str | None:
    if shutil.which(name, path=PATH) is None:
        return None
    try:
        ended = run_blocking([name, _VERSION_OPTION.get(name, "--version")], accept=range(256), timeout=10)
    except ProcessFailed:
        return "?"
    found = _VERSION.search((ended.stdout + ended.stderr).decode(errors="replace"))
    return found[0] if found else "?"


def _criu(folder: Path) -> tuple[str, str]:
    """Return the version of the CRIU that would be used, empty if there is none, and why it does not work.

    `folder` is that of `utsuwad criu install`. It is tried if it is new enough.
    """
    found = {name: asyncio.run(criu_program.version_of(name)) for name in criu_program.candidates(folder)}
    for name, version in found.items():
        if criu_program.is_new_enough(version):
            return version, asyncio.run(criu_program.prove(criu_program.Criu(name, version)))
    return next((version or "?" for version in found.values()), ""), ""


def _liblxc_version() -> str:
    try:
        library = ctypes.CDLL("liblxc.so.1")
    except OSError:
        return ""
    library.lxc_get_version.restype = ctypes.c_char_p
    return str(library.lxc_get_version().decode())


def _user_namespace_error() -> str:
    try:
        with user_namespace(IdMap(_RANGES, _RANGES)):
            return ""
    except (OSError, HostError) as error:
        return str(error)


def _cgroups_writable() -> bool:
    """Return whether the hierarchies are mounted read-write (which the access check takes into account)."""
    found = [m for m in _mounts() if m.fstype in ("cgroup", "cgroup2")]
    return bool(found) and all(os.access(m.target, os.W_OK) for m in found)


# ---- the network, in namespaces of its own


def _links() -> dict[str, bool]:
    return {
        name: not _complaint(["unshare", "--net", "ip", "link", "add", "probe0", *kind])
        for name, kind in _LINKS.items()
    }


def _nft_error() -> str:
    return _complaint(["unshare", "--net", "nft", "--file", "-"], _NAT_RULES)


def _complaint(argv: list[str], stdin: bytes | None = None) -> str:
    """Return the error message of a command; empty if it succeeded."""
    try:
        run_blocking(argv, stdin=stdin, timeout=20)
    except ProcessFailed as error:
        return " ".join(error.message.split())
    return ""


# ---- mounts


def _mounting(folder: Path) -> Mounting:
    disabled = mounts.idmapping_disabled()
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", Path("/"), None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    except OSError:
        return Mounting(False, "", disabled, False, False, False, False, False, False)
    fstype = _fstype(folder)
    try:
        with _scratch(folder) as scratch:
            options = overlays.default_options()
            overlay = overlays.can_overlay(_subfolder(scratch, "plain"), options)
            mapped = overlay and overlays.can_overlay_idmapped(_subfolder(scratch, "mapped"), options)
            loop, squashfs, squashfs_mapped = _squashfs(_subfolder(scratch, "squashfs"))
            idmapped = mounts.can_idmap(scratch)
    except OSError:  # the state directory is not writable: there is nothing to probe
        return Mounting(True, fstype, disabled, False, False, False, False, False, False)
    return Mounting(True, fstype, disabled, idmapped, loop, squashfs, squashfs_mapped, overlay, mapped)


def _fstype(folder: Path) -> str:
    """Return the file system type of a directory: that of the last mount at its deepest ancestor."""
    above = [m for m in _mounts() if m.target == folder or m.target in folder.parents]
    return max(above, key=lambda m: (len(m.target.parts), m.id)).fstype if above else ""


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix=".utsuwa-check-", dir=folder))
    try:
        scratch.chmod(0o711)
        yield scratch
    finally:
        mounts.unmount_below(scratch)
        shutil.rmtree(scratch)


def _subfolder(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir(mode=0o711)
    return made


def _squashfs(folder: Path) -> tuple[bool, bool, bool]:
    """Return whether loop devices work, squashfs can be mounted, and its ids can be mapped."""
    image, target = folder / "image", _subfolder(folder, "mounted")
    image.write_bytes(_EMPTY_SQUASHFS.ljust(4096, b"\0"))
    try:
        mount_squashfs(image, target)
    except HostError:
        return False, False, False
    except OSError:
        return True, False, False
    try:
        return True, True, mounts.can_idmap(target)
    finally:
        mounts.unmount(target)
