"""dnsmasq's files of hosts: one for each port of a network, which are changed individually.

dnsmasq detects new files by inotify, in constant time. It only drops the contents of changed and removed
files when it reloads all of them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.core.refs import InstanceRef
from utsuwa.host.files.atomic import replace_file
from utsuwa.networks.drivers.bridge.dnsmasq import host_line, port_file
from utsuwa.networks.ports import Port


@dataclass(frozen=True)
class Change:
    """The changes made to the files."""

    added: bool = False
    replaced: bool = False
    removed: bool = False
    gone: frozenset[str] = frozenset()
    """MAC addresses that are not in any file any more."""


class HostFiles:
    """The files of one network with a cache of their contents, to write only changed ones. Blocking.

    The file of a port whose MAC address changes with the next start is kept as long as its instance runs.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lines: dict[str, str] = {}
        self._files: defaultdict[InstanceRef, set[str]] = defaultdict(set)

    def has_any(self, instances: Collection[InstanceRef]) -> bool:
        """Return whether there are files of any of these instances. Does not block."""
        return any(self._files.get(instance) for instance in instances)

    def replace(self, ports: Collection[Port], dns_mode: str) -> Change | None:
        """Replace all files by those of these ports, which are all ports of the network.

        Returns None for a network without the directory. Raises OSError.
        """
        if not self._directory.is_dir():
            return None
        self._lines = dict(_read_all(self._directory))
        self._files.clear()
        for port in ports:
            self._files[port.instance].add(port_file(port))
        return self._apply(ports, dns_mode, set(self._lines))

    def change(
        self, ports: Collection[Port], instances: Collection[InstanceRef], dns_mode: str
    ) -> Change | None:
        """Replace the files of `instances` by those of their current `ports`. As `replace`."""
        if not self._directory.is_dir():
            return None
        before = {file for instance in instances for file in self._files.pop(instance, ())}
        for port in ports:
            self._files[port.instance].add(port_file(port))
        return self._apply(ports, dns_mode, before & self._lines.keys())

    def _apply(self, ports: Collection[Port], dns_mode: str, before: Collection[str]) -> Change:
        keep = {port_file(port) for port in ports if port.running and not port.mac}
        wanted = {port_file(port): line for port in ports if port.mac and (line := host_line(port, dns_mode))}
        changed = {file: line for file, line in wanted.items() if self._lines.get(file) != line}
        gone = set(before) - keep - wanted.keys()
        macs = {_mac(self._lines[file]) for file in (*gone, *(changed.keys() & self._lines.keys()))}
        replaced = not changed.keys().isdisjoint(self._lines)
        for file in gone:
            (self._directory / file).unlink(missing_ok=True)
            del self._lines[file]
        self._write(changed)
        still = {_mac(line) for line in wanted.values()}
        return Change(len(changed) > 0, replaced, len(gone) > 0, frozenset(macs - still))

    def _write(self, lines: Mapping[str, str]) -> None:
        for file, line in lines.items():
            # dnsmasq reads it immediately, as all files whose names do not begin with a dot. It is readable
            # by the directory's group.
            replace_file(self._directory / file, line, 0o640)
            self._lines[file] = line


def _read_all(directory: Path) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name, Path(entry.path).read_text()


def _mac(line: str) -> str:
    return line.split(",")[0].strip()
