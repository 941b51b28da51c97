"""Confinement of containers, and lxcfs."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.daemon.checks.verdicts import Source, Status, Subject, Verdict, no_program
from utsuwa.host.system import lxcfs
from utsuwa.host.system.probes import Facts
from utsuwa.security import apparmor


def evaluate(subject: Subject) -> Iterator[Verdict]:
    yield _seccomp(subject.facts)
    yield _apparmor(subject.facts, subject.apparmor)
    yield _lxcfs(subject.facts)


def _seccomp(facts: Facts) -> Verdict:
    if not facts.seccomp_actions:
        return Verdict(
            "seccomp",
            Status.MISSING,
            "the kernel has no system call filters",
            "containers may use all system calls of the kernel",
            "use a kernel built with CONFIG_SECCOMP_FILTER",
        )
    if "user_notif" not in facts.seccomp_actions:
        return Verdict(
            "seccomp",
            Status.DEGRADED,
            "filters, without notifications",
            "the daemon cannot intercept system calls (security.syscalls.intercept.*)",
            "use kernel 5.0 or newer",
        )
    return Verdict("seccomp", Status.FOUND, "filters and notifications")


def _apparmor(facts: Facts, mode: apparmor.Mode) -> Verdict:
    match mode:
        case apparmor.Mode.OFF:
            return Verdict(
                "AppArmor",
                Status.MISSING,
                "not enabled in this kernel",
                "containers are confined only by namespaces, ids and seccomp; privileged ones are not safe",
                "if the kernel supports it, boot with apparmor=1 security=apparmor",
            )
        case apparmor.Mode.INHERIT:
            return Verdict(
                "AppArmor",
                Status.DEGRADED,
                "enabled, but no policy can be loaded here",
                "containers have the confinement of this process instead of their own",
                "run on the host itself, or enable stacking of profiles on the host",
            )
        case apparmor.Mode.OWN:
            if "apparmor_parser" not in facts.programs:
                return no_program("AppArmor", "apparmor", "no container can run", essential=True)
            return Verdict("AppArmor", Status.FOUND, "every container gets a profile of its own")


def _lxcfs(facts: Facts) -> Verdict:
    if facts.lxcfs:
        return Verdict("lxcfs", Status.FOUND, f"mounted at {lxcfs.folder()}", source=Source.SETUP)
    return Verdict(
        "lxcfs",
        Status.MISSING,
        f"not mounted at {lxcfs.folder()}",
        "free, top and nproc in containers show the host's memory, load and processors",
        "install the package lxcfs and start it (systemctl enable --now lxcfs)",
        Source.SETUP,
    )
