"""Keys of resource limits, also of those that the kernel calls resource limits."""

from __future__ import annotations

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey, integer_between, one_of
from utsuwa.core.instance_keys.records import for_vms

_priority = integer_between(0, 10)


LIMITS = (
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
    ConfigKey(
        "limits.cpu.nodes",
        help="NUMA nodes to take the CPUs and the memory from, or balanced for the least busy one.",
        validate=checks.numa_nodes,
    ),
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
    for_vms("limits.memory.hugepages", "bool", "false", help="Use huge pages for the guest's memory."),
    for_vms("limits.memory.hotplug", help="Limit up to which the guest's memory may grow while it runs."),
    ConfigKey(
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
    ConfigKey(
        "limits.network.priority",
        "integer",
        default="0",
        help="Priority of the packets that leave the instance, for the host's queues (0 to 10).",
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

KERNEL = tuple(
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
