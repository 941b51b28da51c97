"""Network cards with their ports; virtual interfaces such as bridges are not hardware."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from utsuwa.host.hardware import cards, ids, sysfs
from utsuwa.host.hardware.ethtool import Link
from utsuwa.wire.hardware import Infiniband, NetworkCard, NetworkCards, NetworkSriov, Port

_NET = "sys/class/net"
_CLASS = "0x02"
_PROTOCOLS = {1: "ethernet", 19: "ATM", 32: "infiniband"}
"""The kernel's types of interfaces (ARPHRD)."""

Ask = Callable[[str], Link]


def network(root: Path, ask: Ask) -> NetworkCards:
    """Return all cards; `ask` returns the link settings of an interface."""
    folders: dict[Path, list[Path]] = {}
    for entry in sysfs.entries(root / _NET):
        at = sysfs.device(entry)
        if at is not None:
            folders.setdefault(at, []).append(entry)
    used = {sysfs.pci_address(folder) for folder in folders}
    others = [folder for folder in cards.of_class(root, _CLASS) if folder.name not in used]
    folders |= {folder: [] for folder in others}
    reader = _Reader(root, ask, folders, cards.names(root, folders))
    found = [reader.card(folder) for folder in folders if not cards.is_function(folder)]
    total = sum(1 + (len(card.sriov.vfs) if card.sriov is not None else 0) for card in found)
    return NetworkCards(cards=found, total=total)


class _Reader:
    def __init__(self, root: Path, ask: Ask, ports: dict[Path, list[Path]], names: ids.Names) -> None:
        self._root = root
        self._ask = ask
        self._ports = ports
        self._names = names

    def card(self, folder: Path) -> NetworkCard:
        links = [(entry, self._ask(entry.name)) for entry in self._ports.get(folder, ())]
        return NetworkCard(
            **msgspec.structs.asdict(cards.card(folder, self._root, self._names)),
            firmware_version=next((link.firmware_version for _, link in links if link.firmware_version), ""),
            ports=[_port(entry, folder, link) for entry, link in links],
            sriov=self._sriov(folder),
        )

    def _sriov(self, folder: Path) -> NetworkSriov | None:
        virtual = cards.functions(folder)
        if virtual is None:
            return None
        current, maximum, vfs = virtual
        return NetworkSriov(current_vfs=current, maximum_vfs=maximum, vfs=[self.card(vf) for vf in vfs])


def _port(entry: Path, folder: Path, link: Link) -> Port:
    """One that is down reports no speed, or an unknown one."""
    protocol = _PROTOCOLS.get(sysfs.number(entry / "type"), "unknown")
    up = sysfs.number(entry / "carrier") == 1
    duplex = sysfs.text(entry / "duplex")
    return Port(
        id=entry.name,
        address=sysfs.text(entry / "address"),
        port=sysfs.number(entry / "dev_port"),
        protocol=protocol,
        supported_modes=list(link.supported_modes),
        supported_ports=list(link.supported_ports),
        port_type=link.port_type,
        transceiver_type=link.transceiver_type,
        auto_negotiation=link.auto_negotiation,
        link_detected=up,
        link_speed=sysfs.number(entry / "speed") if up else 0,
        link_duplex=duplex if up and duplex != "unknown" else "",
        infiniband=_infiniband(folder, sysfs.number(entry / "dev_port"))
        if protocol == "infiniband"
        else None,
    )


def _infiniband(folder: Path, port: int) -> Infiniband:
    """The device nodes of one port; that for verbs is shared by all ports of the card."""
    entries = sysfs.entries(folder / "infiniband_mad")
    of_port = [entry for entry in entries if sysfs.number(entry / "port") == port + 1]
    issm, mad, verb = (
        next(
            ((entry.name, sysfs.text(entry / "dev")) for entry in found if entry.name.startswith(prefix)),
            ("", ""),
        )
        for prefix, found in (
            ("issm", of_port),
            ("umad", of_port),
            ("uverbs", sysfs.entries(folder / "infiniband_verbs")),
        )
    )
    return Infiniband(
        issm_name=issm[0],
        issm_device=issm[1],
        mad_name=mad[0],
        mad_device=mad[1],
        verb_name=verb[0],
        verb_device=verb[1],
    )
