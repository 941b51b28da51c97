"""CPU architectures: the kernel's names and the aliases that distributions use."""

from __future__ import annotations

_ALIASES: dict[str, tuple[str, ...]] = {
    "i686": ("i386", "i486", "i586", "386", "x86", "generic_32"),
    "x86_64": ("amd64", "generic_64"),
    "armv6l": (),
    "armv7l": ("armel", "armhf", "armhfp", "arm", "armv7a_hardfp", "armv7a_vfpv3_hardfp"),
    "armv8l": (),
    "aarch64": ("arm64", "arm64_generic"),
    "ppc": ("powerpc",),
    "ppc64": ("powerpc64",),
    "ppc64le": ("ppc64el",),
    "s390x": (),
    "mips": ("mipsel", "mipsle"),
    "mips64": ("mips64el", "mips64le"),
    "riscv32": ("rv32",),
    "riscv64": ("rv64",),
    "loongarch64": ("loong64",),
}

_BY_NAME = {name: known for known, aliases in _ALIASES.items() for name in (known, *aliases)}


def canonical_architecture(name: str) -> str | None:
    """Return the kernel's name for an architecture (`x86_64` for `amd64`), or None if it is unknown."""
    return _BY_NAME.get(name.strip().lower())


_ALSO_RUN = {
    "x86_64": ("i686",),
    "aarch64": ("armv8l", "armv7l", "armv6l"),
    "armv8l": ("armv7l", "armv6l"),
    "armv7l": ("armv6l",),
    "ppc64": ("ppc",),
    "mips64": ("mips",),
    "riscv64": ("riscv32",),
}
"""The 32-bit architectures that kernels run beside their own."""


def runnable(machine: str, preferred: str = "") -> list[str]:
    """Return the architectures that a host can run, the best one first: `preferred`, if it is one of them."""
    known = canonical_architecture(machine) or machine
    found = [known, *_ALSO_RUN.get(known, ())]
    wanted = canonical_architecture(preferred)
    return sorted(found, key=lambda name: name != wanted)
