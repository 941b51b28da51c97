"""The names of vendors and products, from the databases of Debian's packages pci.ids and usb.ids."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

_FOLDERS = ("usr/share/misc", "usr/share/hwdata")


@dataclass
class Names:
    """The names of some vendors and of all their products, by their ids."""

    vendors: dict[str, str] = field(default_factory=dict)
    products: dict[tuple[str, str], str] = field(default_factory=dict)

    def vendor(self, vendor: str) -> str:
        return self.vendors.get(vendor, "")

    def product(self, vendor: str, product: str) -> str:
        return self.products.get((vendor, product), "")


def read(root: Path, file: str, wanted: Collection[str]) -> Names:
    """Return the names of the `wanted` vendors; no names if `file` is not installed."""
    names = Names()
    for folder in _FOLDERS:
        try:
            lines = (root / folder / file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        vendor = ""
        for line in lines:
            if not line or line[0] == "#":
                continue
            if line[0] != "\t":
                vendor, _, name = line.partition("  ")
                if vendor in wanted:
                    names.vendors[vendor] = name
                else:
                    vendor = ""
            elif vendor and not line.startswith("\t\t"):
                product, _, name = line[1:].partition("  ")
                names.products[vendor, product] = name
        break
    return names
