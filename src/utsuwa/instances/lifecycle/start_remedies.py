"""What users can do when liblxc fails to start a container, derived from its reason."""

from __future__ import annotations

import re

_REMEDIES = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (
            r'Failed to exec "([^"]+)"',
            "use an image of a complete system, which has {0}, or set lxc.init.cmd in 'raw.lxc' to its init",
        ),
        (r"Failed to run (lxc\.hook\.[a-z-]+) ", "correct the line {0} in 'raw.lxc', or remove it"),
        (r'Failed to mount "([^"]+)" on', "correct the lxc.mount.entry of {0} in 'raw.lxc', or remove it"),
        (
            r"Failed to setup sysctl parameters ([\w.-]+) to ",
            "unset linux.sysctl.{0}, which the container cannot set",
        ),
        (r"Failed to set limit (\w+)", "set a lower limits.kernel.{0}, or unset it"),
    )
)


def remedy(reason: str, name: str) -> str:
    """Return what to do about `reason`, the end of liblxc's log, for the instance `name`.

    Without a reason the container has started, so it is for its console to say why it ended.
    """
    if not reason:
        return f"look at its console (`utsuwa console --show-log {name}`)"
    for pattern, text in _REMEDIES:
        match = pattern.search(reason)
        if match:
            return text.format(*match.groups())
    return f"`utsuwa info {name} --show-log` shows the complete log"
