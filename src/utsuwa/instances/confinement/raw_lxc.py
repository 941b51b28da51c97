"""The config key `raw.lxc`: lines of the user's own for lxc.conf."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.scope import Policy
from utsuwa.instances.confinement.conf_lines import KEY, Pair, check_pair

_NEVER = (
    "lxc.cgroup.dir",
    "lxc.cgroup.relative",
    "lxc.ephemeral",
    "lxc.hook.version",
    "lxc.log.",
    "lxc.logfile",
    "lxc.loglevel",
    "lxc.prlimit.",
    "lxc.rootfs.managed",
    "lxc.rootfs.path",
    "lxc.uts.name",
)
"""Keys that the daemon relies on, or for which it has a config key."""
_UNPRIVILEGED_NEVER = ("lxc.idmap", "lxc.id_map", "lxc.include")
_RESTRICTED_MAY = ("lxc.environment", "lxc.init.cwd", "lxc.signal.", "lxc.start.", "lxc.sysctl.")


def check_raw_lxc(text: str, policy: Policy) -> None:
    """Raise InvalidConfig for lines of `raw.lxc` that the policy forbids; liblxc's parser checks the rest.

    Restricted callers can set a few harmless keys: no hooks, id maps, includes, AppArmor lines, mounts or
    devices. If only unprivileged instances are allowed, nobody can set id maps and includes.
    """
    for key, value in _parse_raw(text):
        refused = _NEVER + (_UNPRIVILEGED_NEVER if policy.unprivileged_only else ())
        if key.startswith(refused):
            raise InvalidConfig(
                f"The key {key!r} cannot be set in 'raw.lxc', as the daemon sets it itself: remove this line"
            )
        if policy.restricted and not key.startswith(_RESTRICTED_MAY):
            raise InvalidConfig(
                f"The key {key!r} in 'raw.lxc' is not allowed for restricted callers: remove this line"
            )
        if key.startswith("lxc.hook") and not value:
            raise InvalidConfig(f"'raw.lxc' cannot clear {key!r}: the daemon uses this hook")


def _parse_raw(text: str) -> Iterator[Pair]:
    """Parse keys and values as liblxc does: one per line, comments only at the beginning of a line."""
    for text_line in text.split("\n"):
        stripped = text_line.strip(" \t")
        if not stripped or stripped.startswith("#"):
            continue
        key, found, value = stripped.partition("=")
        key, value = key.rstrip(" \t"), value.strip(" \t")
        if not found or not KEY.match(key):
            raise InvalidConfig(f"Invalid line {stripped[:60]!r} in 'raw.lxc': use lxc.KEY = VALUE")
        check_pair(key, value)
        yield key, value


def raw_lines(text: str) -> str:
    """Return the lines of `raw.lxc` without comments; quotes are kept."""
    return "".join(f"{key} = {value}\n" for key, value in _parse_raw(text))
