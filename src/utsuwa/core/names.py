"""Names from outside are judged here before they become part of a path, a query or a config line."""

from __future__ import annotations

import re

from utsuwa.core.errors import InvalidName

DEFAULT_PROJECT = "default"
LONE_MEMBER = "none"
"""The name of a member that nobody has named: the location that LXD shows where there is no cluster."""

_INSTANCE = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}\Z")
_RESERVED_INTERFACES = frozenset({"all", "default"})
"""The kernel's switches for all interfaces together have these names."""
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")


def check_instance_name(name: str) -> str:
    """1 to 63 letters, digits and dashes, starting with a letter, not ending with a dash (a DNS label)."""
    if not name:
        raise InvalidName("Instance name cannot be empty")
    if len(name) > 63:
        raise InvalidName(f"Instance name {name[:70]!r} is longer than 63 characters")
    if not _INSTANCE.match(name):
        raise InvalidName(
            f"Invalid instance name {name!r}: use letters, digits and dashes, "
            "start with a letter and do not end with a dash"
        )
    return name


def check_object_name(kind: str, name: str) -> str:
    """A profile, pool, project, network or device name: printable, no slash, no leading dot or dash, ≤ 64."""
    if not name:
        raise InvalidName(f"{kind} name cannot be empty")
    if len(name) > 64:
        raise InvalidName(f"{kind} name {name[:70]!r} is longer than 64 characters")
    if name in (".", "..") or name[0] in ".-" or any(c in "/\\*?'\"`" or c.isspace() for c in name):
        raise InvalidName(f"Invalid {kind.lower()} name {name!r}: no slashes, spaces, quotes or leading dots")
    if not name.isprintable():
        raise InvalidName(f"Invalid {kind.lower()} name {name!r}: control characters")
    return name


def check_project_name(name: str) -> str:
    """Project names become part of storage names (`<project>_<name>`): no underscore either."""
    check_object_name("Project", name)
    if "_" in name:
        raise InvalidName(f"Invalid project name {name!r}: no underscores")
    return name


def check_member_name(name: str) -> str:
    """The name of a daemon among those that share a database, which is the location of its instances."""
    return check_object_name("Member", name)


def check_fingerprint_prefix(text: str) -> str:
    """A whole sha256 fingerprint, or its beginning, in lower-case hexadecimal."""
    if not _FINGERPRINT.match(text):
        raise InvalidName(f"Invalid image fingerprint {text[:70]!r}")
    return text


def check_interface_name(name: str) -> str:
    """A network interface: 1 to 15 characters that the kernel and config files take."""
    if not _INTERFACE.match(name) or name in (".", ".."):
        raise InvalidName(f"Invalid interface name {name[:40]!r}: up to 15 letters, digits, '.', '_' and '-'")
    return name


def check_new_interface_name(name: str) -> str:
    """An interface that is going to be made, on the host or in a container."""
    check_interface_name(name)
    if name in _RESERVED_INTERFACES:
        raise InvalidName(f"Invalid interface name {name!r}: the kernel has a meaning of its own for it")
    return name


def check_veth_name(name: str) -> str:
    """One end of a pair that liblxc may make; it refuses names of one character."""
    if len(name) == 1:
        raise InvalidName(f"Invalid interface name {name!r}: use at least 2 characters")
    return check_new_interface_name(name)


def check_inner_interface_name(name: str) -> str:
    """The end of such a pair inside a container, which has a `lo` of its own."""
    if name == "lo":
        raise InvalidName(f"Invalid interface name {name!r}: every instance has one of its own")
    return check_veth_name(name)


def storage_name(project: str, name: str) -> str:
    """The name on disk and in liblxc: `<project>_<name>`, in the project `default` just `<name>`."""
    return name if project == DEFAULT_PROJECT else f"{project}_{name}"
