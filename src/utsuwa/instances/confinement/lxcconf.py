"""Generation of lxc.conf from an immutable description of a container.

Everything here is pure but `read_host_facts` and the two functions that write files. No value can add
further lines: every line is created by `line`, which rejects control characters.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.scope import Policy
from utsuwa.devices import BindMount
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.lxcentries import mount_entry
from utsuwa.host.network import veth

Pair = tuple[str, str]

_KEY = re.compile(r"lxc\.[A-Za-z0-9_.:/-]{1,200}\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True)
class HostFacts:
    """Facts of the host that affect every container: read before each start, as lxcfs may be restarted."""

    cgroup_namespaces: bool = True
    folders: tuple[Path, ...] = ()
    """Folders of the host that containers share, where the host has them."""
    lxcfs: Path | None = None
    """The mount point of lxcfs, None if it is not running."""
    lxcfs_files: tuple[str, ...] = ()
    """Its files, relative to its mount point: `proc/uptime`; also the folder of processors."""


@dataclass(frozen=True)
class ContainerSpec:
    """The input for a container's lxc.conf."""

    name: str
    """The host name inside."""
    architecture: str
    rootfs: Path
    """The mounted root file system, owners as the container shall see them through its id map."""
    idmap: IdMap
    config: Mapping[str, str]
    """The merged config: environment.*, limits.kernel.*, linux.sysctl.*, security.*, raw.lxc."""
    cgroup: str
    """The daemon's own cgroup, below which the container's is made."""
    console_log: Path
    post_stop: Path
    """The script that `write_post_stop` wrote."""
    target: Path
    """Where that script records why the container ended."""
    host: HostFacts = HostFacts()
    nodes: Sequence[tuple[Path, str]] = ()
    """Device nodes with their places inside."""
    mounts: Sequence[BindMount] = ()
    nics: Sequence[veth.Pair] = ()
    read_only_root: bool = False
    limits: Sequence[Pair] = ()
    """Lines `lxc.cgroup.*` and `lxc.cgroup2.*` that hold what the instance may use."""
    apparmor: Sequence[Pair] = ()
    seccomp: Path | None = None


def build(spec: ContainerSpec) -> str:
    """Return the text of lxc.conf. Raises InvalidConfig for invalid values."""
    parts = (
        _basics(spec),
        _identity(spec),
        _cgroups(spec),
        _mounts(spec),
        _confinement(spec),
        spec.limits,
        _limits(spec.config),
        _environment(spec.config),
        _device_mounts(spec),
        _network(spec.nics),
        _hooks(spec),
    )
    text = "".join(line(key, value) for part in parts for key, value in part)
    return text + _raw(spec.config.get("raw.lxc", ""))


def line(key: str, value: str) -> str:
    """Return one line of lxc.conf. Raises InvalidConfig if the value could be parsed as anything else."""
    _check_pair(key, value)
    if value != value.strip() or (value[:1] in ("'", '"') and value[-1:] == value[0]):
        # liblxc strips white space and one pair of quotes
        value = f'"{value}"'
    return f"{key} = {value}\n"


def _check_pair(key: str, value: str) -> None:
    if not _KEY.match(key):
        raise InvalidConfig(f"{key[:60]!r} is not a key of a container's configuration")
    if _CONTROL.search(value):
        raise InvalidConfig(f"Invalid value {value[:60]!r} for {key!r}: line breaks or control characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidConfig(f"Invalid value {value[:60]!r} for {key!r}: not valid Unicode") from None


_PERSONALITIES = {
    "x86_64": "linux64",
    "i686": "linux32",
    "aarch64": "linux64",
    "armv8l": "linux32",
    "armv7l": "linux32",
    "armv6l": "linux32",
    "ppc64": "linux64",
    "ppc64le": "linux64",
    "ppc": "linux32",
    "s390x": "linux64",
    "mips": "linux32",
    "mips64": "linux64",
    "riscv32": "linux32",
    "riscv64": "linux64",
    "loongarch64": "linux64",
}


def _basics(spec: ContainerSpec) -> Iterator[Pair]:
    yield "lxc.uts.name", spec.name
    if spec.architecture in _PERSONALITIES:
        yield "lxc.arch", _PERSONALITIES[spec.architecture]
    yield "lxc.rootfs.path", f"dir:{spec.rootfs}"
    yield "lxc.rootfs.managed", "0"
    yield "lxc.autodev", "1"
    yield "lxc.tty.max", "0"
    yield "lxc.pty.max", "1024"
    yield "lxc.console.buffer.size", "auto"
    yield "lxc.console.size", "auto"
    yield "lxc.console.logfile", str(spec.console_log)


def _identity(spec: ContainerSpec) -> Iterator[Pair]:
    for kind, ranges in (("u", spec.idmap.uids), ("g", spec.idmap.gids)):
        for r in ranges:
            yield "lxc.idmap", _idmap_value(kind, r)


def _idmap_value(kind: str, r: IdRange) -> str:
    return f"{kind} {r.container} {r.host} {r.count}"


def _cgroups(spec: ContainerSpec) -> Iterator[Pair]:
    """Below the daemon's cgroup liblxc makes `lxc.payload.<name>`, `lxc.monitor.<name>` and `lxc.pivot`.

    Names of our own (`lxc.cgroup.dir.container` and its like) would make a start fail where a killed
    monitor left its cgroup; with these liblxc takes the next free number.
    """
    yield "lxc.cgroup.dir", spec.cgroup
    if spec.idmap.privileged:
        for version in ("cgroup", "cgroup2"):
            yield f"lxc.{version}.devices.deny", "a"
            for rule in _DEVICE_RULES:
                yield f"lxc.{version}.devices.allow", rule


_DEVICE_RULES = (
    "c *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 10:200 rwm",
    "c 10:229 rwm",
    "c 136:* rwm",
)
"""For privileged containers: null, zero, full, (u)random, terminals, tun and fuse; other nodes may be made.

No nodes of block devices: a mount of one whose file system the host has mounted already never opens the
device, so that no other rule here would stop it.
"""


def _mounts(spec: ContainerSpec) -> Iterator[Pair]:
    proc, sys = ("proc:mixed", "sys:mixed") if spec.idmap.privileged else ("proc:rw", "sys:rw")
    cgroup = "cgroup:rw:force" if spec.host.cgroup_namespaces else "cgroup:mixed"
    yield "lxc.mount.auto", f"{proc} {sys} {cgroup}"
    if spec.idmap.privileged:
        yield mount_entry("mqueue", "dev/mqueue", "mqueue", "rw,relatime,create=dir,optional")
    for path in spec.host.folders:
        yield mount_entry(str(path), str(path).lstrip("/"), "none", "rbind,create=dir,optional")
    for node, place in spec.nodes:
        yield mount_entry(str(node), place, "none", "bind,create=file,optional")
    nesting = parse_bool(spec.config.get("security.nesting", ""))
    if nesting:
        # the kernel lets a nested user namespace mount proc and sysfs only where whole ones are in sight
        yield mount_entry("proc", "dev/.lxc/proc", "proc", "create=dir,optional")
        yield mount_entry("sys", "dev/.lxc/sys", "sysfs", "create=dir,optional")
    if spec.host.lxcfs is not None:
        for name in spec.host.lxcfs_files:
            yield mount_entry(str(spec.host.lxcfs / name), name, "none", "bind,optional")
        if nesting:
            yield mount_entry(str(spec.host.lxcfs), "var/lib/lxcfs", "none", "rbind,optional")


def _confinement(spec: ContainerSpec) -> Iterator[Pair]:
    own_policy = any(key == "lxc.apparmor.profile" and "//&:" in value for key, value in spec.apparmor)
    # whoever has an AppArmor namespace of its own may administer that
    mac = "" if own_policy else " mac_admin mac_override"
    yield "lxc.cap.drop", f"sys_time sys_module sys_rawio{mac}"
    yield from spec.apparmor
    if spec.seccomp is not None:
        yield "lxc.seccomp.profile", str(spec.seccomp)


RLIMITS = frozenset(
    (
        *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue"),
        *("nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
    )
)
_RLIMIT_VALUE = re.compile(r"(?:unlimited|[0-9]{1,20})(?::(?:unlimited|[0-9]{1,20}))?\Z")
_SYSCTL = re.compile(r"[A-Za-z0-9_.:/-]{1,180}\Z")


def _limits(config: Mapping[str, str]) -> Iterator[Pair]:
    for key, value in sorted(config.items()):
        if key.startswith("limits.kernel.") and value:
            resource = key.removeprefix("limits.kernel.")
            if resource not in RLIMITS:
                raise InvalidConfig(
                    f"Unknown configuration key {key!r}: {resource!r} is not a resource limit"
                )
            if not _RLIMIT_VALUE.match(value):
                raise InvalidConfig(
                    f"Invalid value {value[:40]!r} for {key!r}: use a number, 'unlimited', or soft:hard"
                )
            yield f"lxc.prlimit.{resource}", value
        elif key.startswith("linux.sysctl.") and value:
            name = key.removeprefix("linux.sysctl.")
            if not _SYSCTL.match(name):
                raise InvalidConfig(f"Invalid configuration key {key[:80]!r}: not the name of a sysctl")
            yield f"lxc.sysctl.{name}", value


def _environment(config: Mapping[str, str]) -> Iterator[Pair]:
    for key, value in sorted(config.items()):
        if key.startswith("environment."):
            name = key.removeprefix("environment.")
            if not name or "=" in name:
                raise InvalidConfig(f"Invalid configuration key {key[:80]!r}: not a variable's name")
            yield "lxc.environment", f"{name}={value}"


def _device_mounts(spec: ContainerSpec) -> Iterator[Pair]:
    if spec.read_only_root:
        yield "lxc.rootfs.options", "ro"
    for mount in spec.mounts:
        options = "bind,ro" if mount.read_only else "bind"
        yield mount_entry(str(mount.source), mount.target.strip("/"), "none", options)


def _network(nics: Sequence[veth.Pair]) -> Iterator[Pair]:
    """Without any interface, liblxc would share the host's network, so add an empty one."""
    if not nics:
        yield "lxc.net.0.type", "empty"
    for number, nic in enumerate(nics):
        key = f"lxc.net.{number}"
        yield f"{key}.type", "veth"
        yield f"{key}.flags", "up"
        yield f"{key}.name", nic.name
        yield f"{key}.hwaddr", nic.mac
        yield f"{key}.veth.pair", nic.host_name
        if nic.bridge:
            yield f"{key}.link", nic.bridge
        if nic.mtu is not None:
            yield f"{key}.mtu", str(nic.mtu)


def _hooks(spec: ContainerSpec) -> Iterator[Pair]:
    yield "lxc.hook.version", "1"
    command = ["/bin/sh", str(spec.post_stop), str(spec.target)]
    yield "lxc.hook.post-stop", shlex.join(command)


POST_STOP = """\
#!/bin/sh
# Run by liblxc when a container has ended: $LXC_TARGET is "stop" or "reboot".
# It is recorded in the file that $1 names. A failure on reboot keeps liblxc from
# starting the container again by itself: the daemon does that, with current settings.
umask 077
printf '%s\\n' "$LXC_TARGET" >"$1"
[ "$LXC_TARGET" != reboot ]
"""


def write_post_stop(path: Path) -> None:
    """Write the script that every container's configuration names."""
    replace_file(path, POST_STOP, 0o700)


def write(path: Path, text: str) -> None:
    """Store a container's configuration for its next start."""
    replace_file(path, text, 0o600)


# ---- raw.lxc


_NEVER = (
    "lxc.cgroup.dir",
    "lxc.cgroup.relative",
    "lxc.ephemeral",
    "lxc.hook.version",
    "lxc.log.",
    "lxc.logfile",
    "lxc.loglevel",
    "lxc.prlimit.",
    "lxc.rootfs.managed",
    "lxc.rootfs.path",
    "lxc.uts.name",
)
"""What the daemon relies on, or has a key of its own for."""
_UNPRIVILEGED_NEVER = ("lxc.idmap", "lxc.id_map", "lxc.include")
_RESTRICTED_MAY = ("lxc.environment", "lxc.init.cwd", "lxc.signal.", "lxc.start.", "lxc.sysctl.")


def check_raw_lxc(text: str, policy: Policy) -> None:
    """Refuse lines of `raw.lxc` that the policy does not allow; liblxc's parser judges the rest.

    Restricted callers get a short list of harmless keys: no hooks, id maps, includes, AppArmor lines,
    mounts or devices. Where only unprivileged instances are allowed, nobody gets id maps and includes.
    """
    for key, value in _parse_raw(text):
        refused = _NEVER + (_UNPRIVILEGED_NEVER if policy.unprivileged_only else ())
        if key.startswith(refused):
            raise InvalidConfig(f"The key {key!r} cannot be set in 'raw.lxc'")
        if policy.restricted and not key.startswith(_RESTRICTED_MAY):
            raise InvalidConfig(f"The key {key!r} in 'raw.lxc' is not allowed for restricted callers")
        if key.startswith("lxc.hook") and not value:
            raise InvalidConfig(f"'raw.lxc' cannot clear {key!r}: the daemon has a hook of its own")


def _parse_raw(text: str) -> Iterator[Pair]:
    """Keys and values as liblxc reads them: one a line, comments only at a line's beginning."""
    for text_line in text.split("\n"):
        stripped = text_line.strip(" \t")
        if not stripped or stripped.startswith("#"):
            continue
        key, found, value = stripped.partition("=")
        key, value = key.rstrip(" \t"), value.strip(" \t")
        if not found or not _KEY.match(key):
            raise InvalidConfig(f"Invalid line {stripped[:60]!r} in 'raw.lxc': use lxc.KEY = VALUE")
        _check_pair(key, value)
        yield key, value


def _raw(text: str) -> str:
    """`raw.lxc` line by line, without its comments; quotes stay as they are."""
    return "".join(f"{key} = {value}\n" for key, value in _parse_raw(text))


# ---- the host


_SHARED = ("/sys/fs/fuse/connections", "/sys/kernel/security")
_PROCESSORS = "sys/devices/system/cpu"
LXCFS = Path("/var/lib/lxcfs")


def read_host_facts(root: Path = Path("/"), lxcfs: Path = LXCFS) -> HostFacts:
    """Blocking: run it in a thread, for a dead lxcfs can make its caller wait."""
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
        # not running, or its mount point is what a dead one left
        return ()
    return tuple(files)
