"""Generation of lxc.conf from an immutable description of a container.

Everything here is pure but the two functions that write files. Every line is created by `line`.
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
from utsuwa.devices import BindMount
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.lxcentries import mount_entry
from utsuwa.host.network import veth
from utsuwa.instances.confinement import credentials, nvidia
from utsuwa.instances.confinement.conf_lines import Pair, line
from utsuwa.instances.confinement.host_facts import HostFacts
from utsuwa.instances.confinement.raw_lxc import raw_lines
from utsuwa.instances.running_state import guest
from utsuwa.security.interception import intercepts


@dataclass(frozen=True)
class SeccompPolicy:
    """The files of a policy: its text, and the socket for notifications, if it has any."""

    path: Path
    notifications: Path | None = None
    settings: Path | None = None
    """The file with what the instance may mount, which is passed on with each notification."""


@dataclass(frozen=True)
class ContainerSpec:
    """The input for a container's lxc.conf."""

    name: str
    """The host name inside."""
    architecture: str
    rootfs: Path
    """The mounted root file system, with owners as seen through the id map."""
    idmap: IdMap
    config: Mapping[str, str]
    """The expanded config: environment.*, limits.kernel.*, linux.sysctl.*, security.*, raw.lxc."""
    cgroup: str
    """The daemon's cgroup, below which that of the container is created."""
    console_log: Path
    post_stop: Path
    """The script of `write_post_stop`."""
    target: Path
    """The file in which that script records whether the container was stopped or rebooted."""
    host: HostFacts = HostFacts()
    nodes: Sequence[tuple[Path, str]] = ()
    """Device nodes on the host with their paths inside."""
    mounts: Sequence[BindMount] = ()
    device_rules: Sequence[str] = ()
    """Further devices that it may use if it has such rules, as `c 10:200 rwm`."""
    nics: Sequence[veth.Pair] = ()
    read_only_root: bool = False
    limits: Sequence[Pair] = ()
    """`lxc.cgroup.*` and `lxc.cgroup2.*` with the resource limits."""
    apparmor: Sequence[Pair] = ()
    seccomp: SeccompPolicy | None = None


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
    return text + raw_lines(spec.config.get("raw.lxc", ""))


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
    """Let liblxc create `lxc.payload.<name>`, `lxc.monitor.<name>` and `lxc.pivot` below the daemon's cgroup.

    With explicit names (`lxc.cgroup.dir.container`), a start would fail if a killed monitor has left its
    cgroup; with these, liblxc appends a free number.
    """
    yield "lxc.cgroup.dir", spec.cgroup
    if has_device_rules(spec.idmap, spec.config):
        for version in ("cgroup", "cgroup2"):
            yield f"lxc.{version}.devices.deny", "a"
            for rule in (*DEVICE_RULES, *spec.device_rules):
                yield f"lxc.{version}.devices.allow", rule


def has_device_rules(idmap: IdMap, config: Mapping[str, str]) -> bool:
    """Return whether a container's cgroup restricts the devices that it may use.

    Otherwise it can have no device nodes but those that are given to it.
    """
    return idmap.privileged or intercepts(config, "mknod") or intercepts(config, "mount")


DEVICE_RULES = (
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
"""For these containers: null, zero, full, (u)random, terminals, tun, fuse, and creation of other nodes.

Creating nodes of block devices is not allowed: mounting one whose file system is already mounted by the host
does not open the device, so no other rule would prevent it.
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
        # The kernel lets a nested user namespace mount proc and sysfs only if complete ones are visible.
        yield mount_entry("proc", "dev/.lxc/proc", "proc", "create=dir,optional")
        yield mount_entry("sys", "dev/.lxc/sys", "sysfs", "create=dir,optional")
    if spec.host.lxcfs is not None:
        for name in spec.host.lxcfs_files:
            yield mount_entry(str(spec.host.lxcfs / name), name, "none", "bind,optional")
        if nesting:
            yield mount_entry(str(spec.host.lxcfs), "var/lib/lxcfs", "none", "rbind,optional")


def _confinement(spec: ContainerSpec) -> Iterator[Pair]:
    own_policy = any(key == "lxc.apparmor.profile" and "//&:" in value for key, value in spec.apparmor)
    # The kernel ignores these capabilities in the user namespace of a container. They are dropped so that its
    # services do not try to use them; but `docker run --privileged` of Docker 20.10 passes on all of them.
    if spec.idmap.privileged or not parse_bool(spec.config.get("security.nesting", "")):
        # A container with its own AppArmor namespace may administer it.
        mac = "" if own_policy else " mac_admin mac_override"
        yield "lxc.cap.drop", f"sys_time sys_module sys_rawio{mac}"
    yield from spec.apparmor
    if spec.seccomp is not None:
        yield "lxc.seccomp.profile", str(spec.seccomp.path)
        if spec.seccomp.notifications is not None:
            yield "lxc.seccomp.notify.proxy", f"unix:{spec.seccomp.notifications}"
        if spec.seccomp.settings is not None:
            yield "lxc.seccomp.notify.cookie", str(spec.seccomp.settings)


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
        elif key == "limits.memory.oom_priority" and value:
            yield "lxc.proc.oom_score_adj", value


def _environment(config: Mapping[str, str]) -> Iterator[Pair]:
    yield from nvidia.environment(config)
    if guest.is_prepared(config):
        for name, value in guest.ENVIRONMENT.items():
            if f"environment.{name}" not in config:
                yield "lxc.environment", f"{name}={value}"
    if credentials.given(config) and f"environment.{credentials.VARIABLE}" not in config:
        yield "lxc.environment", f"{credentials.VARIABLE}={credentials.FOLDER}"
    for key, value in sorted(config.items()):
        if key.startswith("environment."):
            name = key.removeprefix("environment.")
            if not name or "=" in name:
                raise InvalidConfig(f"Invalid configuration key {key[:80]!r}: not a variable's name")
            yield "lxc.environment", f"{name}={value}"


def _device_mounts(spec: ContainerSpec) -> Iterator[Pair]:
    if spec.read_only_root:
        yield "lxc.rootfs.options", "ro"
    targets = {mount.target for mount in spec.mounts}
    if "/run" not in targets and any(target.startswith("/run/") for target in targets):
        # Otherwise the container's init would mount one over the devices.
        yield mount_entry("tmpfs", "run", "tmpfs", "nosuid,nodev,mode=755,size=20%,create=dir")
    for mount in spec.mounts:
        yield mount_entry(str(mount.source), mount.target.strip("/"), "none", _bind_options(mount))


def _bind_options(mount: BindMount) -> str:
    options = ["rbind" if mount.recursive else "bind"]
    if mount.read_only:
        options.append("ro")
    if mount.propagation:
        options.append(mount.propagation)
    if mount.create:
        options.append(f"create={mount.create}")
    return ",".join(options)


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
    if nvidia.wanted(spec.config):
        yield "lxc.hook.mount", str(nvidia.HOOK)


POST_STOP = """\
#!/bin/sh
# Run by liblxc when a container has ended: $LXC_TARGET is "stop" or "reboot".
# It is recorded in the file that $1 names. A failure on reboot keeps liblxc from
# starting the container again by itself: the daemon does that, with current settings.
# For a container whose running state was restored, liblxc always says "stop"; the kernel
# says 1 for a reboot, in the status of init, whose pid is in $1.init.
umask 077
if [ "$LXC_TARGET" = stop ] && read -r init 2>/dev/null <"$1.init"; then
    read -r status <"/proc/$init/stat" && [ "${status##* }" = 1 ] && LXC_TARGET=reboot
fi 2>/dev/null
printf '%s\\n' "$LXC_TARGET" >"$1"
[ "$LXC_TARGET" != reboot ]
"""


def write_post_stop(path: Path) -> None:
    """Write the script to which every container's configuration refers."""
    replace_file(path, POST_STOP, 0o700)


def write(path: Path, text: str) -> None:
    """Store a container's configuration for its next start."""
    replace_file(path, text, 0o600)
