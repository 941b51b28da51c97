"""Requirements of every container: namespaces, mounts, cgroups, liblxc, ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from utsuwa.daemon.checks.verdicts import Source, Status, Subject, Verdict, no_program, numbers
from utsuwa.host.system.probes import Facts
from utsuwa.security import idmap
from utsuwa.security.idmap import HostRange

_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user")
_CONTROLLERS: Mapping[str, str] = {
    "cpu": "limits.cpu.allowance and limits.cpu.priority have no effect",
    "cpuset": "limits.cpu has no effect",
    "memory": "limits.memory has no effect, and containers cannot see their own memory usage",
    "pids": "limits.processes has no effect",
    "io": "limits.disk.priority has no effect",
}
"""Controllers and the effect of their absence; `io` is `blkio` in cgroup v1."""
_OLDEST_LIBLXC = (5, 0)


def evaluate(subject: Subject) -> Iterator[Verdict]:
    facts = subject.facts
    yield from _namespaces(facts)
    yield _mounting(facts)
    yield from _cgroups(facts)
    yield from _liblxc(facts)
    yield _id_ranges("/etc/subuid", subject.ids.uids)
    yield _id_ranges("/etc/subgid", subject.ids.gids)


def _namespaces(facts: Facts) -> Iterator[Verdict]:
    lacking = [name for name in _NAMESPACES if name not in facts.namespaces]
    yield Verdict(
        "namespaces",
        Status.MISSING if lacking else Status.FOUND,
        f"the kernel has no {', '.join(lacking)} namespaces" if lacking else ", ".join(_NAMESPACES),
        "no container can run" if lacking else "",
        "use a kernel built with namespaces, such as that of any distribution" if lacking else "",
        essential=True,
    )
    error = facts.user_namespace_error
    yield Verdict(
        "user namespaces",
        Status.MISSING if error else Status.FOUND,
        error or "can be created and mapped",
        "unprivileged containers (the default) do not start" if error else "",
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
        "" if allowed else "run it on the host itself, or in a container with nesting enabled",
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
        yield no_program("liblxc", "lxc", "no container can run", essential=True)
    elif numbers(facts.liblxc) < _OLDEST_LIBLXC:
        yield Verdict(
            "liblxc",
            Status.DEGRADED,
            f"version {facts.liblxc}",
            "this version is older than the tested ones, and containers may not start",
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
        return no_program("lxc-start", "lxc", "no container can run", essential=True)
    if facts.liblxc and version not in ("?", facts.liblxc):
        return Verdict(
            "lxc-start",
            Status.DEGRADED,
            f"version {version}, and liblxc is {facts.liblxc}",
            "containers are started with one version and attached to with another",
            "install the same version of lxc and liblxc1, and remove any in /usr/local",
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
        "unprivileged containers (the default) do not start",
        f"add the line {idmap.suggested()} to {file}",
        Source.SETUP,
        essential=True,
    )
