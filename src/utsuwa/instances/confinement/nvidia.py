"""The host's NVIDIA libraries in an instance (`nvidia.runtime`).

NVIDIA's program mounts them; liblxc's hook for it passes on what the environment says. GPUs are devices of
the instance, which the keys here do not add.

The hook, a script of the shell, and the program run with the instance's root and environment, but outside of
its root file system, AppArmor profile and seccomp filter. No variable by which its owner could have them run
or load something else may therefore reach them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.threads import in_thread
from utsuwa.host.processes.run import PATH
from utsuwa.instances.confinement.conf_lines import Pair

HOOK = Path("/usr/share/lxc/hooks/nvidia")
_PROGRAM = "nvidia-container-cli"
_DEVICES = "NVIDIA_VISIBLE_DEVICES"
_CAPABILITIES = "compute,utility"
_REQUIRED = {
    "nvidia.require.cuda": "NVIDIA_REQUIRE_CUDA",
    "nvidia.require.driver": "NVIDIA_REQUIRE_DRIVER",
}
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_HARMLESS = frozenset({"HOME", "LANG", "TZ", "USER", *_PROXIES, *map(str.upper, _PROXIES)})
"""Variables of `environment.*` that neither choose what programs run or load nor what is mounted."""


def wanted(config: Mapping[str, str]) -> bool:
    """Whether an instance with this expanded config has these libraries."""
    return parse_bool(config.get("nvidia.runtime", ""))


def check(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig for a config that no host can satisfy."""
    if not wanted(config):
        return
    if parse_bool(config.get("security.privileged", "")):
        raise InvalidConfig(
            "'nvidia.runtime' is for unprivileged instances only: unset it or security.privileged"
        )
    for key in config:
        kind, _, name = key.partition(".")
        if kind == "environment" and name not in _HARMLESS and not name.startswith("LC_"):
            raise InvalidConfig(
                f"{key[:80]!r} cannot be set with 'nvidia.runtime', as NVIDIA's program on the host would "
                "get it too: set the variable inside the instance"
            )


async def check_host(config: Mapping[str, str]) -> None:
    """Raise InvalidConfig if this host lacks what the config needs."""
    if not wanted(config):
        return
    if await in_thread(shutil.which, _PROGRAM, path=PATH) is None:
        raise InvalidConfig(
            f"'nvidia.runtime' needs the program {_PROGRAM}, which this host does not have: install NVIDIA's "
            "package libnvidia-container-tools, or unset the key"
        )
    if not await in_thread(HOOK.exists):
        raise InvalidConfig(
            f"'nvidia.runtime' needs {HOOK}, which this host does not have: install Debian's package "
            "'lxc', or unset the key"
        )


def remedy(config: Mapping[str, str], reason: str) -> str:
    """Return what to do about liblxc's reason for a failed start; empty if that is about something else."""
    if not wanted(config) or "Failed to run mount hooks" not in reason:
        return ""
    return f"look whether `{_PROGRAM} info` succeeds on the host, or unset nvidia.runtime"


def environment(config: Mapping[str, str]) -> Iterator[Pair]:
    """Yield what the hook reads, as lines of lxc.conf."""
    if not wanted(config):
        return
    words = [word.strip() for word in (config.get("nvidia.driver.capabilities") or _CAPABILITIES).split(",")]
    variables = {
        _DEVICES: "none",
        # liblxc's hook knows `all` on its own only
        "NVIDIA_DRIVER_CAPABILITIES": "all" if "all" in words else ",".join(words),
        **{name: config[key] for key, name in _REQUIRED.items() if config.get(key)},
    }
    for name, value in variables.items():
        yield "lxc.environment", f"{name}={value}"
