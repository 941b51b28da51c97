"""Keys of the confinement."""

from __future__ import annotations

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.instance_keys.records import for_vms


def _bool_now(name: str, default: str, help: str, *, live: bool = False) -> ConfigKey:
    return ConfigKey(name, "bool", default, live=live, scope="container", help=help)


def _interception(name: str, help: str) -> ConfigKey:
    return _bool_now(f"security.syscalls.intercept.{name}", "false", help)


SECURITY = (
    ConfigKey(
        "security.devlxd", "bool", "true", help="Provide the guest API at /dev/lxd/sock in the instance."
    ),
    _bool_now(
        "security.devlxd.images",
        "false",
        "Let the instance download its project's images through the guest API.",
        live=True,
    ),
    ConfigKey(
        "security.guestapi",
        "bool",
        help="Incus' name of security.devlxd, which it overrides where it is set.",
    ),
    ConfigKey(
        "security.guestapi.images",
        "bool",
        scope="container",
        help="Incus' name of security.devlxd.images, which it overrides where it is set.",
    ),
    ConfigKey(
        "security.idmap.base",
        "integer",
        live=False,
        scope="container",
        help="First host id of an isolated id map.",
        validate=checks.user_id,
    ),
    _bool_now("security.idmap.isolated", "false", "Use host ids that no other isolated instance uses."),
    ConfigKey(
        "security.idmap.size",
        "integer",
        live=False,
        scope="container",
        help="Number of ids of an isolated id map; by default more with security.nesting.",
        validate=checks.idmap_size,
    ),
    _bool_now("security.nesting", "false", "Allow nested containers.", live=True),
    _bool_now("security.privileged", "false", "Run without an id map: root inside is root outside."),
    ConfigKey("security.protection.delete", "bool", "false", help="Prevent the instance from being deleted."),
    ConfigKey(
        "security.protection.shift",
        "bool",
        "false",
        scope="container",
        help="Prevent the owners of the instance's files from being shifted to another id map.",
    ),
    ConfigKey(
        "security.syscalls.allow",
        live=False,
        scope="container",
        help="The only system calls to allow, one per line.",
        validate=checks.syscalls,
    ),
    ConfigKey(
        "security.syscalls.deny",
        live=False,
        scope="container",
        help="Additional system calls to deny, one per line.",
        validate=checks.syscalls,
    ),
    _bool_now("security.syscalls.deny_compat", "false", "Deny system calls of 32-bit programs."),
    _bool_now("security.syscalls.deny_default", "true", "Deny the system calls that no container needs."),
    _interception("bpf", "Handle bpf() for the instance, as far as further keys say."),
    _interception("bpf.devices", "Load BPF programs that decide on devices in cgroups of the instance."),
    _interception("mknod", "Create harmless device nodes for the instance."),
    _interception("mount", "Mount the allowed file systems for the instance."),
    ConfigKey(
        "security.syscalls.intercept.mount.allowed",
        "list",
        scope="container",
        help="File systems on its block devices that the host's kernel mounts for the instance.",
    ),
    ConfigKey(
        "security.syscalls.intercept.mount.fuse",
        "list",
        scope="container",
        help="File systems that a FUSE program in the instance mounts instead, such as ext4=fuse2fs.",
        validate=checks.fuse_programs,
    ),
    _bool_now(
        "security.syscalls.intercept.mount.shift",
        "false",
        "Mount file systems with the instance's id map.",
        live=True,
    ),
    _interception("sched_setscheduler", "Let the instance raise the priority of its processes."),
    _interception("setxattr", "Set the allowed extended attributes for the instance."),
    _interception("sysinfo", "Answer sysinfo() with the instance's limits."),
    *(
        ConfigKey(
            f"security.bpffs.delegate_{name}",
            live=False,
            scope="container",
            help=f"{help} that the instance may use with a token, such as `any`.",
            validate=checks.delegation,
        )
        for name, help in (
            ("attachs", "Attach types of BPF programs"),
            ("cmds", "Commands of bpf()"),
            ("maps", "Types of BPF maps"),
            ("progs", "Types of BPF programs"),
        )
    ),
    ConfigKey(
        "security.bpffs.path",
        default="/sys/fs/bpf",
        live=False,
        scope="container",
        help="Mount point of the BPF file system in the instance.",
        validate=checks.absolute_path,
    ),
    for_vms("security.agent.metrics", "bool", "true", help="Query the guest agent for metrics."),
    for_vms("security.csm", "bool", "false", help="Use firmware for guests without UEFI support."),
    for_vms("security.iommu", "bool", "false", help="Give the guest an IOMMU."),
    for_vms("security.secureboot", "bool", "true", help="Boot only signed images."),
    for_vms("security.sev", "bool", "false", help="Encrypt the guest's memory."),
    for_vms("security.sev.policy.es", "bool", "false", help="Encrypt the guest's registers too."),
    for_vms("security.sev.session.data", help="Session data of the guest's owner, in base64."),
    for_vms("security.sev.session.dh", help="Key of the guest's owner, in base64."),
)
