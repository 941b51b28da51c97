"""BPF for instances (`security.bpffs.*`): a file system that gives their processes tokens.

With a token, root of an unprivileged instance can do with BPF what was delegated, as root of the host could:
programs of some types see the whole host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidConfig, StartFailed
from utsuwa.core.threads import in_thread
from utsuwa.host import syscalls

if TYPE_CHECKING:
    from utsuwa.host.helper.mounting import Mounting
    from utsuwa.instances.model import Running

_PREFIX = "security.bpffs."
_DELEGATE = f"{_PREFIX}delegate_"
_PATH = f"{_PREFIX}path"
_DEFAULT_PATH = "/sys/fs/bpf"
FIRST = (6, 9)
"""The version of Linux that has tokens."""


def options(config: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the mount options of what is delegated by an expanded config."""
    return [
        (key.removeprefix(_PREFIX), value.replace(",", ":").replace(" ", ""))
        for key, value in sorted(config.items())
        if key.startswith(_DELEGATE) and value
    ]


def check(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig for a config that no host can satisfy."""
    if options(config) and parse_bool(config.get("security.privileged", "")):
        raise InvalidConfig(
            f"'{_DELEGATE}*' is for unprivileged instances only: unset it or security.privileged"
        )


async def check_host(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig if this host lacks what the config needs, or does not know a name in it."""
    wanted = options(config)
    if wanted:
        check_kernel(os.uname().release)
        await in_thread(_try, wanted)


def check_kernel(release: str) -> None:
    """Raise InvalidConfig if a version of Linux has no tokens."""
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is not None and tuple(map(int, version.groups())) < FIRST:
        raise InvalidConfig(
            f"'{_DELEGATE}*' needs Linux {'.'.join(map(str, FIRST))} or newer, and this host has {release}: "
            "unset the keys"
        )


def _try(wanted: Sequence[tuple[str, str]]) -> None:
    """Prepare a file system of the host's, which is never mounted."""
    context = syscalls.fsopen("bpf")
    try:
        for key, value in wanted:
            try:
                syscalls.fsconfig_string(context, key, value)
            except OSError as error:
                raise InvalidConfig(
                    f"'{_PREFIX}{key}' has a name that this kernel does not know, or it refuses to delegate "
                    f"that: {value[:60]!r}: {error.strerror}"
                ) from error
    finally:
        os.close(context)


async def mount(mounting: Mounting, running: Running) -> None:
    """Mount the file system in an instance that has just been started. Raises StartFailed."""
    wanted = options(running.config)
    if not wanted:
        return
    path = running.config.get(_PATH) or _DEFAULT_PATH
    try:
        await mounting.mount_bpf(running.inside(path), wanted)
    except (HostError, ProcessLookupError) as error:
        raise StartFailed(
            f"Failed to mount the BPF file system of {running.name!r} at {path}: {error}: set {_PATH} to a "
            f"directory in which mounts are possible, or unset '{_DELEGATE}*'"
        ) from error
