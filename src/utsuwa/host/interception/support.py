"""Whether system calls can be intercepted on this host, as the daemon needs to know it."""

from __future__ import annotations

import functools

from utsuwa.host import bpf
from utsuwa.host.cgroups import tree
from utsuwa.host.interception.server import MACHINES
from utsuwa.host.mounts.userns import in_user_namespace
from utsuwa.host.system import facts

_ADDS_DESCRIPTORS = 5, 9
"""Version of the kernel that gives descriptors to callers; CAP_BPF is older by one."""


@functools.cache
def obstacle() -> str:
    """Return the reason why they cannot be intercepted; empty if they can. Blocking, briefly, once."""
    found = facts.host_facts()
    if found.architecture not in MACHINES:
        return f"it is not implemented on {found.architecture}"
    if found.kernel_features["seccomp_listener_continue"] != "true":
        return "the kernel cannot notify of system calls: it needs seccomp's action user_notif"
    if found.lxc_features.get("seccomp_proxy_send_notify_fd") != "true":
        return "liblxc was built without notifications of seccomp"
    if in_user_namespace():
        return "this daemon runs in a container: set the key there, on the host"
    return ""


@functools.cache
def bpf_obstacle() -> str:
    """As `obstacle`, of programs that decide on devices."""
    if found := obstacle():
        return found
    if not facts.is_since(release := facts.host_facts().kernel_version, _ADDS_DESCRIPTORS):
        return f"the kernel, {release}, is older than 5.9 and cannot give a program to an instance"
    if tree.unified_mount() is None:
        return "instances have no cgroups of version 2 here: the unified hierarchy is not mounted"
    if lacking := bpf.lacking():
        return f"the kernel does not load programs that decide on devices ({lacking})"
    return ""
