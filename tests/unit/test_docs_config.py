"""docs/config.md names the keys that are in force, no more and no fewer."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.core.project_keys import PROJECT_KEYS
from utsuwa.core.server_keys import SERVER_KEYS
from utsuwa.devices import DEVICE_TYPES
from utsuwa.devices.disk import DISK, InstanceFolder
from utsuwa.devices.nic import BridgedNic
from utsuwa.devices.unix import UnixDevice
from utsuwa.networks.drivers.bridge.keys import BRIDGE_KEYS
from utsuwa.storage.drivers import DRIVERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"
TABLES = {
    "## The server": SERVER_KEYS,
    "## Instances": INSTANCE_KEYS,
    "### disk": DISK.tables["disk"],
    "### disk: a directory of the instance's own": InstanceFolder.keys,
    "### unix-char and unix-block": UnixDevice.keys,
    "### nic": BridgedNic.keys,
    "## Networks": BRIDGE_KEYS,
    "## Projects": PROJECT_KEYS,
}


def documented(heading: str) -> set[str]:
    """The keys in the first column of the table below a heading."""
    below = PAGE.read_text().split(f"\n{heading}\n")[1]
    return set(re.findall(r"(?m)^\| `([^`]+)` \|", re.split(r"\n##+ ", below)[0]))


def heading_of(kind: str) -> str:
    """The heading of the part on a type of devices, which may be on two types."""
    headings: list[str] = re.findall(r"(?m)^### .*$", PAGE.read_text())
    return next(found for found in headings if kind in found.removeprefix("### ").split(" and "))


def test_each_type_of_device_is_documented() -> None:
    for kind in DEVICE_TYPES:
        names = {key.name for table in kind.tables.values() for key in table.keys if key.in_force}
        if names:
            assert names <= documented(heading_of(kind.name)), kind.name


def test_each_key_in_force_is_documented() -> None:
    for heading, table in TABLES.items():
        keys = {key.name for key in table.keys if key.in_force and not key.name.startswith("volatile.")}
        grouped = {re.sub(r"^limits\.(kernel|hugepages)\..*", r"limits.\1.*", key) for key in keys}
        assert documented(heading) == grouped, heading


def test_documented_keys_of_pools_exist() -> None:
    known = {key.name for kind in DRIVERS.values() for key in kind.pool_keys.keys}
    assert documented("## Storage pools")
    assert documented("## Storage pools") <= known


def test_each_server_key_without_effect_has_a_reason() -> None:
    below = PAGE.read_text().split("\n### Server keys without effect\n")[1].split("\n## ")[0]
    patterns = [
        found for row in re.findall(r"(?m)^\| (`[^|]+) \|", below) for found in re.findall(r"`([^`]+)`", row)
    ]
    for key in SERVER_KEYS.keys:
        matching = [pattern for pattern in patterns if fnmatchcase(key.name, pattern)]
        assert len(matching) == (0 if key.in_force else 1), f"{key.name}: {matching}"
    unused = [p for p in patterns if not any(fnmatchcase(key.name, p) for key in SERVER_KEYS.keys)]
    assert not unused
