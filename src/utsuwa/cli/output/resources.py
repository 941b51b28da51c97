"""The host's hardware as `utsuwa info --resources` prints it, which is how the `lxc` client does."""

from __future__ import annotations

from utsuwa.cli.output import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Record = dict[str, Any]


def describe(resources: Record) -> Iterator[str]:
    """Yield the lines for a record of `/1.0/resources`."""
    yield from _cpu(resources["cpu"])
    yield ""
    yield from _memory(resources["memory"])
    for title, plural, kind, found, card in (
        ("GPU:", "GPUs:", "Card", resources["gpu"]["cards"], _gpu),
        ("NIC:", "NICs:", "Card", resources["network"]["cards"], _nic),
        ("Disk:", "Disks:", "Disk", resources["storage"]["disks"], _disk),
    ):
        yield from _numbered(title, plural, kind, found or [], card)


def _numbered(
    title: str, plural: str, kind: str, found: list[Record], lines: Callable[[Record], Iterable[str]]
) -> Iterator[str]:
    if not found:
        return
    yield ""
    if len(found) == 1:
        yield title
        yield from _indented(lines(found[0]), 2)
        return
    yield plural
    for number, record in enumerate(found):
        yield f"  {kind} {number}:"
        yield from _indented(lines(record), 4)


def _indented(lines: Iterable[str], width: int) -> Iterator[str]:
    return (f"{'':{width}}{line}" for line in lines)


def _listed(lines: Iterable[str]) -> Iterator[str]:
    """Make lines an item of a list."""
    for number, line in enumerate(lines):
        yield f"{'    ' if number else '  - '}{line}"


def _given(*pairs: tuple[str, Any]) -> Iterator[str]:
    """Yield `Title: value` for the values that are known."""
    return (f"{title}: {value}" for title, value in pairs if value)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _named(name: str, detail: str) -> str:
    """Return `name (detail)`; empty without a name."""
    return f"{name} ({detail})" if name else ""


# ---- processors and memory


def _cpu(cpu: Record) -> Iterator[str]:
    sockets = cpu["sockets"] or []
    if len(sockets) == 1:
        yield f"CPU ({cpu['architecture']}):"
        yield from _indented(_socket(sockets[0]), 2)
        return
    yield f"CPUs ({cpu['architecture']}):"
    for socket in sockets:
        yield f"  Socket {socket['socket']}:"
        yield from _indented(_socket(socket), 4)


def _socket(socket: Record) -> Iterator[str]:
    yield from _given(("Vendor", socket.get("vendor")), ("Name", socket.get("name")))
    if socket.get("cache"):
        yield "Caches:"
        for cache in socket["cache"]:
            size = values.size(cache["size"], 0)
            yield f"  - Level {cache['level']} (type: {cache['type']}): {size}"
    yield "Cores:"
    for core in socket["cores"]:
        yield f"  - Core {core['core']}"
        yield f"    Frequency: {core.get('frequency', 0)}Mhz"
        yield "    Threads:"
        for thread in core["threads"]:
            online = _flag(thread["online"])
            yield (
                f"      - {thread['thread']} (id: {thread['id']}, online: {online}, "
                f"NUMA node: {thread['numa_node']})"
            )
    if current := socket.get("frequency"):
        least, most = socket.get("frequency_minimum"), socket.get("frequency_turbo")
        span = f" (min: {least}Mhz, max: {most}Mhz)" if least and most else ""
        yield f"Frequency: {current}Mhz{span}"


def _memory(memory: Record) -> Iterator[str]:
    yield "Memory:"
    yield from _indented(_pages(memory), 2)
    nodes = memory.get("nodes") or []
    if len(nodes) > 1:
        yield "  NUMA nodes:"
        for node in nodes:
            yield f"    Node {node['numa_node']}:"
            yield from _indented(_pages(node), 6)
            yield from _indented(_space(node["total"], node["used"]), 6)
    yield from _indented(_space(memory["total"], memory["used"]), 2)


def _pages(memory: Record) -> Iterator[str]:
    if memory["hugepages_total"]:
        yield "Hugepages:"
        yield from _indented(_space(memory["hugepages_total"], memory["hugepages_used"]), 2)


def _space(total: int, used: int) -> Iterator[str]:
    yield f"Free: {values.size(total - used)}"
    yield f"Used: {values.size(used)}"
    yield f"Total: {values.size(total)}"


# ---- cards


def _card(card: Record) -> Iterator[str]:
    yield f"NUMA node: {card['numa_node']}"
    yield from _given(
        ("Vendor", _named(card.get("vendor", ""), card.get("vendor_id", ""))),
        ("Product", _named(card.get("product", ""), card.get("product_id", ""))),
        ("PCI address", card.get("pci_address")),
        ("Driver", _named(card.get("driver", ""), card.get("driver_version", ""))),
    )


def _functions(card: Record, lines: Callable[[Record], Iterable[str]]) -> Iterator[str]:
    sriov = card.get("sriov")
    if not sriov:
        return
    yield "SR-IOV information:"
    yield f"  Current number of VFs: {sriov['current_vfs']}"
    yield f"  Maximum number of VFs: {sriov['maximum_vfs']}"
    if sriov.get("vfs"):
        yield f"  VFs: {len(sriov['vfs'])}"
        for virtual in sriov["vfs"]:
            yield from _indented(_listed(lines(virtual)), 2)


def _gpu(card: Record) -> Iterator[str]:
    yield from _card(card)
    if drm := card.get("drm"):
        yield "DRM:"
        yield f"  ID: {drm['id']}"
        yield from _indented(
            _given(
                ("Card", _named(drm["card_name"], drm["card_device"])),
                ("Control", _named(drm["control_name"], drm["control_device"])),
                ("Render", _named(drm["render_name"], drm["render_device"])),
            ),
            2,
        )
    if nvidia := card.get("nvidia"):
        yield "NVIDIA information:"
        yield f"  Architecture: {nvidia['architecture']}"
        yield f"  Brand: {nvidia['brand']}"
        yield f"  Model: {nvidia['model']}"
        yield f"  CUDA Version: {nvidia['cuda_version']}"
        yield f"  NVRM Version: {nvidia['nvrm_version']}"
        yield f"  UUID: {nvidia['uuid']}"
    yield from _functions(card, _gpu)


def _nic(card: Record) -> Iterator[str]:
    yield from _card(card)
    if card.get("ports"):
        yield "Ports:"
        for port in card["ports"]:
            yield from _port(port)
    yield from _functions(card, _nic)


def _port(port: Record) -> Iterator[str]:
    yield f"  - Port {port['port']} ({port['protocol']})"
    lines = [
        f"ID: {port['id']}",
        *_given(
            ("Address", port.get("address")),
            ("Supported modes", ", ".join(port.get("supported_modes") or ())),
            ("Supported ports", ", ".join(port.get("supported_ports") or ())),
            ("Port type", port.get("port_type")),
            ("Transceiver type", port.get("transceiver_type")),
        ),
        f"Auto negotiation: {_flag(port['auto_negotiation'])}",
        f"Link detected: {_flag(port['link_detected'])}",
    ]
    if port.get("link_speed"):
        lines.append(f"Link speed: {port['link_speed']}Mbit/s ({port['link_duplex']} duplex)")
    yield from _indented(lines, 4)
    if infiniband := port.get("infiniband"):
        yield "    Infiniband:"
        yield from _indented(
            _given(
                ("IsSM", _named(infiniband["issm_name"], infiniband["issm_device"])),
                ("MAD", _named(infiniband["mad_name"], infiniband["mad_device"])),
                ("Verb", _named(infiniband["verb_name"], infiniband["verb_device"])),
            ),
            6,
        )


def _disk(disk: Record) -> Iterator[str]:
    yield f"NUMA node: {disk['numa_node']}"
    yield f"ID: {disk['id']}"
    yield f"Device: {disk['device']}"
    yield from _given(("Model", disk.get("model")), ("Type", disk.get("type")))
    yield f"Size: {values.size(disk['size'])}"
    yield from _given(("WWN", disk.get("wwn")))
    yield f"Read-Only: {_flag(disk['read_only'])}"
    yield f"Removable: {_flag(disk['removable'])}"
    if disk.get("partitions"):
        yield "Partitions:"
        for part in disk["partitions"]:
            yield f"  - Partition {part['partition']}"
            yield f"    ID: {part['id']}"
            yield f"    Device: {part['device']}"
            yield f"    Read-Only: {_flag(part['read_only'])}"
            yield f"    Size: {values.size(part['size'])}"
