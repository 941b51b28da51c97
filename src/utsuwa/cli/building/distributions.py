"""The distributions that images are built of."""

from __future__ import annotations

from dataclasses import dataclass

_KEYRINGS = "/usr/share/keyrings"


@dataclass(frozen=True)
class Distribution:
    """A distribution's archive; `origin` is that of its Release files, `title` the property `os`."""

    title: str
    origin: str
    keyring: str
    package: str
    """What installs the keyring on a Debian or Ubuntu host."""
    components: tuple[str, ...]
    mirror: str
    security: str
    ports: str = ""
    """The mirror of architectures other than amd64 and i386, if that is another one."""


DISTRIBUTIONS = {
    "debian": Distribution(
        "Debian",
        "Debian",
        f"{_KEYRINGS}/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        ("main",),
        "http://deb.debian.org/debian",
        "http://security.debian.org/debian-security",
    ),
    "ubuntu": Distribution(
        "Ubuntu",
        "Ubuntu",
        f"{_KEYRINGS}/ubuntu-archive-keyring.gpg",
        "ubuntu-keyring",
        ("main", "universe"),
        "http://archive.ubuntu.com/ubuntu",
        "http://security.ubuntu.com/ubuntu",
        "http://ports.ubuntu.com/ubuntu-ports",
    ),
}
