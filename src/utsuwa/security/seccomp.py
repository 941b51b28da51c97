"""Seccomp policies in liblxc's format, version 2: the system calls that are denied to a container.

A policy is a deny list; a denied call fails with ENOSYS, as on a kernel that lacks it, so that programs use
their fallback. `raw.seccomp` replaces the policy, `security.syscalls.allow` turns it into an allow list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.host.files.atomic import replace_file
from utsuwa.security import interception

DENIED: tuple[str, ...] = (
    # loading of another kernel or of kernel code
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "create_module",
    "query_module",
    "get_kernel_syms",
    # files by handle, which bypasses mounts and chroot
    "open_by_handle_at",
    # hardware ports
    "iopl",
    "ioperm",
    # the host's swap and accounting, which are not namespaced
    "swapon",
    "swapoff",
    "acct",
    # obsolete and little-tested system calls
    "uselib",
    "vm86",
    "vm86old",
    "lookup_dcookie",
    "nfsservctl",
    "_sysctl",
)
"""System calls that systemd, package managers and nested containers do not need."""

COMPAT_DENIED: tuple[str, ...] = (
    "_llseek",
    "_newselect",
    "bdflush",
    "chown32",
    "clock_gettime64",
    "clock_settime64",
    "fadvise64_64",
    "fchown32",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftruncate64",
    "futex_time64",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "ipc",
    "lchown32",
    "lstat64",
    "mmap2",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldolduname",
    "oldstat",
    "olduname",
    "readdir",
    "recvmmsg_time64",
    "sendfile64",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "sgetmask",
    "sigaction",
    "signal",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "socketcall",
    "ssetmask",
    "stat64",
    "statfs64",
    "stime",
    "truncate64",
    "ugetrlimit",
    "umount",
    "waitpid",
)
"""System calls that exist only for 32-bit programs on x86_64, which need them for memory, sockets and files.

liblxc applies a rule to every architecture that has a call of that name, regardless of its section: a name
that 64-bit programs use too would be denied to them as well.
"""

DETACHED: tuple[str, ...] = (
    "fsopen errno 38",
    "fspick errno 38",
    "open_tree errno 38 [2,1,SCMP_CMP_MASKED_EQ,1]",  # with OPEN_TREE_CLONE
)
"""Rules against detached mounts, for privileged instances that do not nest.

A mount that is not attached has no path, so no rule of an AppArmor profile protects the files of proc or
sysfs in it, or keeps file systems such as debugfs from being mounted. Programs use `mount` instead.
"""

STATELESS: tuple[str, ...] = ("io_uring_setup", "io_uring_enter", "io_uring_register")
"""System calls whose state cannot be saved, for instances with `migration.stateful`."""

_ENOSYS = 38
_LINE = re.compile(r"(?P<call>[a-z0-9_]{1,64})(?P<action>\s+(?:errno\s+[0-9]{1,4}|kill|trap|allow|log))?")
_ARGUMENT = re.compile(r"\s+\[[0-9A-Za-z_,x]{1,200}\]")
_SECTION = re.compile(r"\[(?:all|x86|x86_64|arm|arm64|ppc64|ppc64le|s390x|riscv64)\]\Z")
_LIMIT = 64 * 1024


def check(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig for contradictory keys, and for lines that are not valid in a policy.

    `config` may be an instance's or a profile's.
    """
    allow = config.get("security.syscalls.allow", "")
    others = sorted(
        key
        for key in config
        if key.startswith(("security.syscalls.deny", "security.syscalls.allow")) and config[key]
    )
    intercepted = [
        interception.PREFIX + name for name in interception.RULES if interception.intercepts(config, name)
    ]
    if allow and len(others) > 1:
        others.remove("security.syscalls.allow")
        raise InvalidConfig(f"'security.syscalls.allow' excludes {others[0]!r}: set one of them only")
    if config.get("raw.seccomp") and (excluded := others + intercepted):
        raise InvalidConfig(f"'raw.seccomp' replaces the policy and excludes {excluded[0]!r}")
    _lines("security.syscalls.allow", allow)
    _lines("security.syscalls.deny", config.get("security.syscalls.deny", ""))
    _check_raw(config.get("raw.seccomp", ""))


def policy(config: Mapping[str, str], machine: str) -> str | None:
    """Return the policy for an instance's expanded config on a `machine` (`x86_64`…); None for no filter."""
    check(config)
    if config.get("raw.seccomp"):
        return config["raw.seccomp"].rstrip("\n") + "\n"
    allowed = _lines("security.syscalls.allow", config.get("security.syscalls.allow", ""))
    if allowed:
        return "\n".join(["2", "allowlist", "[all]", *interception.rules(config, ()), *allowed]) + "\n"
    by_default = parse_bool(config.get("security.syscalls.deny_default", "") or "true")
    compat = parse_bool(config.get("security.syscalls.deny_compat", "")) and machine == "x86_64"
    denied = _lines("security.syscalls.deny", config.get("security.syscalls.deny", ""))
    stateful = parse_bool(config.get("migration.stateful", ""))
    intercepted = [*interception.rules(config, {line.split()[0] for line in denied})]
    if not (by_default or compat or denied or stateful or intercepted):
        return None
    lines = ["2", "denylist"]
    if by_default:
        # a container's root could abort file operations of other programs
        lines += ["reject_force_umount", "[all]", *(f"{call} errno {_ENOSYS}" for call in DENIED)]
    if by_default and _is_set(config, "security.privileged") and not _is_set(config, "security.nesting"):
        lines += DETACHED
    if compat:
        lines += ["[all]", *(f"{call} errno {_ENOSYS}" for call in COMPAT_DENIED)]
    if stateful:
        lines += ["[all]", *(f"{call} errno {_ENOSYS}" for call in STATELESS)]
    if intercepted:
        lines += ["[all]", *intercepted]
    if denied:
        lines += ["[all]", *(_with_action(line) for line in denied)]
    return "\n".join(lines) + "\n"


def _is_set(config: Mapping[str, str], key: str) -> bool:
    return parse_bool(config.get(key, ""))


def _lines(key: str, value: str) -> list[str]:
    """Return the lines of a key's list: system calls, optionally with action and arguments, or sections."""
    if len(value) > _LIMIT:
        raise InvalidConfig(f"The value of {key!r} is too long")
    found = [line.strip() for line in value.splitlines() if line.strip()]
    for line in found:
        if not _SECTION.match(line) and not _is_call(line):
            raise InvalidConfig(f"Invalid line {line[:60]!r} in {key!r}: use one system call per line")
    return found


def _is_call(line: str) -> bool:
    match = _LINE.match(line)
    if not match:
        return False
    at = match.end()
    while at < len(line):
        argument = _ARGUMENT.match(line, at)
        if not argument:
            return False
        at = argument.end()
    return True


def _with_action(line: str) -> str:
    """Add the default errno to a denied call without an action, for which liblxc would kill the process."""
    match = _LINE.fullmatch(line)
    return f"{line} errno {_ENOSYS}" if match and not match["action"] else line


def _check_raw(text: str) -> None:
    if not text:
        return
    if len(text) > _LIMIT or any(ord(c) < 32 and c not in "\n\t" for c in text):
        raise InvalidConfig("Invalid value of 'raw.seccomp': too long, or control characters")
    if text.split("\n", 1)[0].strip() not in ("1", "2"):
        raise InvalidConfig("Invalid value of 'raw.seccomp': the first line must be the format's version, 2")


def notifies(policy: str) -> bool:
    """Return whether a policy lets liblxc's monitor be notified of system calls."""
    return re.search(r"^[a-z0-9_]+ notify\b", policy, re.MULTILINE) is not None


def path(folder: Path, storage_name: str) -> Path:
    """Return the path of an instance's policy below `folder` (`security/seccomp` in the state directory)."""
    return folder / storage_name


def write(folder: Path, storage_name: str, text: str) -> Path:
    """Write a policy for the next start and return its path."""
    target = path(folder, storage_name)
    replace_file(target, text)
    return target


def remove(folder: Path, storage_name: str) -> None:
    """Delete a policy; does nothing if there is none."""
    path(folder, storage_name).unlink(missing_ok=True)
