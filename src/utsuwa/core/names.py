"""Validation of external names before they become part of a path, a query or a config line."""

from __future__ import annotations

import re

from utsuwa.core.errors import InvalidName

DEFAULT_PROJECT = "default"
LONE_MEMBER = "none"
"""Default name of a member: the location that LXD shows on a server that is not clustered."""

_INSTANCE = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}\Z")
_RESERVED_INTERFACES = frozenset({"all", "default"})
"""Names that the kernel uses for settings of all interfaces."""
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")


def check_instance_name(name: str) -> str:
    """Accept 1 to 63 letters, digits and dashes, starting with a letter, not ending with a dash (a DNS
    label)."""
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
    """Check the name of a profile, pool, project or network.

    At most 64 printable characters, no slash, no leading dot or dash.
    """
    if not name:
        raise InvalidName(f"{kind} name cannot be empty")
    if len(name) > 64:
        raise InvalidName(f"{kind} name {name[:70]!r} is longer than 64 characters")
    if name in (".", "..") or name[0] in ".-" or any(c in "/\\*?'\"`" or c.isspace() for c in name):
        raise InvalidName(f"Invalid {kind.lower()} name {name!r}: no slashes, spaces, quotes or leading dots")
    if not name.isprintable():
        raise InvalidName(f"Invalid {kind.lower()} name {name!r}: control characters")
    return name


def check_device_name(name: str) -> str:
    """Check the name of a device: as that of an object, but it may be a path, such as `/dev/fuse`."""
    for part in name.removeprefix("/").split("/"):
        check_object_name("Device", part)
    if len(name) > 64:
        raise InvalidName(f"Device name {name[:70]!r} is longer than 64 characters")
    return name


def check_volume_name(name: str) -> str:
    """Check the name of a custom volume. `~` marks what is temporary on pools, and in their records."""
    check_object_name("Storage volume", name)
    if "~" in name:
        raise InvalidName(f"Invalid storage volume name {name!r}: no tildes")
    if len(name.encode()) > 160:
        raise InvalidName(f"Storage volume name {name!r} is longer than 160 bytes")
    return name


def check_project_name(name: str) -> str:
    """Project names are part of storage names (`<project>_<name>`), so underscores are not allowed either."""
    check_object_name("Project", name)
    if "_" in name:
        raise InvalidName(f"Invalid project name {name!r}: no underscores")
    return name


def check_member_name(name: str) -> str:
    """Check the name of a member: a daemon that shares a database, and the location of its instances."""
    return check_object_name("Member", name)


def check_fingerprint_prefix(text: str) -> str:
    """Accept a full SHA-256 fingerprint or a prefix, in lower-case hexadecimal."""
    if not _FINGERPRINT.match(text):
        raise InvalidName(f"Invalid image fingerprint {text[:70]!r}")
    return text


def check_interface_name(name: str) -> str:
    """Check an interface name: 1 to 15 characters that are valid for the kernel and in config files."""
    if not _INTERFACE.match(name) or name in (".", ".."):
        raise InvalidName(f"Invalid interface name {name[:40]!r}: up to 15 letters, digits, '.', '_' and '-'")
    return name


def check_new_interface_name(name: str) -> str:
    """Check the name of an interface to be created, on the host or in a container."""
    check_interface_name(name)
    if name in _RESERVED_INTERFACES:
        raise InvalidName(f"Invalid interface name {name!r}: it is reserved by the kernel")
    return name


def check_veth_name(name: str) -> str:
    """Check the name of one end of a veth pair that liblxc may create; it rejects names of one character."""
    if len(name) == 1:
        raise InvalidName(f"Invalid interface name {name!r}: use at least 2 characters")
    return check_new_interface_name(name)


def check_inner_interface_name(name: str) -> str:
    """Check the name of the end inside a container, which has its own `lo`."""
    if name == "lo":
        raise InvalidName(f"Invalid interface name {name!r}: every instance has its own")
    return check_veth_name(name)


def storage_name(project: str, name: str) -> str:
    """Return the name on disk and in liblxc: `<project>_<name>`, or `<name>` in the project `default`."""
    return name if project == DEFAULT_PROJECT else f"{project}_{name}"
