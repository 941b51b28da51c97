"""Metrics in the text format of Prometheus, and in OpenMetrics, which differs in a few words.

The families have LXD's names, so that dashboards made for it work. https://prometheus.io/docs/specs/om/
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TOTAL = "_total"


@dataclass(frozen=True, eq=False)
class Family:
    """A metric with its samples' name; a counter's ends with `_total`."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str


def _counter(name: str, help: str) -> Family:
    return Family(name, "counter", help)


def _gauge(name: str, help: str) -> Family:
    return Family(name, "gauge", help)


CPU_SECONDS = _counter("lxd_cpu_seconds_total", "Processor time in seconds.")

DISK_READ_BYTES = _counter("lxd_disk_read_bytes_total", "Bytes read.")
DISK_READS = _counter("lxd_disk_reads_completed_total", "Completed reads.")
DISK_WRITTEN_BYTES = _counter("lxd_disk_written_bytes_total", "Bytes written.")
DISK_WRITES = _counter("lxd_disk_writes_completed_total", "Completed writes.")

FILESYSTEM_AVAILABLE = _gauge(
    "lxd_filesystem_avail_bytes", "Space that users other than the host's root can use, in bytes."
)
FILESYSTEM_FREE = _gauge("lxd_filesystem_free_bytes", "Free space in bytes.")
FILESYSTEM_SIZE = _gauge("lxd_filesystem_size_bytes", "Size of the file system in bytes.")

MEMORY_ACTIVE_ANONYMOUS = _gauge("lxd_memory_Active_anon_bytes", "Recently used anonymous memory.")
MEMORY_ACTIVE = _gauge("lxd_memory_Active_bytes", "Recently used memory.")
MEMORY_ACTIVE_FILE = _gauge("lxd_memory_Active_file_bytes", "Recently used cached files.")
MEMORY_CACHED = _gauge("lxd_memory_Cached_bytes", "Cached files.")
MEMORY_DIRTY = _gauge("lxd_memory_Dirty_bytes", "Memory that is still to be written to disk.")
MEMORY_INACTIVE_ANONYMOUS = _gauge("lxd_memory_Inactive_anon_bytes", "Less recently used anonymous memory.")
MEMORY_INACTIVE = _gauge("lxd_memory_Inactive_bytes", "Less recently used memory.")
MEMORY_INACTIVE_FILE = _gauge("lxd_memory_Inactive_file_bytes", "Less recently used cached files.")
MEMORY_MAPPED = _gauge("lxd_memory_Mapped_bytes", "Files that are mapped into memory.")
MEMORY_AVAILABLE = _gauge("lxd_memory_MemAvailable_bytes", "Memory that can be used without swapping.")
MEMORY_FREE = _gauge("lxd_memory_MemFree_bytes", "Memory that is not used.")
MEMORY_TOTAL = _gauge("lxd_memory_MemTotal_bytes", "The limit of memory, or the host's memory.")
MEMORY_OOM_KILLS = _counter(
    "lxd_memory_OOM_kills_total", "Processes that the kernel has killed for lack of memory."
)
MEMORY_RSS = _gauge("lxd_memory_RSS_bytes", "Anonymous memory and cached swap.")
MEMORY_SHARED = _gauge("lxd_memory_Shmem_bytes", "Memory of tmpfs and shared memory.")
MEMORY_SWAP = _gauge("lxd_memory_Swap_bytes", "Used swap.")
MEMORY_UNEVICTABLE = _gauge("lxd_memory_Unevictable_bytes", "Memory that must remain in place.")
MEMORY_WRITEBACK = _gauge("lxd_memory_Writeback_bytes", "Memory that is being written to disk.")

RECEIVED_BYTES = _counter("lxd_network_receive_bytes_total", "Bytes received.")
RECEIVE_DROPS = _counter("lxd_network_receive_drop_total", "Received packets that were dropped.")
RECEIVE_ERRORS = _counter("lxd_network_receive_errs_total", "Errors while receiving.")
RECEIVED_PACKETS = _counter("lxd_network_receive_packets_total", "Packets received.")
SENT_BYTES = _counter("lxd_network_transmit_bytes_total", "Bytes sent.")
SEND_DROPS = _counter("lxd_network_transmit_drop_total", "Packets to send that were dropped.")
SEND_ERRORS = _counter("lxd_network_transmit_errs_total", "Errors while sending.")
SENT_PACKETS = _counter("lxd_network_transmit_packets_total", "Packets sent.")

PROCESSES = _gauge("lxd_procs_total", "Number of processes.")

OPERATIONS = _gauge("lxd_operations_total", "Number of running operations.")
UPTIME = _gauge("lxd_uptime_seconds", "Seconds since the daemon's start.")
WARNINGS = _gauge("lxd_warnings_total", "Number of warnings that are not resolved.")


class Samples:
    """The samples of one scrape, grouped by family as the formats require."""

    def __init__(self) -> None:
        self._lines: dict[Family, list[str]] = {}

    def add(self, family: Family, value: float, labels: str = "") -> None:
        """Add a sample; `labels` is a result of `labels()`."""
        line = f"{family.name}{{{labels}}} {value}\n" if labels else f"{family.name} {value}\n"
        self._lines.setdefault(family, []).append(line)

    def render(self, *, openmetrics: bool) -> bytes:
        """Return the whole exposition, with families in the order of their names."""
        parts: list[str] = []
        for family in sorted(self._lines, key=lambda family: family.name):
            name = family.name
            if openmetrics and family.kind == "counter":
                name = name.removesuffix(_TOTAL)
            parts.append(f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n")
            parts += self._lines[family]
        # LXD ends both formats so; in the older one it is a comment.
        parts.append("# EOF\n")
        return "".join(parts).encode()


_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def labels(pairs: Iterable[tuple[str, str]]) -> str:
    """Render labels, such as `name="c1",project="default"`."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs)


def accepts_openmetrics(accept: str) -> bool:
    """Return whether an Accept header prefers OpenMetrics to plain text.

    Clients that state no preference get plain text, as from LXD.
    """
    return _quality(accept, "application/openmetrics-text") > _quality(accept, "text/plain")


def _quality(accept: str, wanted: str) -> float:
    """Return the weight of a media type in an Accept header, 0 if it does not name it."""
    best = 0.0
    for part in accept.split(","):
        kind, *parameters = (field.strip() for field in part.split(";"))
        if kind.lower() != wanted:
            continue
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                weight = _weight(value)
        best = max(best, weight)
    return best


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
