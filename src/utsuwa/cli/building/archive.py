"""Where packages come from: the archives of distributions, as this host's own apt reaches them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from utsuwa.cli.building.definition import Definition
from utsuwa.cli.building.distributions import DISTRIBUTIONS, Distribution
from utsuwa.cli.building.processes import output
from utsuwa.cli.errors import CommandFailed

_CUSTOM_KEYRING = "/etc/apt/keyrings/archive"
_ARMOR = b"-----BEGIN"


_SUFFIXES = ("", "-updates", "-security")
_ROLLING = ("sid", "unstable", "testing", "experimental")
"""Releases without updates beside them."""


@dataclass(frozen=True)
class Archive:
    """`lines` are `URI SUITE COMPONENT...`; `keyring` is a file here, `keyring_inside` its path in images."""

    lines: tuple[str, ...]
    keyring: str
    keyring_inside: str

    def sources(self, keyring: str) -> str:
        """Return the content of sources.list."""
        return "".join(f"deb [signed-by={keyring}] {line}\n" for line in self.lines)


def find(definition: Definition, architecture: str) -> Archive:
    """Return the archive of a definition. Raises CommandFailed if there is no keyring for it."""
    distribution = DISTRIBUTIONS[definition.distribution]
    keyring = definition.keyring or distribution.keyring
    if not os.access(keyring, os.R_OK):
        advice = "" if definition.keyring else f": apt-get install {distribution.package}, or set 'keyring'"
        raise CommandFailed(f"The keyring {keyring} does not exist or is not readable{advice}")
    inside = _CUSTOM_KEYRING + suffix(keyring) if definition.keyring else keyring
    return Archive(_lines(definition, distribution, architecture), keyring, inside)


def suffix(keyring: str) -> str:
    """Return the suffix by which apt recognizes the format of a keyring."""
    with open(keyring, "rb") as file:
        return ".asc" if file.read(len(_ARMOR)) == _ARMOR else ".gpg"


def _lines(definition: Definition, distribution: Distribution, architecture: str) -> tuple[str, ...]:
    if definition.sources:
        return tuple(line.partition(" ")[2] for line in definition.sources)
    components = " ".join(definition.components or distribution.components)
    if definition.mirror:
        return (f"{definition.mirror} {definition.release} {components}",)
    return _of_host(definition.release, distribution, components) or _official(
        definition.release, distribution, components, architecture
    )


def _of_host(release: str, distribution: Distribution, components: str) -> tuple[str, ...]:
    """Return the servers of the host's own packages, if they have the release itself."""
    try:
        listed = output(
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
            f"Origin: {distribution.origin}",
            "Component: main",
        )
    except CommandFailed:
        return ()
    found = set()
    for line in listed.splitlines():
        uri, _, suite = line.partition(" ")
        suffix = _suffix(suite)
        if suffix is not None and not uri.startswith("cdrom:") and not (suffix and release in _ROLLING):
            found.add((uri, f"{release}{suffix}"))
    if not any(suite == release for _, suite in found):
        return ()
    return tuple(f"{uri} {suite} {components}" for uri, suite in sorted(found))


def _suffix(suite: str) -> str | None:
    """Return what a suite of this host adds to its release's name, None for a suite of another release."""
    codename = _host_release()
    for suffix in _SUFFIXES:
        if codename and suite == f"{codename}{suffix}":
            return suffix
    return None


def _host_release() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            found = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', file.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _official(
    release: str, distribution: Distribution, components: str, architecture: str
) -> tuple[str, ...]:
    mirror, security = distribution.mirror, distribution.security
    if distribution.ports and architecture not in ("amd64", "i386"):
        mirror = security = distribution.ports
    if release in _ROLLING:
        return (f"{mirror} {release} {components}",)
    return tuple(
        f"{security if suffix == '-security' else mirror} {release}{suffix} {components}"
        for suffix in _SUFFIXES
    )


_SETTING = re.compile(r'Acquire::\S+ "[^"]+";')
_NOT_TAKEN = ("Acquire::IndexTargets", "Acquire::Allow")
"""What is decided here: the files to fetch, and that all of them are signed."""


def acquire_settings() -> str:
    """Return this host's way to its servers, such as proxies, for apt.conf."""
    dumped = output("apt-config", "dump").splitlines()
    return "".join(
        f"{line}\n" for line in dumped if _SETTING.fullmatch(line) and not line.startswith(_NOT_TAKEN)
    )
