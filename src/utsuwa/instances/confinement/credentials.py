"""Credentials for systemd in an instance (`systemd.credential.*`), which it passes on to its services.

Each is a file that only the instance's root can read. Init learns of their directory by an environment
variable that systemd defines for containers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.key_checks import from_base64
from utsuwa.devices import BindMount
from utsuwa.host.mounts.device_folder import DeviceFolder

FOLDER = "/dev/.lxc/credentials"
"""Inside: below a file system that liblxc mounts, and init does not."""
VARIABLE = "CREDENTIALS_DIRECTORY"

_TEXT, _BINARY = "systemd.credential.", "systemd.credential-binary."
_MAX_TOTAL = 2**20
"""Bytes of all credentials together that systemd accepts."""
_MAX_COUNT = 1000
"""Credentials of an instance, as each is a mount."""


def given(config: Mapping[str, str]) -> bool:
    """Whether an instance with this expanded config has credentials."""
    return any(value and key.startswith((_TEXT, _BINARY)) for key, value in config.items())


def check(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig if credentials exclude each other, are too many, or too large together."""
    found = _contents(config)
    if len(found) > _MAX_COUNT:
        raise InvalidConfig(f"An instance can have at most {_MAX_COUNT} credentials, not {len(found)}")
    total = sum(len(content) for content in found.values())
    if total > _MAX_TOTAL:
        raise InvalidConfig(
            f"The values of {_TEXT}* have {total} bytes together: systemd accepts at most {_MAX_TOTAL}"
        )


def mounts(config: Mapping[str, str], folder: DeviceFolder, idmap: IdMap) -> list[BindMount]:
    """Write the credentials into the device folder of an instance; return their mounts. Blocking."""
    shown = []
    for name, content in _contents(config).items():
        path = folder.path / f"credential-{name}"
        with open(path, "xb", opener=_private) as file:
            os.fchown(file.fileno(), idmap.host_uid(0), idmap.host_gid(0))
            file.write(content)
        shown.append(BindMount(path, f"{FOLDER}/{name}", read_only=True, create="file"))
    return shown


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)


def _contents(config: Mapping[str, str]) -> dict[str, bytes]:
    """Return the credentials by name. Raises InvalidConfig if one is given twice."""
    found: dict[str, bytes] = {}
    for key, value in sorted(config.items()):
        if not value or not key.startswith((_TEXT, _BINARY)):
            continue
        name = key.removeprefix(_TEXT).removeprefix(_BINARY)
        if name in found:
            raise InvalidConfig(f"{_TEXT + name!r} excludes {_BINARY + name!r}: set one of them only")
        found[name] = value.encode() if key.startswith(_TEXT) else from_base64(value)
    return found
