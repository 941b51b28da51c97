"""Keys of starting and stopping, of snapshots, and of what runs inside."""

from __future__ import annotations

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey, integer_between, one_of
from utsuwa.core.instance_keys.records import for_vms, later
from utsuwa.core.snapshot_names import DEFAULT_PATTERN, check_pattern

BOOT = (
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
    ConfigKey(
        "boot.autorestart",
        "bool",
        default="false",
        help="Restart the instance when it ends without a request, at most 10 times within a minute.",
    ),
    ConfigKey(
        "boot.host_shutdown_action",
        default="stop",
        help="What to do with the instance when the host shuts down: stop it cleanly, kill it, or save its "
        "running state (if that fails, it is stopped cleanly).",
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

CLOUD_INIT = tuple(
    ConfigKey(f"cloud-init.{name}", live=False, help=help)
    for name, help in (
        ("network-config", "Network configuration for cloud-init."),
        ("user-data", "User data for cloud-init."),
        ("vendor-data", "Vendor data for cloud-init."),
    )
)

MIGRATION = (
    ConfigKey(
        "migration.incremental.memory",
        "bool",
        default="false",
        scope="container",
        help="Send memory to another server in rounds while the instance runs, until it stops for the rest.",
    ),
    ConfigKey(
        "migration.incremental.memory.goal",
        "integer",
        default="70",
        scope="container",
        help="Percentage of memory that the other server has already, from which on no more rounds follow.",
        validate=integer_between(0, 100),
    ),
    ConfigKey(
        "migration.incremental.memory.iterations",
        "integer",
        default="10",
        scope="container",
        help="Maximum number of rounds in which memory is sent while the instance runs.",
        validate=checks.at_least(0),
    ),
    ConfigKey(
        "migration.stateful",
        "bool",
        default="false",
        live=False,
        help="Prepare the instance for stateful stops and snapshots: from its next start on, systemd's "
        "services have no namespaces of their own, and there is no io_uring.",
    ),
)

_CREDENTIAL = r"(?!\.{1,2}\Z)[A-Za-z0-9_.@-]{1,200}"
"""The name of a credential, which becomes that of a file."""

MISCELLANEOUS = (
    for_vms("agent.nic_config", "bool", "false", help="Set the names and MTU of the guest's interfaces."),
    later(
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
    ConfigKey(
        "linux.kernel_modules",
        "list",
        scope="container",
        help="Kernel modules to load on the host before the instance starts, separated by commas.",
        validate=checks.kernel_modules,
    ),
    ConfigKey(
        "linux.sysctl.*",
        part=r"[A-Za-z0-9_./-]+",
        live=False,
        scope="container",
        help="A sysctl of the instance's namespaces, set when it starts.",
    ),
    for_vms("smbios11.*", help="An SMBIOS type 11 string for the guest."),
    ConfigKey(
        "systemd.credential.*",
        part=_CREDENTIAL,
        live=False,
        scope="container",
        help="A credential for systemd in the instance.",
    ),
    ConfigKey(
        "systemd.credential-binary.*",
        part=_CREDENTIAL,
        live=False,
        scope="container",
        help="A credential for systemd in the instance, in base64.",
        validate=checks.base64,
    ),
)

NVIDIA = (
    ConfigKey(
        "nvidia.runtime",
        "bool",
        default="false",
        live=False,
        scope="container",
        help="Make the host's NVIDIA libraries available in the instance.",
    ),
    ConfigKey(
        "nvidia.driver.capabilities",
        "list",
        default="compute,utility",
        live=False,
        scope="container",
        help="Capabilities of the NVIDIA driver to make available in the instance.",
        # not `ngx`, with which liblxc's hook would fail each start
        validate=checks.list_of("all", "compute", "compat32", "display", "graphics", "utility", "video"),
    ),
    ConfigKey("nvidia.require.cuda", live=False, scope="container", help="Required CUDA version."),
    ConfigKey("nvidia.require.driver", live=False, scope="container", help="Required driver version."),
)

OCI = (
    later(
        "oci.cwd",
        live=False,
        scope="container",
        help="Working directory of an application container.",
        validate=checks.absolute_path,
    ),
    later("oci.entrypoint", live=False, scope="container", help="Command of an application container."),
    later(
        "oci.gid",
        "integer",
        live=False,
        scope="container",
        help="Group of an application container's command.",
        validate=checks.user_id,
    ),
    later(
        "oci.uid",
        "integer",
        live=False,
        scope="container",
        help="User of an application container's command.",
        validate=checks.user_id,
    ),
)

RAW = (
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
    for_vms("raw.qemu", help="Arguments to add to the QEMU command line."),
    for_vms("raw.qemu.conf", help="Changes to the generated QEMU configuration."),
    for_vms("raw.qemu.qmp.early", help="QMP commands before the set-up."),
    for_vms("raw.qemu.qmp.pre-start", help="QMP commands after the set-up, before the start."),
    for_vms("raw.qemu.qmp.post-start", help="QMP commands after the start."),
    for_vms("raw.qemu.scriptlet", help="A script for all stages of a start."),
)

SNAPSHOTS = (
    ConfigKey(
        "snapshots.schedule",
        live=False,
        help="When to take snapshots: a cron expression, or aliases such as @daily.",
        validate=checks.schedule,
    ),
    ConfigKey(
        "snapshots.schedule.stopped",
        "bool",
        "false",
        live=False,
        help="Take scheduled snapshots of a stopped instance as well.",
    ),
    ConfigKey(
        "snapshots.pattern",
        default=DEFAULT_PATTERN,
        live=False,
        help="Name pattern of snapshots that are taken without a name.",
        validate=check_pattern,
    ),
    ConfigKey(
        "snapshots.expiry",
        live=False,
        help="How long to keep snapshots, such as 3d or 1w.",
        validate=checks.expiry,
    ),
    ConfigKey(
        "snapshots.expiry.manual",
        live=False,
        help="How long to keep manually taken snapshots.",
        validate=checks.expiry,
    ),
)
