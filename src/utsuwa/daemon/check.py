"""`utsuwad check`: what this host can do, what it lacks, what that costs, and what to do about it.

Judging is pure: `judge` takes facts and gives verdicts. It works without a daemon, and with nothing
but the standard library, so that a host hears of a lack before anything is installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.host import probes
from utsuwa.host.probes import Facts
from utsuwa.security import apparmor, idmap
from utsuwa.security.idmap import HostIds, HostRange

_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")
_CONTROLLERS: Mapping[str, str] = {
    "cpu": "limits.cpu.allowance and limits.cpu.priority do nothing",
    "cpuset": "limits.cpu does nothing",
    "memory": "limits.memory does nothing, and containers see no use of memory of their own",
    "pids": "limits.processes does nothing",
    "io": "limits.disk.priority does nothing",
}
"""Controllers and what their lack costs; `io` is `blkio` in cgroup v1."""
_OLDEST_LIBLXC = (5, 0)
_OLDEST_CRIU = (4, 0)


class Status(StrEnum):
    FOUND = "found"
    DEGRADED = "degraded"
    """There, but less than it could be."""
    MISSING = "missing"


class Source(StrEnum):
    """Who brings a requirement."""

    HOST = "host"
    """The machine: its kernel, and who started it."""
    SETUP = "setup"
    """Packages and settings, which installing Utsuwa adds."""


@dataclass(frozen=True)
class Verdict:
    """One requirement; `cost` and `remedy` are empty where it was found."""

    name: str
    status: Status
    detail: str
    cost: str = ""
    remedy: str = ""
    source: Source = Source.HOST
    essential: bool = False
    """Whether no container runs without it."""

    @property
    def fatal(self) -> bool:
        return self.essential and self.status is Status.MISSING


@dataclass(frozen=True)
class Subject:
    """What is judged: the host's facts, and what other parts of Utsuwa make of the host."""

    facts: Facts
    ids: HostIds = field(default_factory=lambda: HostIds((), ()))
    apparmor: apparmor.Mode = apparmor.Mode.OFF


def run(*, json_format: bool, before_install: bool) -> int:
    """Print the verdicts; gives 1 where containers cannot run at all. Raises HostError for non-root users.

    `before_install` leaves out what the installation brings.
    """
    if os.geteuid() != 0:
        raise HostError("What the host can do is found by trying it, which only root may: run this as root")
    verdicts = judge(look(StatePaths.from_environment()))
    if before_install:
        verdicts = [verdict for verdict in verdicts if verdict.source is Source.HOST]
    sys.stdout.write(as_json(verdicts) if json_format else as_table(verdicts))
    return int(any(verdict.fatal for verdict in verdicts))


def look(paths: StatePaths) -> Subject:
    """Try the host out; moves this process into a mount namespace of its own."""
    ids, mode = idmap.read_host_ids(), apparmor.probe().mode
    return Subject(probes.gather(paths.root), ids, mode)


def judge(subject: Subject) -> list[Verdict]:
    """A verdict on every requirement, the essential ones first."""
    facts = subject.facts
    return [
        *_namespaces(facts),
        _mounting(facts),
        *_cgroups(facts),
        *_liblxc(facts),
        _id_ranges("/etc/subuid", subject.ids.uids),
        _id_ranges("/etc/subgid", subject.ids.gids),
        *_file_systems(facts),
        _seccomp(facts),
        _apparmor(facts, subject.apparmor),
        _lxcfs(facts),
        *_network(facts),
        *_squashfs_tools(facts),
        _criu(facts),
    ]


# ---- what every container needs


def _namespaces(facts: Facts) -> Iterator[Verdict]:
    lacking = [name for name in _NAMESPACES if name not in facts.namespaces]
    yield Verdict(
        "namespaces",
        Status.MISSING if lacking else Status.FOUND,
        f"the kernel has no {', '.join(lacking)} namespaces" if lacking else ", ".join(_NAMESPACES),
        "no container can run" if lacking else "",
        "use a kernel that is built with namespaces, as every distribution's is" if lacking else "",
        essential=True,
    )
    error = facts.user_namespace_error
    yield Verdict(
        "user namespaces",
        Status.MISSING if error else Status.FOUND,
        error or "can be made and mapped",
        "unprivileged containers, which is what all are that nobody made privileged, do not start"
        if error
        else "",
        "raise the sysctl user.max_user_namespaces; inside a container, let its host allow nesting"
        if error
        else "",
        essential=True,
    )


def _mounting(facts: Facts) -> Verdict:
    allowed = facts.mounting.allowed
    return Verdict(
        "mounting",
        Status.FOUND if allowed else Status.MISSING,
        "allowed" if allowed else "this process may not mount anything (it lacks CAP_SYS_ADMIN)",
        "" if allowed else "no container can run",
        "" if allowed else "run it on the host itself, or in a container that may nest others",
        essential=True,
    )


def _cgroups(facts: Facts) -> Iterator[Verdict]:
    versions = set(facts.controllers.values()) | ({2} if facts.cgroup2 else set())
    if not versions or not facts.cgroups_writable:
        yield Verdict(
            "cgroups",
            Status.MISSING,
            "mounted read-only" if versions else "no hierarchy is mounted",
            "no container can run",
            "mount cgroup2 at /sys/fs/cgroup for writing; systemd does that by itself",
            essential=True,
        )
        return
    kind = "v2" if versions == {2} else "v1" if versions == {1} else "v1 and v2 (hybrid)"
    yield Verdict("cgroups", Status.FOUND, kind, essential=True)
    yield _controllers(facts.controllers)


def _controllers(present: Mapping[str, int]) -> Verdict:
    there = [name for name in _CONTROLLERS if name in present or (name == "io" and "blkio" in present)]
    lacking = [name for name in _CONTROLLERS if name not in there]
    if not lacking:
        return Verdict("cgroup controllers", Status.FOUND, ", ".join(there))
    return Verdict(
        "cgroup controllers",
        Status.DEGRADED,
        f"no {', '.join(lacking)}",
        "; ".join(_CONTROLLERS[name] for name in lacking),
        "boot a kernel with these controllers turned on (for memory: cgroup_enable=memory)",
    )


def _liblxc(facts: Facts) -> Iterator[Verdict]:
    if not facts.liblxc:
        yield _no_program("liblxc", "lxc", "no container can run", essential=True)
    elif _numbers(facts.liblxc) < _OLDEST_LIBLXC:
        yield Verdict(
            "liblxc",
            Status.DEGRADED,
            f"version {facts.liblxc}",
            "this version is older than what Utsuwa is tested with, and containers may not start",
            "install version 5.0 or newer",
            Source.SETUP,
            essential=True,
        )
    else:
        yield Verdict("liblxc", Status.FOUND, f"version {facts.liblxc}", source=Source.SETUP, essential=True)
    yield _lxc_start(facts)


def _lxc_start(facts: Facts) -> Verdict:
    version = facts.programs.get("lxc-start")
    if version is None:
        return _no_program("lxc-start", "lxc", "no container can run", essential=True)
    if facts.liblxc and version not in ("?", facts.liblxc):
        return Verdict(
            "lxc-start",
            Status.DEGRADED,
            f"version {version}, and liblxc is {facts.liblxc}",
            "containers are started by one version and entered by another",
            "install lxc and liblxc1 in one version, and remove one in /usr/local",
            Source.SETUP,
            essential=True,
        )
    return Verdict("lxc-start", Status.FOUND, f"version {version}", source=Source.SETUP, essential=True)


def _id_ranges(file: str, ranges: Iterable[HostRange]) -> Verdict:
    largest = max((r.count for r in ranges), default=0)
    if largest >= idmap.USEFUL:
        return Verdict(file, Status.FOUND, f"{largest} ids for root", source=Source.SETUP, essential=True)
    return Verdict(
        file,
        Status.MISSING,
        f"root has no range of at least {idmap.USEFUL} ids" + (f" (only {largest})" if largest else ""),
        "unprivileged containers, which is what all are that nobody made privileged, do not start",
        f"add the line root:1000000:1000000000 to {file}",
        Source.SETUP,
        essential=True,
    )


# ---- what makes containers quick


def _file_systems(facts: Facts) -> Iterator[Verdict]:
    """Nothing to say of them where nothing may be mounted: that is said already."""
    can = facts.mounting
    if not can.allowed:
        return
    place = f"the state folder ({can.fstype})"
    yield _fallback(
        "idmapped mounts of the state folder",
        can.folder_idmapped,
        f"{place} can be mapped",
        f"{place} cannot be mapped",
        "every container gets a whole copy of its image with owners of its own: slow to launch, and large",
        _unless_disabled(facts, "use a kernel from 5.12 on, and a state folder on ext4, xfs or btrfs"),
    )
    yield _fallback(
        "overlay",
        can.overlay,
        f"{place} can hold layers",
        f"{place} cannot hold the upper layer of an overlay",
        "storage pools need the driver dir, which copies the image for every container",
        "put the state folder (or the pool's source) on ext4, xfs or btrfs; load the module overlay",
    )
    if can.overlay:
        yield _fallback(
            "overlay of idmapped layers",
            can.overlay_idmapped,
            "works",
            f"does not work on the kernel {facts.kernel}",
            "every container gets a whole copy of its image: slow to launch, and large",
            _unless_disabled(facts, "use a kernel from 5.19 on"),
        )
    yield _loop(facts)
    if can.squashfs:
        yield _fallback(
            "idmapped mounts of squashfs",
            can.squashfs_idmapped,
            "works",
            f"the kernel {facts.kernel} maps no ids on squashfs",
            "each image is unpacked once before its first launch: some seconds, and some hundred MB",
            _unless_disabled(facts, "none is needed; newer kernels (such as Debian 13's) do without"),
        )


def _unless_disabled(facts: Facts, remedy: str) -> str:
    """The remedy for a lack of idmapped mounts."""
    return "unset UTSUWA_IDMAPPED_MOUNTS_DISABLE" if facts.mounting.idmapping_disabled else remedy


def _fallback(name: str, works: bool, found: str, lacking: str, cost: str, remedy: str) -> Verdict:
    if works:
        return Verdict(name, Status.FOUND, found)
    return Verdict(name, Status.DEGRADED, lacking, cost, remedy)


def _loop(facts: Facts) -> Verdict:
    can = facts.mounting
    if can.loop and can.squashfs:
        return Verdict("squashfs on loop devices", Status.FOUND, "works")
    return Verdict(
        "squashfs on loop devices",
        Status.MISSING,
        "the kernel mounts no squashfs" if can.loop else "there are no loop devices",
        "each image is unpacked once before its first launch: some seconds, and some hundred MB",
        f"load the module {'squashfs' if can.loop else 'loop'}, or use a kernel that has it",
    )


# ---- what guards containers, and shows them their own limits


def _seccomp(facts: Facts) -> Verdict:
    if not facts.seccomp_actions:
        return Verdict(
            "seccomp",
            Status.MISSING,
            "the kernel has no filters of system calls",
            "containers may make every system call that the kernel has",
            "use a kernel that is built with CONFIG_SECCOMP_FILTER",
        )
    if "user_notif" not in facts.seccomp_actions:
        return Verdict(
            "seccomp",
            Status.DEGRADED,
            "filters, without notifications",
            "system calls cannot be answered by the daemon (security.syscalls.intercept.*)",
            "use a kernel from 5.0 on",
        )
    return Verdict("seccomp", Status.FOUND, "filters and notifications")


def _apparmor(facts: Facts, mode: apparmor.Mode) -> Verdict:
    match mode:
        case apparmor.Mode.OFF:
            return Verdict(
                "AppArmor",
                Status.MISSING,
                "not enabled in this kernel",
                "containers are confined by namespaces, ids and seccomp alone; privileged ones are not safe",
                "where the kernel has it, boot with apparmor=1 security=apparmor",
            )
        case apparmor.Mode.INHERIT:
            return Verdict(
                "AppArmor",
                Status.DEGRADED,
                "enabled, but no policy can be loaded here",
                "containers get the confinement of this process, none of their own",
                "run on the host itself, or let the host stack profiles",
            )
        case apparmor.Mode.OWN:
            if "apparmor_parser" not in facts.programs:
                return _no_program("AppArmor", "apparmor", "no container can run", essential=True)
            return Verdict("AppArmor", Status.FOUND, "every container gets a profile of its own")


def _lxcfs(facts: Facts) -> Verdict:
    if facts.lxcfs:
        return Verdict("lxcfs", Status.FOUND, f"mounted at {probes.LXCFS}", source=Source.SETUP)
    return Verdict(
        "lxcfs",
        Status.MISSING,
        f"not mounted at {probes.LXCFS}",
        "free, top and nproc in containers show the host's memory, load and processors",
        "install the package lxcfs and start it (systemctl enable --now lxcfs)",
        Source.SETUP,
    )


# ---- network, images, checkpoints


def _network(facts: Facts) -> Iterator[Verdict]:
    if "ip" not in facts.programs:
        yield _no_program("veth and bridge", "iproute2", "whether the kernel has them cannot be told")
    for kind, works in facts.links.items():
        if works:
            yield Verdict(kind, Status.FOUND, "interfaces can be made")
        else:
            yield Verdict(
                kind,
                Status.MISSING,
                "no interface of this kind can be made",
                "containers get no network" if kind == "veth" else "there are no managed networks",
                f"load the module {kind}, or use a kernel that has it",
            )
    yield _nftables(facts)
    if version := facts.programs.get("dnsmasq"):
        yield Verdict("dnsmasq", Status.FOUND, f"version {version}", source=Source.SETUP)
    else:
        yield _no_program(
            "dnsmasq", "dnsmasq-base", "managed networks give containers neither addresses nor names"
        )


def _nftables(facts: Facts) -> Verdict:
    cost = "containers reach nothing outside of their bridge"
    version = facts.programs.get("nft")
    if version is None:
        return _no_program("nftables", "nftables", cost)
    if facts.nft_error:
        remedy = "load the modules nf_tables and nft_masq, or use a kernel that has them"
        return Verdict("nftables", Status.MISSING, f"no rules for NAT: {facts.nft_error}", cost, remedy)
    return Verdict("nftables", Status.FOUND, f"version {version}", source=Source.SETUP)


def _squashfs_tools(facts: Facts) -> Iterator[Verdict]:
    for name, cost in (
        ("unsquashfs", "images that cannot be mounted as they are cannot be used at all"),
        ("mksquashfs", "containers cannot be published as images of the format squashfs"),
    ):
        if version := facts.programs.get(name):
            yield Verdict(name, Status.FOUND, f"version {version}", source=Source.SETUP)
        else:
            yield _no_program(name, "squashfs-tools", cost)


def _criu(facts: Facts) -> Verdict:
    cost = "containers cannot be stopped with their state, and snapshots hold no memory"
    version = facts.programs.get("criu")
    if version is None:
        return _no_program("CRIU", "criu", cost, "version 4.0 or newer; Debian 12 has none, Debian 13 does")
    if version != "?" and _numbers(version) < _OLDEST_CRIU:
        remedy = "install version 4.0 or newer (Debian 13 has it)"
        return Verdict("CRIU", Status.DEGRADED, f"version {version}", cost, remedy, Source.SETUP)
    return Verdict("CRIU", Status.FOUND, f"version {version}", source=Source.SETUP)


def _no_program(name: str, package: str, cost: str, note: str = "", *, essential: bool = False) -> Verdict:
    remedy = f"install the package {package}" + (f" ({note})" if note else "")
    return Verdict(name, Status.MISSING, "not installed", cost, remedy, Source.SETUP, essential)


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


# ---- showing it


def as_json(verdicts: Iterable[Verdict]) -> str:
    """An object with `usable` (containers can run) and `requirements`."""
    shown = list(verdicts)
    usable = not any(verdict.fatal for verdict in shown)
    return json.dumps({"usable": usable, "requirements": [asdict(v) for v in shown]}, indent=2) + "\n"


def as_table(verdicts: Iterable[Verdict]) -> str:
    """A line for each requirement; cost and remedy below those that are not met; then what it comes to."""
    shown = list(verdicts)
    width = max((len(v.name) for v in shown), default=0)
    lines = []
    for verdict in shown:
        lines.append(f"{verdict.status.value:<8}  {verdict.name:<{width}}  {verdict.detail}")
        if verdict.status is not Status.FOUND:
            lines += [f"{'':<10}cost: {verdict.cost}", f"{'':<10}remedy: {verdict.remedy}"]
    return "\n".join([*lines, "", _summary(shown)]) + "\n"


def _summary(verdicts: Iterable[Verdict]) -> str:
    shown = list(verdicts)
    fatal = [v.name for v in shown if v.fatal]
    if fatal:
        return f"Containers cannot run on this host: {', '.join(fatal)} missing."
    less = sum(v.status is not Status.FOUND for v in shown)
    return f"Containers can run on this host; {less} of {len(shown)} requirements are not met in full."
