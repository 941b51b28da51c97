"""Which system calls are intercepted for an instance: its keys, as rules of a seccomp policy.

`host.interception` does what the kernel refuses.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.host import bpf
from utsuwa.host.files.atomic import replace_file
from utsuwa.host.interception import support
from utsuwa.host.interception.mount_options import OPTIONS

PREFIX = "security.syscalls.intercept."
LIVE_KEYS = tuple(f"{PREFIX}mount.{name}" for name in ("allowed", "fuse", "shift"))
"""What can be changed while the instance runs."""
_CHARACTER_DEVICES = "8192,SCMP_CMP_MASKED_EQ,61440"
"""Values of `mode` with the file type S_IFCHR."""
_ONE_BYTE = "[3,1,SCMP_CMP_EQ]"
_NEW_MOUNTS = tuple(
    f"{value},SCMP_CMP_MASKED_EQ,{mask}" for value, mask in ((0, 0x1E3020), (0xC0ED0000, 0xFFFF3020))
)
"""Values of `flags` without MS_REMOUNT, MS_BIND and MS_MOVE, and without the flags of propagation.

MS_MGC_VAL, which some programs set, contains the latter.
"""
_PROGRAMS = (bpf.PROG_LOAD, bpf.PROG_ATTACH, bpf.PROG_DETACH, bpf.LINK_CREATE, bpf.LINK_UPDATE)
RULES: Mapping[str, tuple[str, ...]] = {
    "bpf.devices": tuple(
        f"bpf notify [0,{command},SCMP_CMP_MASKED_EQ,{bpf.COMMANDS}]" for command in _PROGRAMS
    ),
    "mknod": (f"mknod notify [1,{_CHARACTER_DEVICES}]", f"mknodat notify [2,{_CHARACTER_DEVICES}]"),
    "mount": (*(f"mount notify [3,{flags}]" for flags in _NEW_MOUNTS), "fsopen notify"),
    "sched_setscheduler": ("sched_setscheduler notify",),
    "setxattr": tuple(f"{call} notify {_ONE_BYTE}" for call in ("setxattr", "lsetxattr", "fsetxattr")),
    "sysinfo": ("sysinfo notify",),
}
"""The rules by the name of the key, without calls that are never allowed: each notification costs time."""


_REQUIRED = {"bpf.devices": "bpf"}
"""Keys that have an effect only together with another one."""


def intercepts(config: Mapping[str, str], name: str) -> bool:
    """Return whether a key is in effect: a privileged instance may do by itself what it wants."""
    names = {name, _REQUIRED.get(name, name)}
    wanted = all(parse_bool(config.get(PREFIX + key, "")) for key in names)
    return wanted and not parse_bool(config.get("security.privileged", ""))


def check(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig if system calls are to be intercepted, but cannot be.

    `config` is an instance's.
    """
    for name in (*_REQUIRED.values(), *RULES):
        if intercepts(config, name) and (obstacle := _obstacle(name)):
            raise InvalidConfig(f"{PREFIX + name!r} cannot be in effect on this host: {obstacle}")
    unknown = sorted({*_words(config, "mount.allowed")} - {*OPTIONS})
    if unknown:
        raise InvalidConfig(
            f"Invalid value for '{PREFIX}mount.allowed': {unknown[0]!r} is not a file system that the host "
            f"mounts for an instance: use {', '.join(sorted(OPTIONS))}, or {PREFIX}mount.fuse"
        )


def _obstacle(name: str) -> str:
    return support.bpf_obstacle() if name.partition(".")[0] == "bpf" else support.obstacle()


def _words(config: Mapping[str, str], name: str) -> list[str]:
    return [word for part in config.get(PREFIX + name, "").split(",") if (word := part.strip())]


def write_settings(file: Path, config: Mapping[str, str]) -> None:
    """Write what an instance may mount, as `host.interception.mounting` reads it at each call."""
    programs = (word.partition("=") for word in _words(config, "mount.fuse"))
    settings = {
        "allowed": _words(config, "mount.allowed"),
        "fuse": {kind: program for kind, _, program in programs},
        "shift": parse_bool(config.get(PREFIX + "mount.shift", "")),
    }
    replace_file(file, json.dumps(settings))


def rules(config: Mapping[str, str], denied: Collection[str]) -> Iterator[str]:
    """Yield the rules of an instance's policy, without those for `denied` system calls."""
    for name, lines in RULES.items():
        if intercepts(config, name):
            yield from (line for line in lines if line.partition(" ")[0] not in denied)
