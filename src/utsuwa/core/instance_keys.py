"""The config keys of instances and profiles.

Names are LXD's; keys that Incus added later have Incus' names. Groups are those of
`GET /1.0/metadata/configuration`. Keys of virtual machines are accepted in profiles, so that a profile
that is also used on other servers can be stored, and rejected on instances, which are containers.
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
    """Return a key that is validated and stored, but not yet in effect."""
    return ConfigKey(name, type, default, live, help, validate, scope=scope, part=part, in_force=False)


def _for_vms(name: str, type: KeyType = "string", default: str = "", help: str = "") -> ConfigKey:
    return _later(name, type, default=default, scope="virtual-machine", help=help)


_BOOT = (
    ConfigKey(
        "boot.autostart",
        "bool",
        live=False,
        help="Start with the daemon, or as soon as the host has what it needs: always, never, or (unset) if "
        "it was running before.",
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
        help="Restart the instance when it ends unexpectedly.",
    ),
    _later(
        "boot.host_shutdown_action",
        default="stop",
        help="What to do with the instance when the host shuts down.",
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
        ("network-config", "Network configuration for cloud-init."),
        ("user-data", "User data for cloud-init."),
        ("vendor-data", "Vendor data for cloud-init."),
    )
)

_MIGRATION = (
    _later(
        "migration.incremental.memory",
        "bool",
        default="false",
        scope="container",
        help="Transfer memory incrementally while the instance is running.",
    ),
    _later(
        "migration.incremental.memory.goal",
        "integer",
        default="70",
        scope="container",
        help="Percentage of memory to transfer before the instance is stopped.",
        validate=integer_between(0, 100),
    ),
    _later(
        "migration.incremental.memory.iterations",
        "integer",
        default="10",
        scope="container",
        help="Maximum number of transfer rounds before the instance is stopped.",
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
    _for_vms("agent.nic_config", "bool", "false", help="Set the names and MTU of the guest's interfaces."),
    _later(
        "cluster.evacuate",
        default="auto",
        live=False,
        help="What to do with the instance when its server is evacuated.",
        validate=one_of("auto", "migrate", "live-migrate", "stop", "stateful-stop", "force-stop"),
    ),
    ConfigKey(
        "environment.*",
        part=r"[^\n\r\0=]+",
        help="An environment variable for init and for commands run by exec.",
    ),
    _later(
        "linux.kernel_modules",
        "list",
        scope="container",
        help="Kernel modules to load on the host before the instance starts.",
        validate=checks.kernel_modules,
    ),
    ConfigKey(
        "linux.sysctl.*",
        part=r"[A-Za-z0-9_./-]+",
        live=False,
        scope="container",
        help="A sysctl of the instance's namespaces, set when it starts.",
    ),
    _for_vms("smbios11.*", help="An SMBIOS type 11 string for the guest."),
    _later(
        "systemd.credential.*",
        part=r"[A-Za-z0-9_.@-]+",
        live=False,
        help="A credential for systemd in the instance.",
    ),
    _later(
        "systemd.credential-binary.*",
        part=r"[A-Za-z0-9_.@-]+",
        live=False,
        help="A credential for systemd in the instance, in base64.",
    ),
)

_NVIDIA = (
    _later(
        "nvidia.runtime",
        "bool",
        default="false",
        live=False,
        scope="container",
        help="Make the host's NVIDIA libraries available in the instance.",
    ),
    _later(
        "nvidia.driver.capabilities",
        "list",
        default="compute,utility",
        live=False,
        scope="container",
        help="Capabilities of the NVIDIA driver to make available in the instance.",
        validate=checks.list_of(
            "all", "compute", "compat32", "display", "graphics", "ngx", "utility", "video"
        ),
    ),
    _later("nvidia.require.cuda", live=False, scope="container", help="Required CUDA version."),
    _later("nvidia.require.driver", live=False, scope="container", help="Required driver version."),
)

_OCI = (
    _later(
        "oci.cwd",
        live=False,
        scope="container",
        help="Working directory of an application container.",
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
    ConfigKey("raw.apparmor", help="Lines to add to the instance's AppArmor profile."),
    ConfigKey(
        "raw.idmap",
        live=False,
        scope="container",
        help="Host ids to map into the instance, one entry such as 'both 1000 1000' per line.",
        validate=checks.raw_idmap,
    ),
    ConfigKey(
        "raw.lxc",
        live=False,
        scope="container",
        help="Lines to add to the liblxc configuration.",
        validate=checks.raw_lxc,
    ),
    ConfigKey(
        "raw.seccomp",
        live=False,
        scope="container",
        help="A complete seccomp policy that replaces the generated one.",
    ),
    _for_vms("raw.qemu", help="Arguments to add to the QEMU command line."),
    _for_vms("raw.qemu.conf", help="Changes to the generated QEMU configuration."),
    _for_vms("raw.qemu.qmp.early", help="QMP commands before the set-up."),
    _for_vms("raw.qemu.qmp.pre-start", help="QMP commands after the set-up, before the start."),
    _for_vms("raw.qemu.qmp.post-start", help="QMP commands after the start."),
    _for_vms("raw.qemu.scriptlet", help="A script for all stages of a start."),
)

_LIMITS = (
    ConfigKey(
        "limits.cpu",
        help="Number of CPUs, or the set of CPUs, that the instance may use.",
        validate=checks.cpus,
    ),
    ConfigKey(
        "limits.cpu.allowance",
        default="100%",
        scope="container",
        help="A share of CPU time when the host is busy, or a hard limit per period.",
        validate=checks.cpu_allowance,
    ),
    _later("limits.cpu.nodes", help="NUMA nodes to take the CPUs from.", validate=checks.numa_nodes),
    ConfigKey(
        "limits.cpu.priority",
        "integer",
        default="10",
        scope="container",
        help="CPU priority among instances that share CPUs (0 to 10).",
        validate=_priority,
    ),
    ConfigKey(
        "limits.disk.priority",
        "integer",
        default="5",
        help="Priority of the instance's disk I/O (0 to 10).",
        validate=_priority,
    ),
    *(
        ConfigKey(
            f"limits.hugepages.{size}",
            "size",
            scope="container",
            help=f"Limit on the memory in huge pages of {size}.",
        )
        for size in ("64KB", "1MB", "2MB", "1GB")
    ),
    ConfigKey(
        "limits.memory",
        help="Memory limit, as a size or a percentage of the host's memory.",
        validate=checks.size_or_percent,
    ),
    ConfigKey(
        "limits.memory.enforce",
        default="hard",
        scope="container",
        help="Whether the memory limit always applies (hard) or only when memory is short (soft).",
        validate=one_of("hard", "soft"),
    ),
    _for_vms("limits.memory.hugepages", "bool", "false", help="Use huge pages for the guest's memory."),
    _for_vms("limits.memory.hotplug", help="Limit up to which the guest's memory may grow while it runs."),
    _later(
        "limits.memory.oom_priority",
        "integer",
        default="0",
        help="Adjustment of the OOM score of the instance's processes (-1000 to 1000).",
        validate=integer_between(-1000, 1000),
    ),
    ConfigKey(
        "limits.memory.swap",
        default="true",
        scope="container",
        help="Whether the instance may use swap, or the amount of swap.",
        validate=checks.swap,
    ),
    ConfigKey(
        "limits.memory.swap.priority",
        "integer",
        default="10",
        scope="container",
        help="Priority for staying in memory; higher is less likely to be swapped out (0 to 10).",
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
        help="Maximum number of processes.",
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
        ("fsize", "bytes of a file that it writes"),
        ("locks", "file locks"),
        ("memlock", "bytes locked in memory"),
        ("msgqueue", "bytes in POSIX message queues"),
        ("nice", "highest nice value, as 20 minus it"),
        ("nofile", "open files"),
        ("nproc", "processes of the user"),
        ("rss", "bytes of resident memory"),
        ("rtprio", "highest real-time priority"),
        ("rttime", "microseconds of real-time CPU without a pause"),
        ("sigpending", "pending signals"),
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
    _later("security.devlxd", "bool", default="true", live=False, help="Provide /dev/lxd in the instance."),
    _later(
        "security.devlxd.images",
        "bool",
        default="false",
        live=False,
        scope="container",
        help="Let the instance fetch the host's images through /dev/lxd.",
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
        help="Number of ids of an isolated id map.",
        validate=checks.idmap_size,
    ),
    _bool_now("security.nesting", "false", "Allow nested containers.", live=True),
    _bool_now("security.privileged", "false", "Run without an id map: root inside is root outside."),
    ConfigKey("security.protection.delete", "bool", "false", help="Prevent the instance from being deleted."),
    _later(
        "security.protection.shift",
        "bool",
        default="false",
        scope="container",
        help="Prevent the owners of the instance's files from being shifted.",
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
    _interception("bpf", "Handle bpf() for the instance."),
    _interception("bpf.devices", "Let the instance load device programs of cgroup v2."),
    _interception("mknod", "Create harmless device nodes for the instance."),
    _interception("mount", "Mount the allowed file systems for the instance."),
    _later(
        "security.syscalls.intercept.mount.allowed",
        "list",
        scope="container",
        help="File systems that may be mounted for the instance.",
    ),
    _later(
        "security.syscalls.intercept.mount.fuse",
        "list",
        scope="container",
        help="File systems to mount with a FUSE program instead, such as ext4=fuse2fs.",
    ),
    _later(
        "security.syscalls.intercept.mount.shift",
        "bool",
        default="false",
        scope="container",
        help="Mount them with the instance's id map.",
    ),
    _interception("sched_setscheduler", "Let the instance raise the priority of its processes."),
    _interception("setxattr", "Set the allowed extended attributes for the instance."),
    _interception("sysinfo", "Answer sysinfo() with the instance's limits."),
    *(
        _later(f"security.bpffs.delegate_{name}", "list", live=False, scope="container", help=help)
        for name, help in (
            ("attachs", "Attach types of BPF programs that the instance may use."),
            ("cmds", "bpf() commands that the instance may use."),
            ("maps", "Types of BPF maps that the instance may use."),
            ("progs", "Types of BPF programs that the instance may use."),
        )
    ),
    _later(
        "security.bpffs.path",
        default="/sys/fs/bpf",
        live=False,
        scope="container",
        help="Mount point of the BPF file system in the instance.",
        validate=checks.absolute_path,
    ),
    _for_vms("security.agent.metrics", "bool", "true", help="Query the guest agent for metrics."),
    _for_vms("security.csm", "bool", "false", help="Use firmware for guests without UEFI support."),
    _for_vms("security.iommu", "bool", "false", help="Give the guest an IOMMU."),
    _for_vms("security.secureboot", "bool", "true", help="Boot only signed images."),
    _for_vms("security.sev", "bool", "false", help="Encrypt the guest's memory."),
    _for_vms("security.sev.policy.es", "bool", "false", help="Encrypt the guest's registers too."),
    _for_vms("security.sev.session.data", help="Session data of the guest's owner, in base64."),
    _for_vms("security.sev.session.dh", help="Key of the guest's owner, in base64."),
)

_SNAPSHOTS = (
    _later(
        "snapshots.schedule",
        live=False,
        help="When to take snapshots: a cron expression, or aliases such as @daily.",
        validate=checks.schedule,
    ),
    _later(
        "snapshots.schedule.stopped",
        "bool",
        default="false",
        live=False,
        help="Take scheduled snapshots of a stopped instance as well.",
    ),
    _later("snapshots.pattern", default="snap%d", live=False, help="Name pattern of scheduled snapshots."),
    _later(
        "snapshots.expiry",
        live=False,
        help="How long to keep snapshots, such as 3d or 1w.",
        validate=checks.expiry,
    ),
    _later(
        "snapshots.expiry.manual",
        live=False,
        help="How long to keep manually taken snapshots.",
        validate=checks.expiry,
    ),
)

_IMAGE_STATE = (
    ConfigKey("volatile.apply_template", help="Trigger of the templates to apply at the next start."),
    ConfigKey("volatile.base_image", help="Fingerprint of the image that the instance was created from."),
    ConfigKey(
        "volatile.cloud-init.instance-id",
        help="Instance id for cloud-init, which runs again when it changes.",
        validate=checks.is_uuid,
    ),
    ConfigKey("volatile.container.oci", "bool", "false", help="Whether this is an application container."),
)

_HOST_STATE = (
    ConfigKey("volatile.cluster.group", help="Cluster group that the instance was placed in."),
    ConfigKey("volatile.cpu.nodes", help="NUMA nodes that were chosen."),
    ConfigKey("volatile.evacuate.origin", help="Server that the instance was evacuated from."),
    ConfigKey("volatile.idmap.base", "integer", help="First host id of the instance's id map."),
    ConfigKey("volatile.idmap.current", help="Id map of the running instance, as JSON."),
    ConfigKey("volatile.idmap.next", help="Id map of the next start, as JSON."),
    ConfigKey("volatile.last_state.boot_id", help="Boot id of the host when the instance last ran."),
    ConfigKey("volatile.last_state.change", help="Devices that are currently being changed, as JSON."),
    ConfigKey("volatile.last_state.idmap", help="Id map of the owners of the files on disk, as JSON."),
    ConfigKey("volatile.last_state.power", help="Last power state seen by the daemon."),
    ConfigKey("volatile.last_state.ready", help="Whether the instance has reported that it is ready."),
    ConfigKey("volatile.rebalance.last_move", "integer", help="When the instance was last moved."),
    ConfigKey("volatile.uuid", help="UUID of the instance.", validate=checks.is_uuid),
    ConfigKey(
        "volatile.uuid.generation",
        help="Generation id, which changes when the instance is rolled back.",
        validate=checks.is_uuid,
    ),
)

_DEVICE_STATE = tuple(
    ConfigKey(f"volatile.*.{name}", help=help)
    for name, help in (
        ("apply_quota", "Disk quota to set at the next start."),
        ("ceph_rbd", "RBD device on the host."),
        ("host_name", "Interface on the host."),
        ("hwaddr", "MAC address of the interface."),
        ("io.bus", "Bus of the disk."),
        ("last_state.created", "Whether the host's interface was created for the instance."),
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
        ("mig.uuid", "UUID of the MIG device."),
        ("name", "Interface inside the instance."),
        ("vgpu.uuid", "UUID of the virtual GPU."),
    )
)

_VM_STATE = (
    _for_vms("volatile.apply_nvram", "bool", help="Whether the next start recreates the firmware's NVRAM."),
    _for_vms("volatile.vm.boot_state", help="Properties to preserve during migration, as JSON."),
    _for_vms("volatile.vm.needs_reset", "bool", help="Whether the next reboot must be a full restart."),
    _for_vms("volatile.vm.rtc_adjustment", "integer", help="Adjustment of the guest's clock."),
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
"""For an instance's own and expanded config: with volatile keys, without those of virtual machines."""

PROFILE_KEYS = KeyTable(
    "profiles",
    tuple(key for key in INSTANCE_KEYS.keys if not key.name.startswith("volatile.")),
    _FREE,
)
