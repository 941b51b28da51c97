"""The config keys of instances and profiles.

Names are LXD's; what Incus added later stands here under Incus' name. Groups are those of
`GET /1.0/metadata/configuration`. Keys of virtual machines are known, so that a profile that is also
used on other servers can be stored here, and are refused on instances, which are containers.
"""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import (
    ConfigKey,
    KeyTable,
    KeyType,
    Scope,
    Validator,
    integer_between,
    one_of,
)

_priority = integer_between(0, 10)


def _later(
    name: str,
    type: KeyType = "string",
    *,
    default: str = "",
    live: bool = True,
    scope: Scope = "",
    help: str,
    part: str = ConfigKey.part,
    validate: Validator | None = None,
) -> ConfigKey:
    """A key that is checked and stored, and takes effect in a later version."""
    return ConfigKey(name, type, default, live, help, validate, scope=scope, part=part, in_force=False)


def _for_vms(name: str, type: KeyType = "string", default: str = "", help: str = "") -> ConfigKey:
    return _later(name, type, default=default, scope="virtual-machine", help=help)


_BOOT = (
    ConfigKey(
        "boot.autostart",
        "bool",
        live=False,
        help="Start with the daemon, or as soon as the host has what it needs: always, never, or (unset) if "
        "it ran before.",
    ),
    ConfigKey(
        "boot.autostart.delay",
        "integer",
        "0",
        live=False,
        help="Seconds to wait after this instance before the next one starts.",
        validate=checks.at_least(0),
    ),
    ConfigKey(
        "boot.autostart.priority",
        "integer",
        "0",
        live=False,
        help="Higher numbers start earlier.",
    ),
    _later(
        "boot.autorestart",
        "bool",
        default="false",
        live=False,
        help="Start again when the instance ended without being asked to.",
    ),
    _later(
        "boot.host_shutdown_action",
        default="stop",
        help="What happens to the instance when the host shuts down.",
        validate=one_of("stop", "force-stop", "stateful-stop"),
    ),
    ConfigKey(
        "boot.host_shutdown_timeout",
        "integer",
        "30",
        help="Seconds for a clean stop before the instance is killed, when the host shuts down.",
        validate=checks.at_least(0),
    ),
    ConfigKey(
        "boot.stop.priority",
        "integer",
        "0",
        live=False,
        help="Higher numbers stop earlier when the host shuts down.",
    ),
)

_CLOUD_INIT = tuple(
    _later(f"cloud-init.{name}", live=False, help=help)
    for name, help in (
        ("network-config", "Network configuration that cloud-init gets inside."),
        ("user-data", "User data that cloud-init gets inside."),
        ("vendor-data", "Vendor data that cloud-init gets inside."),
    )
)

_MIGRATION = (
    _later(
        "migration.incremental.memory",
        "bool",
        default="false",
        scope="container",
        help="Send memory in rounds while the instance still runs.",
    ),
    _later(
        "migration.incremental.memory.goal",
        "integer",
        default="70",
        scope="container",
        help="Percentage of memory that has to be over before the instance is stopped.",
        validate=integer_between(0, 100),
    ),
    _later(
        "migration.incremental.memory.iterations",
        "integer",
        default="10",
        scope="container",
        help="Rounds of sending memory before the instance is stopped anyway.",
        validate=checks.at_least(0),
    ),
    _later(
        "migration.stateful",
        "bool",
        default="false",
        live=False,
        help="Prepare the instance for stateful stop and snapshots.",
    ),
)

_MISCELLANEOUS = (
    _for_vms("agent.nic_config", "bool", "false", help="Give the interfaces inside their names and MTU."),
    _later(
        "cluster.evacuate",
        default="auto",
        live=False,
        help="What happens to the instance when its server is evacuated.",
        validate=one_of("auto", "migrate", "live-migrate", "stop", "stateful-stop", "force-stop"),
    ),
    ConfigKey(
        "environment.*",
        part=r"[^\n\r\0=]+",
        help="A variable for init and for everything that is run by exec.",
    ),
    _later(
        "linux.kernel_modules",
        "list",
        scope="container",
        help="Kernel modules that the host loads before the instance starts.",
        validate=checks.kernel_modules,
    ),
    ConfigKey(
        "linux.sysctl.*",
        part=r"[A-Za-z0-9_./-]+",
        live=False,
        scope="container",
        help="A sysctl of the instance's namespaces, set at start.",
    ),
    _for_vms("smbios11.*", help="A string for the table that guests find in their firmware."),
    _later(
        "systemd.credential.*",
        part=r"[A-Za-z0-9_.@-]+",
        live=False,
        help="A credential for the systemd inside.",
    ),
    _later(
        "systemd.credential-binary.*",
        part=r"[A-Za-z0-9_.@-]+",
        live=False,
        help="A credential for the systemd inside, in base64.",
    ),
)

_NVIDIA = (
    _later(
        "nvidia.runtime",
        "bool",
        default="false",
        live=False,
        scope="container",
        help="Bring the host's NVIDIA libraries into the instance.",
    ),
    _later(
        "nvidia.driver.capabilities",
        "list",
        default="compute,utility",
        live=False,
        scope="container",
        help="Which parts of the NVIDIA driver the instance gets.",
        validate=checks.list_of(
            "all", "compute", "compat32", "display", "graphics", "ngx", "utility", "video"
        ),
    ),
    _later("nvidia.require.cuda", live=False, scope="container", help="The CUDA version that is needed."),
    _later("nvidia.require.driver", live=False, scope="container", help="The driver version that is needed."),
)

_OCI = (
    _later(
        "oci.cwd",
        live=False,
        scope="container",
        help="Working folder of an application container.",
        validate=checks.absolute_path,
    ),
    _later("oci.entrypoint", live=False, scope="container", help="Command of an application container."),
    _later(
        "oci.gid",
        "integer",
        live=False,
        scope="container",
        help="Group of an application container's command.",
        validate=checks.user_id,
    ),
    _later(
        "oci.uid",
        "integer",
        live=False,
        scope="container",
        help="User of an application container's command.",
        validate=checks.user_id,
    ),
)

_RAW = (
    ConfigKey("raw.apparmor", help="Lines that are added to the instance's AppArmor profile."),
    ConfigKey(
        "raw.idmap",
        live=False,
        scope="container",
        help="Ids of the host that are the same or others inside, as 'both 1000 1000' a line.",
        validate=checks.raw_idmap,
    ),
    ConfigKey(
        "raw.lxc",
        live=False,
        scope="container",
        help="Lines that are added to the configuration of liblxc.",
        validate=checks.raw_lxc,
    ),
    ConfigKey(
        "raw.seccomp",
        live=False,
        scope="container",
        help="A whole seccomp policy in place of the generated one.",
    ),
    _for_vms("raw.qemu", help="Arguments added to the QEMU command."),
    _for_vms("raw.qemu.conf", help="Lines that change the generated QEMU configuration."),
    _for_vms("raw.qemu.qmp.early", help="QMP commands before the set-up."),
    _for_vms("raw.qemu.qmp.pre-start", help="QMP commands after the set-up, before the start."),
    _for_vms("raw.qemu.qmp.post-start", help="QMP commands after the start."),
    _for_vms("raw.qemu.scriptlet", help="A script for all stages of a start."),
)

_LIMITS = (
    ConfigKey("limits.cpu", help="How many CPUs the instance may use, or which.", validate=checks.cpus),
    ConfigKey(
        "limits.cpu.allowance",
        default="100%",
        scope="container",
        help="A share of CPU time when the host is busy, or a fixed time in each period.",
        validate=checks.cpu_allowance,
    ),
    _later("limits.cpu.nodes", help="NUMA nodes that the CPUs are taken from.", validate=checks.numa_nodes),
    ConfigKey(
        "limits.cpu.priority",
        "integer",
        default="10",
        scope="container",
        help="Who gets CPU time first among instances that share CPUs (0 to 10).",
        validate=_priority,
    ),
    ConfigKey(
        "limits.disk.priority",
        "integer",
        default="5",
        help="Weight of the instance's disk requests (0 to 10).",
        validate=_priority,
    ),
    *(
        ConfigKey(
            f"limits.hugepages.{size}",
            "size",
            scope="container",
            help=f"How much memory in huge pages of {size} the instance may use.",
        )
        for size in ("64KB", "1MB", "2MB", "1GB")
    ),
    ConfigKey(
        "limits.memory",
        help="How much memory the instance may use, as a size or a share of the host's.",
        validate=checks.size_or_percent,
    ),
    ConfigKey(
        "limits.memory.enforce",
        default="hard",
        scope="container",
        help="Whether the memory limit always holds (hard) or only when the host runs short (soft).",
        validate=one_of("hard", "soft"),
    ),
    _for_vms("limits.memory.hugepages", "bool", "false", help="Use huge pages for the guest's memory."),
    _for_vms("limits.memory.hotplug", help="How far the guest's memory may grow while it runs."),
    _later(
        "limits.memory.oom_priority",
        "integer",
        default="0",
        help="How willingly the kernel kills this instance when memory is short (-1000 to 1000).",
        validate=integer_between(-1000, 1000),
    ),
    ConfigKey(
        "limits.memory.swap",
        default="true",
        scope="container",
        help="Whether the instance may use swap, or how much of it.",
        validate=checks.swap,
    ),
    ConfigKey(
        "limits.memory.swap.priority",
        "integer",
        default="10",
        scope="container",
        help="How late the instance is swapped out (0 to 10).",
        validate=_priority,
    ),
    _later(
        "limits.network.priority",
        "integer",
        default="0",
        help="Priority of the instance's network traffic (0 to 10).",
        validate=_priority,
    ),
    ConfigKey(
        "limits.processes",
        "integer",
        scope="container",
        help="How many processes the instance may have.",
        validate=checks.at_least(1),
    ),
)

_KERNEL = tuple(
    ConfigKey(
        f"limits.kernel.{name}",
        scope="container",
        help=f"RLIMIT_{name.upper()} of the instance's init: {what}.",
        validate=checks.kernel_limit,
    )
    for name, what in (
        ("as", "bytes of address space"),
        ("core", "bytes of a core dump"),
        ("cpu", "seconds of CPU time"),
        ("data", "bytes of data segment"),
        ("fsize", "bytes of a file that is written"),
        ("locks", "file locks"),
        ("memlock", "bytes that are locked into memory"),
        ("msgqueue", "bytes in POSIX message queues"),
        ("nice", "highest nice value, as 20 minus it"),
        ("nofile", "open files"),
        ("nproc", "processes of the user"),
        ("rss", "bytes of resident memory"),
        ("rtprio", "highest real-time priority"),
        ("rttime", "microseconds of real-time CPU without a pause"),
        ("sigpending", "signals that wait"),
        ("stack", "bytes of stack"),
    )
)


def _bool_now(name: str, default: str, help: str, *, live: bool = False) -> ConfigKey:
    return ConfigKey(name, "bool", default, live=live, scope="container", help=help)


def _interception(name: str, help: str) -> ConfigKey:
    return _later(
        f"security.syscalls.intercept.{name}",
        "bool",
        default="false",
        live=False,
        scope="container",
        help=help,
    )


_SECURITY = (
    _later("security.devlxd", "bool", default="true", live=False, help="Offer /dev/lxd inside."),
    _later(
        "security.devlxd.images",
        "bool",
        default="false",
        live=False,
        scope="container",
        help="Let the instance fetch images of the host through /dev/lxd.",
    ),
    ConfigKey(
        "security.idmap.base",
        "integer",
        live=False,
        scope="container",
        help="First id of the host that an isolated id map uses.",
        validate=checks.user_id,
    ),
    _bool_now("security.idmap.isolated", "false", "Use ids of the host that no other isolated instance has."),
    ConfigKey(
        "security.idmap.size",
        "integer",
        live=False,
        scope="container",
        help="How many ids an isolated id map has.",
        validate=checks.idmap_size,
    ),
    _bool_now("security.nesting", "false", "Allow containers inside.", live=True),
    _bool_now("security.privileged", "false", "Run without an id map: root inside is root outside."),
    ConfigKey("security.protection.delete", "bool", "false", help="Refuse to delete the instance."),
    _later(
        "security.protection.shift",
        "bool",
        default="false",
        scope="container",
        help="Refuse to change the owners of the instance's files.",
    ),
    ConfigKey(
        "security.syscalls.allow",
        live=False,
        scope="container",
        help="The only system calls that are allowed, one a line.",
        validate=checks.syscalls,
    ),
    ConfigKey(
        "security.syscalls.deny",
        live=False,
        scope="container",
        help="System calls that are refused as well, one a line.",
        validate=checks.syscalls,
    ),
    _bool_now("security.syscalls.deny_compat", "false", "Refuse the system calls of 32-bit programs."),
    _bool_now("security.syscalls.deny_default", "true", "Refuse the system calls that no container needs."),
    _interception("bpf", "Handle bpf() for the instance."),
    _interception("bpf.devices", "Let the instance load device programs of cgroup v2."),
    _interception("mknod", "Make harmless device nodes for the instance."),
    _interception("mount", "Mount chosen file systems for the instance."),
    _later(
        "security.syscalls.intercept.mount.allowed",
        "list",
        scope="container",
        help="File systems that are mounted for the instance.",
    ),
    _later(
        "security.syscalls.intercept.mount.fuse",
        "list",
        scope="container",
        help="File systems that a FUSE program mounts instead, as ext4=fuse2fs.",
    ),
    _later(
        "security.syscalls.intercept.mount.shift",
        "bool",
        default="false",
        scope="container",
        help="Mount them through the instance's id map.",
    ),
    _interception("sched_setscheduler", "Let the instance raise priorities of its processes."),
    _interception("setxattr", "Set chosen extended attributes for the instance."),
    _interception("sysinfo", "Answer sysinfo() with the instance's limits."),
    *(
        _later(f"security.bpffs.delegate_{name}", "list", live=False, scope="container", help=help)
        for name, help in (
            ("attachs", "Ways to attach BPF programs that the instance may use."),
            ("cmds", "Commands of bpf() that the instance may use."),
            ("maps", "Kinds of BPF maps that the instance may use."),
            ("progs", "Kinds of BPF programs that the instance may use."),
        )
    ),
    _later(
        "security.bpffs.path",
        default="/sys/fs/bpf",
        live=False,
        scope="container",
        help="Where the BPF file system is mounted inside.",
        validate=checks.absolute_path,
    ),
    _for_vms("security.agent.metrics", "bool", "true", help="Ask the agent inside for metrics."),
    _for_vms("security.csm", "bool", "false", help="Use firmware for systems that know no UEFI."),
    _for_vms("security.iommu", "bool", "false", help="Give the guest an IOMMU."),
    _for_vms("security.secureboot", "bool", "true", help="Boot only what is signed."),
    _for_vms("security.sev", "bool", "false", help="Encrypt the guest's memory."),
    _for_vms("security.sev.policy.es", "bool", "false", help="Encrypt the guest's registers too."),
    _for_vms("security.sev.session.data", help="Session data of the guest's owner, in base64."),
    _for_vms("security.sev.session.dh", help="Key of the guest's owner, in base64."),
)

_SNAPSHOTS = (
    _later(
        "snapshots.schedule",
        live=False,
        help="When snapshots are made: a cron expression, or aliases such as @daily.",
        validate=checks.schedule,
    ),
    _later(
        "snapshots.schedule.stopped",
        "bool",
        default="false",
        live=False,
        help="Make the scheduled snapshots of a stopped instance as well.",
    ),
    _later("snapshots.pattern", default="snap%d", live=False, help="How scheduled snapshots are named."),
    _later(
        "snapshots.expiry",
        live=False,
        help="How long snapshots are kept, as 3d or 1w.",
        validate=checks.expiry,
    ),
    _later(
        "snapshots.expiry.manual",
        live=False,
        help="How long snapshots that were made by hand are kept.",
        validate=checks.expiry,
    ),
)

_IMAGE_STATE = (
    ConfigKey("volatile.apply_template", help="Trigger of the templates that the next start applies."),
    ConfigKey("volatile.base_image", help="Fingerprint of the image that the instance was made from."),
    ConfigKey(
        "volatile.cloud-init.instance-id",
        help="The instance's id for cloud-init; a new one makes it run again.",
        validate=checks.is_uuid,
    ),
    ConfigKey("volatile.container.oci", "bool", "false", help="Whether this is an application container."),
)

_HOST_STATE = (
    ConfigKey("volatile.cluster.group", help="Cluster group that the instance was placed by."),
    ConfigKey("volatile.cpu.nodes", help="NUMA nodes that were chosen."),
    ConfigKey("volatile.evacuate.origin", help="Server that the instance was evacuated from."),
    ConfigKey("volatile.idmap.base", "integer", help="First host id of the instance's id map."),
    ConfigKey("volatile.idmap.current", help="Id map that the instance runs with, as JSON."),
    ConfigKey("volatile.idmap.next", help="Id map of the next start, as JSON."),
    ConfigKey("volatile.last_state.boot_id", help="Boot of the host that the instance last ran in."),
    ConfigKey("volatile.last_state.change", help="Devices that are being changed just now, as JSON."),
    ConfigKey("volatile.last_state.idmap", help="Id map that the files on disk are owned by, as JSON."),
    ConfigKey("volatile.last_state.power", help="Whether the instance ran when the daemon last looked."),
    ConfigKey("volatile.last_state.ready", help="Whether the instance has said that it is ready."),
    ConfigKey("volatile.rebalance.last_move", "integer", help="When the instance was last moved."),
    ConfigKey("volatile.uuid", help="The instance's own id.", validate=checks.is_uuid),
    ConfigKey(
        "volatile.uuid.generation",
        help="Another id when the instance went back in time.",
        validate=checks.is_uuid,
    ),
)

_DEVICE_STATE = tuple(
    ConfigKey(f"volatile.*.{name}", help=help)
    for name, help in (
        ("apply_quota", "Disk quota that the next start sets."),
        ("ceph_rbd", "RBD device on the host."),
        ("host_name", "Interface on the host."),
        ("hwaddr", "MAC address of the interface."),
        ("io.bus", "Bus that the disk is on."),
        ("last_state.created", "Whether the host's interface was made for the instance."),
        ("last_state.hwaddr", "MAC address that the host's interface had."),
        ("last_state.ip_addresses", "IP addresses of the last start."),
        ("last_state.mtu", "MTU that the host's interface had."),
        ("last_state.pci.driver", "Driver that the PCI device had."),
        ("last_state.pci.parent", "PCI device of the host."),
        ("last_state.pci.slot.name", "Slot of the PCI device."),
        ("last_state.usb.bus", "Bus of the USB device."),
        ("last_state.usb.device", "Number of the USB device."),
        ("last_state.vdpa.name", "Name of the vDPA device."),
        ("last_state.vf.hwaddr", "MAC address that the virtual function had."),
        ("last_state.vf.id", "Number of the virtual function."),
        ("last_state.vf.parent", "Interface of the virtual function."),
        ("last_state.vf.spoofcheck", "Spoof check that the virtual function had."),
        ("last_state.vf.trusted", "Trust that the virtual function had."),
        ("last_state.vf.vlan", "VLAN that the virtual function had."),
        ("mig.uuid", "Id of the MIG device."),
        ("name", "Interface inside the instance."),
        ("vgpu.uuid", "Id of the virtual GPU."),
    )
)

_VM_STATE = (
    _for_vms("volatile.apply_nvram", "bool", help="Whether the next start makes the firmware's memory anew."),
    _for_vms("volatile.vm.boot_state", help="Properties that must stay the same while it moves, as JSON."),
    _for_vms("volatile.vm.needs_reset", "bool", help="Whether the next reboot has to be a whole start."),
    _for_vms("volatile.vm.rtc_adjustment", "integer", help="Change of the guest's clock."),
    _for_vms("volatile.vm.rtc_offset", "integer", help="Offset of the guest's clock."),
    _for_vms("volatile.vsock_id", help="The guest's vsock address."),
)

INSTANCE_KEY_GROUPS: Mapping[str, tuple[ConfigKey, ...]] = {
    "boot": _BOOT,
    "cloud-init": _CLOUD_INIT,
    "kernel-limits": _KERNEL,
    "migration": _MIGRATION,
    "miscellaneous": _MISCELLANEOUS,
    "nvidia": _NVIDIA,
    "oci": _OCI,
    "raw": _RAW,
    "resource-limits": _LIMITS,
    "security": _SECURITY,
    "snapshots": _SNAPSHOTS,
    "volatile": _IMAGE_STATE + _HOST_STATE + _DEVICE_STATE + _VM_STATE,
}

_FREE = ("user.", "image.")

INSTANCE_KEYS = KeyTable(
    "instances",
    tuple(key for group in INSTANCE_KEY_GROUPS.values() for key in group),
    _FREE,
    refused_scope="virtual-machine",
)
"""For an instance's own config and for the merged one: volatile keys included, virtual machines' refused."""

PROFILE_KEYS = KeyTable(
    "profiles",
    tuple(key for key in INSTANCE_KEYS.keys if not key.name.startswith("volatile.")),
    _FREE,
)
