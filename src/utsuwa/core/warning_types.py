"""The types of warnings. Codes, severities and texts are LXD's; types that it does not have start at 1000."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LOW: Final = "low"
MODERATE: Final = "moderate"
HIGH: Final = "high"


@dataclass(frozen=True)
class WarningType:
    """`text` is what clients show in lists; the message of a warning has the details."""

    code: int
    severity: str
    text: str
    lasting: bool = False
    """Whether its cause outlasts the daemon and is not looked for when it starts."""


UNDEFINED = WarningType(0, LOW, "Undefined warning")
NO_BLKIO = WarningType(1, LOW, "Couldn't find the CGroup blkio")
NO_BLKIO_WEIGHT = WarningType(2, LOW, "Couldn't find the CGroup blkio.weight")
NO_CPU = WarningType(3, LOW, "Couldn't find the CGroup CPU controller")
NO_CPUSET = WarningType(4, LOW, "Couldn't find the CGroup CPUset controller")
NO_CPUACCT = WarningType(5, LOW, "Couldn't find the CGroup CPUacct controller")
NO_DEVICES = WarningType(6, LOW, "Couldn't find the CGroup devices controller")
NO_FREEZER = WarningType(7, LOW, "Couldn't find the CGroup freezer controller")
NO_HUGETLB = WarningType(8, LOW, "Couldn't find the CGroup hugetlb controller")
NO_MEMORY = WarningType(9, LOW, "Couldn't find the CGroup memory controller")
NO_PIDS = WarningType(11, LOW, "Couldn't find the CGroup pids controller")
NO_SWAP_ACCOUNTING = WarningType(12, LOW, "Couldn't find the CGroup memory swap accounting")
NO_APPARMOR = WarningType(14, LOW, "AppArmor support has been disabled")
NETWORK_UNAVAILABLE = WarningType(20, HIGH, "Network unavailable")
AUTOSTART_FAILED = WarningType(22, LOW, "Failed to autostart instance")
POOL_UNAVAILABLE = WarningType(24, HIGH, "Storage pool unavailable")

_ONLY_LXDS = (
    WarningType(10, LOW, "Couldn't find the CGroup network priority controller"),
    WarningType(13, LOW, "Time skew detected between leader and local"),
    WarningType(15, LOW, "Missing virtiofsd"),
    WarningType(16, LOW, "Unable to connect to MAAS"),
    WarningType(17, LOW, "Skipping AppArmor for dnsmasq due to raw.dnsmasq being set"),
    WarningType(18, LOW, "IPv6 networks with a prefix larger than 64 aren't properly supported by dnsmasq"),
    WarningType(19, LOW, "Proxy bridge netfilter not enabled"),
    WarningType(21, LOW, "Offline cluster member"),
    WarningType(23, LOW, "Instance type not operational"),
)
"""Never raised here."""

NO_SOCKET_GROUP = WarningType(1000, LOW, "Only root can use the unix socket")
NO_LXCFS = WarningType(1001, MODERATE, "Instances see the resources of the whole host")
NO_ID_RANGES = WarningType(1002, HIGH, "No ids for unprivileged instances")
NO_IDMAPPED_MOUNTS = WarningType(1003, LOW, "Idmapped mounts not available")
HOST_NEAR_LIMITS = WarningType(1004, MODERATE, "Host near its limits")
HTTPS_UNAVAILABLE = WarningType(1005, MODERATE, "HTTPS address unavailable")
EXTERNAL_INTERFACE_MISSING = WarningType(1006, MODERATE, "External interface of a network missing")
NO_IPV6 = WarningType(1007, MODERATE, "No IPv6 on a network")
NO_FORWARDING = WarningType(1008, MODERATE, "A network has no way out")
FIREWALL_DROPS = WarningType(1009, MODERATE, "Firewall drops traffic of a network")
DNSMASQ_ENDED = WarningType(1010, MODERATE, "No addresses and names on a network")
SIZE_NOT_ENFORCED = WarningType(1012, LOW, "Size of a volume not enforced", lasting=True)
LINK_EVENTS_MISSING = WarningType(1011, LOW, "Changes of network interfaces noticed late")
KEYS_WITHOUT_EFFECT = WarningType(1013, LOW, "Configuration keys without effect", lasting=True)
LIMITS_NOT_APPLIED = WarningType(1014, MODERATE, "Limits of an instance not applied")
IDS_LOST = WarningType(1015, HIGH, "An instance runs with ids that root has lost")
STATE_UNKNOWN = WarningType(1016, MODERATE, "State of an instance unknown")
LEFTOVERS = WarningType(1017, LOW, "An instance was not cleaned up completely")
ENDS_TOO_OFTEN = WarningType(1019, MODERATE, "An instance ends again and again", lasting=True)
CPUS_NOT_ASSIGNED = WarningType(1018, MODERATE, "CPUs of an instance not assigned")
SERVER_VOLUME_UNAVAILABLE = WarningType(1021, HIGH, "A volume of the server unavailable")
NO_CRIU = WarningType(1022, MODERATE, "Running state of instances cannot be saved", lasting=True)
DEBUG_UNAVAILABLE = WarningType(1023, LOW, "Debug address unavailable")
METRICS_UNAVAILABLE = WarningType(1020, MODERATE, "Metrics address unavailable")

BY_CODE: Final = {
    kind.code: kind
    for kind in (
        *_ONLY_LXDS,
        *(value for value in list(globals().values()) if isinstance(value, WarningType)),
    )
}
