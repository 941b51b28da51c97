"""The files by which dnsmasq knows the hosts of a network: one for each port, changed one by one.

dnsmasq sees new files by inotify, which takes it no longer however many there are. What stood in a file that
is changed or gone it forgets only when it reads all of them anew.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from utsuwa.host.files.atomic import replace_file
from utsuwa.networks.base import Owner
from utsuwa.networks.drivers.bridge.dnsmasq import file_of, host_line
from utsuwa.networks.ports import Port


@dataclass(frozen=True)
class Change:
    """What became of the files."""

    added: bool = False
    replaced: bool = False
    removed: bool = False
    gone: frozenset[str] = frozenset()
    """The MAC addresses that stood in files and do so no more."""


class HostFiles:
    """The files of one network, and what stands in them: only what changes is touched. Blocking.

    A port that is to get another MAC address with its next start has its file as long as its instance runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, str] = {}
        self._files: defaultdict[Owner, set[str]] = defaultdict(set)

    def replace(self, ports: Collection[Port], dns_mode: str) -> Change:
        """Have the files of just these ports, which are all that there are. Raises OSError."""
        self._lines = dict(_read_all(self._folder))
        self._files.clear()
        for port in ports:
            self._files[port.owner].add(file_of(port))
        return self._apply(ports, dns_mode, set(self._lines))

    def change(self, ports: Collection[Port], owners: Collection[Owner], dns_mode: str) -> Change:
        """Have the files of these ports in place of those that their owners had. Raises OSError."""
        before = {file for owner in owners for file in self._files.pop(owner, ())}
        for port in ports:
            self._files[port.owner].add(file_of(port))
        return self._apply(ports, dns_mode, before & self._lines.keys())

    def _apply(self, ports: Collection[Port], dns_mode: str, before: Collection[str]) -> Change:
        keep = {file_of(port) for port in ports if port.running and not port.mac}
        wanted = {file_of(port): line for port in ports if port.mac and (line := host_line(port, dns_mode))}
        changed = {file: line for file, line in wanted.items() if self._lines.get(file) != line}
        gone = set(before) - keep - wanted.keys()
        macs = {_mac(self._lines[file]) for file in (*gone, *(changed.keys() & self._lines.keys()))}
        replaced = not changed.keys().isdisjoint(self._lines)
        for file in gone:
            (self._folder / file).unlink(missing_ok=True)
            del self._lines[file]
        self._write(changed)
        still = {_mac(line) for line in wanted.values()}
        return Change(len(changed) > 0, replaced, len(gone) > 0, frozenset(macs - still))

    def _write(self, lines: Mapping[str, str]) -> None:
        for file, line in lines.items():
            # dnsmasq reads it at once, as every file of the folder that does not begin with a dot; the group
            # that may read it is the folder's.
            replace_file(self._folder / file, line, 0o640)
            self._lines[file] = line


def _read_all(folder: Path) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, Path(entry.path).read_text()


def _mac(line: str) -> str:
    return line.split(",")[0].strip()
