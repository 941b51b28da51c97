"""AppArmor: one profile per instance, loaded before its start and unloaded after it has stopped.

The profile is an additional layer of defence behind user namespaces, capabilities and seccomp: it denies
access to the host's settings in /proc and /sys even to privileged instances. If the kernel supports policy
stacking, an unprivileged container gets a policy namespace, so that it can load its own profiles.
"""

from __future__ import annotations

import contextlib
import re
import string
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from utsuwa.core.errors import InvalidConfig, ProcessFailed
from utsuwa.core.threads import in_thread
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.processes.run import run

PARSER = "apparmor_parser"
_NAMESPACES = Path("sys/kernel/security/apparmor/policy/namespaces")
_FEATURES = Path("etc/apparmor.d/abi/3.0")
"""The features of kernels that profiles are written for."""
_ABI = "<abi/3.0>"
_NETWORK = ("network", "network_v8")
_NETWORK_RULE = re.compile(r"\b(?:network|unix)\b")


class Mode(Enum):
    """How the daemon uses AppArmor on this host."""

    OFF = "off"
    """The kernel does not support it, or it is not enabled."""
    INHERIT = "inherit"
    """It is enabled, but this daemon may not load policy (it runs in a container itself)."""
    OWN = "own"
    """Every instance gets its own profile."""


@dataclass(frozen=True)
class Support:
    mode: Mode
    stacking: bool = False
    """Whether containers can have policy namespaces."""


def probe(root: Path = Path("/")) -> Support:
    """Detect the kernel's support; blocking, but only reads a few small files of /sys."""
    if not _says(root / "sys/module/apparmor/parameters/enabled", "Y"):
        return Support(Mode.OFF)
    features = root / "sys/kernel/security/apparmor/features"
    if not features.is_dir() or not _unconfined(root):
        return Support(Mode.INHERIT)
    return Support(
        Mode.OWN, stacking=_says(features / "domain/stack", "yes") and (root / _NAMESPACES).is_dir()
    )


def available() -> bool:
    """Return whether instances get their own profiles on this host."""
    return probe().mode is Mode.OWN


def _says(path: Path, expected: str) -> bool:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() == expected
    except OSError:
        return False


def _unconfined(root: Path) -> bool:
    current = root / "proc/self/attr/apparmor/current"
    return not current.exists() or _says(current, "unconfined")


def profile_name(owner: str, storage_name: str) -> str:
    """Return the profile's name in the kernel; `owner` distinguishes the instances of several daemons."""
    return f"{owner}_{_plain(storage_name)}"


def _plain(name: str) -> str:
    """Return an injective encoding of a name without special characters of profiles."""
    return re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"%{ord(match[0]):x}.", name)


@dataclass(frozen=True)
class ProfileSpec:
    """The parameters of a profile."""

    name: str
    privileged: bool
    nesting: bool
    stacked: bool
    """Whether the container has a policy namespace, which carries the profile's name."""
    raw: str = ""
    """`raw.apparmor`: lines that are added unchanged."""
    abi: str = _ABI
    """The features of the kernel that it uses, as the profile names them."""


def check_raw(text: str) -> None:
    """Raise InvalidConfig if `raw.apparmor` is not limited to rules within its profile."""
    if any(ord(c) < 32 and c not in "\n\t" for c in text):
        raise InvalidConfig("Invalid value of 'raw.apparmor': control characters")
    depth = 0
    for char in re.sub(
        r"(?m)#.*$|\"[^\"\n]*\"|\S*[^\s{},]\{[^{}\s]*\}\S*|\{[^{}\s]*,[^{}\s]*\}\S*", "", text
    ):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            raise InvalidConfig("Invalid value of 'raw.apparmor': a closing brace without an opening one")
    if depth:
        raise InvalidConfig("Invalid value of 'raw.apparmor': an opening brace is not closed")


_BASE = """\
  # allowed for all programs; the deny rules below take precedence
  capability,
  dbus,
  file,
  network,
  unix,
  umount,
  pivot_root,

  # signals and tracing only of the container's own processes; others may signal and trace those
  signal (receive),
  signal peer=@{profile_name},
  ptrace (readby, tracedby),
  ptrace peer=@{profile_name},

  # memory and controls of the host's kernel
  deny @{PROC}/kcore rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/acpi/** wklx,
  deny @{PROC}/bus/** wklx,
  deny @{PROC}/fs/** wklx,
  deny @{PROC}/irq/** wklx,
  deny @{PROC}/scsi/** rwklx,

  # sysctls of the host: all except those of a namespace (net, user, ipc and uts)
  deny @{PROC}/sys/{abi,debug,dev,vm}/** wklx,
  deny @{PROC}/sys/fs/[^m]** wklx,
  deny @{PROC}/sys/fs/mount-max wklx,
  deny @{PROC}/sys/kernel/[^adhmns]** wklx,
  deny @{PROC}/sys/kernel/ac** wklx,
  deny @{PROC}/sys/kernel/dm** wklx,
  deny @{PROC}/sys/kernel/h{ard,ot,ung}** wklx,
  deny @{PROC}/sys/kernel/m{ax,od}** wklx,
  deny @{PROC}/sys/kernel/n{gr,mi,um}** wklx,
  deny @{PROC}/sys/kernel/se{cc,ccomp/}** wklx,
  deny @{PROC}/sys/kernel/s{ch,g-,oft,pin,plit,tack,ys}** wklx,

  # firmware, debugging and the security modules of the host
  deny /sys/firmware/efi/efivars/** rwklx,
  deny /sys/fs/{ext4,btrfs,xfs,f2fs,bcachefs,pstore}/** wklx,
  deny /sys/kernel/debug/** rwklx,
  deny /sys/kernel/tracing/** rwklx,
  deny /sys/kernel/{mm,irq,livepatch,boot_params,iommu_groups}/** wklx,
  deny /sys/kernel/{kexec*,profiling,uevent*,rcu_*} wklx,
  deny /sys/module/** wklx,
  deny /sys/power/** wklx,
"""

_OWN_POLICY = """\

  # the container's own policy namespace
  change_profile -> ":{name}:*",
  change_profile -> ":{name}://*",
  signal peer=":{name}://**",
  ptrace peer=":{name}://**",
  deny /sys/kernel/security/[^a]** wklx,
"""

_NO_POLICY = """\

  deny /sys/kernel/security/** wklx,
"""

_MOUNT_ANYTHING = """\

  # the user namespace limits what can be mounted; systemd and nested containers mount much
  mount,
"""

_MOUNTED_BY_ROOT = (
    *("autofs", "binfmt_misc", "cgroup", "cgroup2", "configfs", "devpts", "fuse", "fusectl", "hugetlbfs"),
    *("mqueue", "nsfs", "overlay", "proc", "ramfs", "rpc_pipefs", "sysfs", "tmpfs"),
)
"""File systems that do not expose the host's disks; `fuse` includes all of `fuse.*`."""
_TYPE_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_.")
_UNIT_ROOTS = ("/run/systemd/unit-root/", "/run/systemd/mount-rootfs/")
"""Where systemd assembles the root of a sandboxed service."""
_OWN_PLACES = ("/proc/", "/sys/", *(f"{root}{name}/" for root in _UNIT_ROOTS for name in ("proc", "sys")))
_MOUNT_SOME = """\

  # root here is the host's root. Deny what it may not mount, instead of allowing the rest: older parsers
  # let rules for a type of mount match more than they should
  mount,
  deny mount fstype=({types}),

  # proc and sysfs elsewhere would expose the same files under paths that no deny rule covers
  deny mount fstype=(proc, sysfs) -> {elsewhere},
  deny mount options=(rw, bind) /{proc,sys}/{,**} -> {outside},
  deny mount options=(rw, rbind) /{,proc/,sys/,proc/**,sys/**} -> {outside},
  deny mount options=(rw, move) /{proc,sys}/{,**} -> **,
  deny /run/systemd/{unit-root,mount-rootfs}/{proc,sys}/** wklx,
  deny @{PROC}/sys/fs/binfmt_misc/** wklx,

  # below a former root these files have other paths, and none if their mount is removed while it is in use
  deny pivot_root,
  deny umount /,
  deny umount /proc/{,**},
  deny umount /sys/{,[^f]**,f[^s]**,fs/[^c]**},
"""


def _branches(words: Sequence[str]) -> dict[str, set[str]]:
    """Return every prefix of the words, with the characters that follow it in any of them."""
    found: dict[str, set[str]] = {}
    for word in words:
        for length, character in enumerate(word):
            found.setdefault(word[:length], set()).add(character)
    return found


def _other_types(words: Sequence[str]) -> str:
    """Return patterns that match every file system name except these and `fuse.*`."""
    patterns = []
    branches = _branches(words)
    for start in dict.fromkeys([*branches, *words]):
        follows = branches.get(start, set()) | ({"."} if start == "fuse" else set())
        patterns.append(f"{start}[{''.join(sorted(_TYPE_CHARACTERS - follows))}]*")
        if start and start not in words:
            patterns.append(start)
    return ", ".join(patterns)


def _other_paths(words: Sequence[str], *, below: bool) -> str:
    """Return a pattern for all paths except these and, with `below`, everything below them."""
    branches = _branches(words)
    patterns = [f"{start}[^{''.join(sorted(follows))}]**" for start, follows in branches.items() if start]
    patterns += [start for start in branches if start]
    if not below:
        patterns += [f"{word}?**" for word in words]
    return "{" + ",".join(patterns) + "}"


def _mount_some() -> str:
    return (
        _MOUNT_SOME.replace("{types}", _other_types(_MOUNTED_BY_ROOT))
        .replace("{elsewhere}", _other_paths(_OWN_PLACES, below=False))
        .replace("{outside}", _other_paths(_UNIT_ROOTS, below=True))
    )


_NESTED = """\

  # nested containers run under this profile if they cannot load their own
  change_profile -> "{name}",
"""


def profile_text(spec: ProfileSpec) -> str:
    """Return the complete profile, for apparmor_parser."""
    parts = [
        # mediate the features of this ABI only, regardless of what newer kernels add
        f"abi {spec.abi},\n",
        "#include <tunables/global>\n",
        f'profile "{spec.name}" flags=(attach_disconnected,mediate_deleted) {{\n',
        _BASE,
        (_OWN_POLICY if spec.stacked else _NO_POLICY).replace("{name}", spec.name),
        _mount_some() if spec.privileged and not spec.nesting else _MOUNT_ANYTHING,
        _NESTED.replace("{name}", spec.name) if spec.nesting and not spec.stacked else "",
    ]
    if spec.raw:
        check_raw(spec.raw)
        parts += ["\n  # raw.apparmor\n", *(f"  {line}\n" for line in spec.raw.splitlines())]
    return "".join([*parts, "}\n"])


def without_network(features: str) -> str:
    """Return a description of the kernel's features, as the parser reads it, without those for sockets.

    Before Linux 6.2, a profile that mediates sockets keeps processes from locking them, whatever it allows,
    and systemd locks one for `PrivateNetwork`, `PrivateIPC` and `DynamicUser`.
    """
    kept, depth, left_out = [], 0, False
    for line in features.splitlines(keepends=True):
        if depth == 0:
            left_out = line.partition(" {")[0] in _NETWORK
        depth += line.count("{") - line.count("}")
        if not left_out:
            kept.append(line)
    return "".join(kept)


class Profiles:
    """The profiles of one daemon: files in `folder`/profiles, compiled ones in `folder`/cache."""

    def __init__(self, folder: Path, owner: str, support: Support, root: Path = Path("/")) -> None:
        self._folder = folder
        self._owner = owner
        self._support = support
        self._namespaces = root / _NAMESPACES
        self._features = root / _FEATURES
        self._writing = threading.Lock()
        """Held while the file that profiles have in common is written."""

    async def load(
        self, storage_name: str, *, privileged: bool, nesting: bool, raw: str = ""
    ) -> list[tuple[str, str]]:
        """Load an instance's profile; return the lines of lxc.conf that apply it to the container.

        Raises InvalidConfig for a bad `raw.apparmor`, ProcessFailed with the parser's reason.
        """
        if self._support.mode is Mode.OFF:
            return []
        if self._support.mode is Mode.INHERIT:
            return [("lxc.apparmor.profile", "unchanged")]
        stacked = self._support.stacking and not privileged
        name = profile_name(self._owner, storage_name)
        abi = await in_thread(self._abi, raw)
        text = profile_text(ProfileSpec(name, privileged, nesting, stacked, raw, abi))
        file = self._file(storage_name)
        await in_thread(_write_changed, file, text)
        if stacked:
            await in_thread((self._namespaces / name).mkdir, exist_ok=True)
        try:
            await self._parse("--replace", "--write-cache", file=file)
        except ProcessFailed as error:
            if not raw or error.code is None:
                raise
            reason = error.stderr.strip().replace(f" in {file}", "") or f"exit status {error.code}"
            raise InvalidConfig(
                f"Invalid value for 'raw.apparmor': {PARSER} refuses the profile with it: {reason}: correct "
                "the rule, or remove it"
            ) from error
        return [("lxc.apparmor.profile", f"{name}//&:{name}:" if stacked else name)]

    async def unload(self, storage_name: str) -> None:
        """Remove a stopped container's profile from the kernel; its file is kept for the next start."""
        if self._support.mode is not Mode.OWN:
            return
        file = self._file(storage_name)
        if not await in_thread(file.exists):
            return
        # the parser fails if the profile is not loaded, which is the desired state anyway
        await self._parse("--remove", file=file, accept=(0, 1, 254))
        with contextlib.suppress(OSError):
            await in_thread((self._namespaces / profile_name(self._owner, storage_name)).rmdir)

    def remove_files(self, storage_name: str) -> None:
        """Delete the files of a profile that was unloaded; does nothing if there are none. Blocking."""
        file = self._file(storage_name)
        file.unlink(missing_ok=True)
        for folder in (self._folder / "cache").glob("*/"):  # not the profiles of all other instances
            (folder / file.name).unlink(missing_ok=True)

    def _abi(self, raw: str) -> str:
        """Return the ABI of a profile with these lines: one without sockets, unless they are about sockets.

        Profiles allow everything else there, so nothing is lost by not mediating it.
        """
        if _NETWORK_RULE.search(raw) or not self._features.exists():
            return _ABI
        file = self._folder / "abi"
        with self._writing:
            _write_changed(file, without_network(self._features.read_text(encoding="utf-8")))
        return f'"{file}"'

    def _file(self, storage_name: str) -> Path:
        return self._folder / "profiles" / profile_name(self._owner, storage_name)

    async def _parse(self, *options: str, file: Path, accept: tuple[int, ...] = (0,)) -> None:
        cache = f"--cache-loc={self._folder / 'cache'}"
        await run([PARSER, *options, cache, str(file)], accept=accept)


def _write_changed(file: Path, text: str) -> None:
    """Write a file of the parser if it differs: unchanged files let it use its cache."""
    with contextlib.suppress(OSError):
        if file.read_text(encoding="utf-8") == text:
            return
    replace_file(file, text)
