"""The config keys of projects: features, limits, restrictions, and defaults for what is in a project."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey, KeyTable, KeyType, Validator, integer_between, one_of
from utsuwa.core.network_values import subnets_of_networks


def _feature(name: str, help: str, *, default: str = "true", in_force: bool = True) -> ConfigKey:
    return ConfigKey(f"features.{name}", "bool", default, help=help, in_force=in_force)


_FEATURES = (
    _feature("images", "Whether the project has its own images and aliases."),
    _feature("networks", "Whether the project has its own networks.", default="false"),
    _feature(
        "networks.zones", "Whether the project has its own network zones.", default="false", in_force=False
    ),
    _feature("profiles", "Whether the project has its own profiles."),
    _feature("storage.buckets", "Whether the project has its own storage buckets.", in_force=False),
    _feature("storage.volumes", "Whether the project has its own custom storage volumes."),
)

NEW_PROJECT = {key.name: key.default for key in _FEATURES if key.in_force and key.default == "true"}
"""The features of a new project, unless specified otherwise."""

_MAX_COUNT = 2**32 - 1


def _count(name: str, help: str) -> ConfigKey:
    return ConfigKey(f"limits.{name}", "integer", help=help, validate=integer_between(0, _MAX_COUNT))


def _sum(name: str, help: str, part: str = ConfigKey.part) -> ConfigKey:
    return ConfigKey(f"limits.{name}", "size", help=help, part=part)


_LIMITS = (
    _count("containers", "Maximum number of containers."),
    _count("cpu", "Maximum sum of the instances' limits.cpu."),
    _sum("disk", "Maximum sum of the sizes of root disks, custom volumes, and a new image."),
    _sum("disk.pool.*", "The same for a single storage pool.", part=r"[^\n\r\0/]+"),
    _count("instances", "Maximum number of instances."),
    _sum("memory", "Maximum sum of the instances' limits.memory."),
    _count("networks", "Maximum number of networks."),
    _count("processes", "Maximum sum of the instances' limits.processes."),
    _count("virtual-machines", "Maximum number of virtual machines."),
)


def _restricted(
    name: str, help: str, default: str = "", validate: Validator | None = None, *, in_force: bool = True
) -> ConfigKey:
    kind: KeyType = "string" if default else "list"
    return ConfigKey(f"restricted.{name}", kind, default, help=help, validate=validate, in_force=in_force)


def _blocked(name: str, help: str, *, in_force: bool = True) -> ConfigKey:
    return _restricted(name, help, "block", one_of("block", "allow"), in_force=in_force)


def _managed(name: str, help: str) -> ConfigKey:
    return _restricted(name, help, "managed", one_of("block", "managed", "allow"))


_RESTRICTED = (
    ConfigKey(
        "restricted", "bool", "false", help="Whether the restrictions of the restricted.* keys are in force."
    ),
    _blocked("backups", "Whether backups can be created.", in_force=False),
    _restricted("cluster.groups", "Cluster groups that can be targeted.", in_force=False),
    _blocked("cluster.target", "Whether cluster members can be targeted.", in_force=False),
    _restricted(
        "containers.interception",
        "Which system calls can be intercepted: none, those that are usually safe, or all.",
        "block",
        one_of("block", "allow", "full"),
    ),
    _blocked("containers.lowlevel", "Whether raw.*, volatile.* and similar options can be set."),
    _blocked("containers.nesting", "Whether security.nesting can be set."),
    _restricted(
        "containers.privilege",
        "Whether containers must be unprivileged, or also isolated (security.idmap.isolated).",
        "unprivileged",
        one_of("unprivileged", "isolated", "allow"),
    ),
    _managed("devices.disk", "Which disks can be used besides the root disk: none, those of pools, or all."),
    _restricted(
        "devices.disk.paths",
        "Paths on the host that disks can be taken from, if all disks can be used; empty for all paths.",
        validate=checks.absolute_paths,
    ),
    _blocked("devices.gpu", "Whether devices of the type gpu can be used."),
    _blocked("devices.infiniband", "Whether devices of the type infiniband can be used."),
    _managed("devices.nic", "Which network devices can be used: none, those on managed networks, or all."),
    *(
        _blocked(f"devices.{kind}", f"Whether devices of the type {kind} can be used.")
        for kind in ("pci", "proxy", "unix-block", "unix-char", "unix-hotplug", "usb")
    ),
    _restricted("idmap.gid", "Host gids that raw.idmap can map.", validate=checks.id_ranges),
    _restricted("idmap.uid", "Host uids that raw.idmap can map.", validate=checks.id_ranges),
    _restricted(
        "images.servers",
        "Hosts of image servers that images can be fetched from; empty for all.",
        validate=checks.hosts,
    ),
    _restricted("networks.access", "Networks that can be used; empty for all."),
    _restricted("networks.integrations", "Network integrations that can be used.", in_force=False),
    _restricted(
        "networks.subnets",
        "Subnets that can be routed to networks, as NETWORK:SUBNET.",
        "block",
        subnets_of_networks,
    ),
    _restricted("networks.uplinks", "Interfaces of the host that can be attached to networks."),
    _restricted("networks.zones", "Network zones that can be used.", "block", in_force=False),
    _blocked("snapshots", "Whether snapshots can be created."),
    _restricted("storage-pools.access", "Storage pools that can be used; empty for all."),
    _blocked("virtual-machines.lowlevel", "Whether raw.qemu and similar options can be set.", in_force=False),
)


def _own(name: str, help: str, type: KeyType = "string", validate: Validator | None = None) -> ConfigKey:
    return ConfigKey(name, type, help=help, validate=validate)


def _later(name: str, help: str, type: KeyType = "string", validate: Validator | None = None) -> ConfigKey:
    return ConfigKey(name, type, help=help, validate=validate, in_force=False)


_SPECIFIC = (
    _later("backups.compression_algorithm", "Compressor of backups.", validate=checks.compression),
    _own("images.auto_update_cached", "Whether new cached images are kept up to date.", "bool"),
    _own("images.auto_update_interval", "Hours between updates of images.", "integer", checks.at_least(0)),
    ConfigKey(
        "images.compression_algorithm",
        help="Compression of published images; empty for that of the server.",
        validate=checks.compression,
    ),
    _own(
        "images.default_architecture",
        "Architecture of images that are preferred, if the host can run it.",
        validate=checks.architecture,
    ),
    _own(
        "images.remote_cache_expiry",
        "Days after which an unused cached image is removed.",
        "integer",
        checks.at_least(0),
    ),
    ConfigKey(
        "network.hwaddr_pattern",
        help="Pattern of the MAC addresses of new interfaces; by default that of the server.",
        validate=checks.hwaddr_pattern,
    ),
)

PROJECT_KEY_GROUPS: Mapping[str, tuple[ConfigKey, ...]] = {
    "features": _FEATURES,
    "limits": _LIMITS,
    "restricted": _RESTRICTED,
    "specific": _SPECIFIC,
}

PROJECT_KEYS = KeyTable("projects", tuple(key for group in PROJECT_KEY_GROUPS.values() for key in group))
