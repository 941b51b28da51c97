"""What confines a container beyond its namespaces: its seccomp policy and its AppArmor profile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.instances.confinement import nodes
from utsuwa.instances.context import Context
from utsuwa.instances.identity import machine
from utsuwa.instances.lifecycle.device_steps import devices_path
from utsuwa.instances.model import Loaded
from utsuwa.security import seccomp


def prepare_seccomp(ctx: Context, instance: Loaded) -> Path | None:
    """Write the policy for the next start; None where the settings ask for no filter. Blocking."""
    text = seccomp.policy(instance.expanded_config, machine())
    if text is None:
        return None
    return seccomp.write(ctx.paths.seccomp, instance.storage_name, text)


async def load_apparmor(ctx: Context, instance: Loaded) -> list[tuple[str, str]]:
    """Load the profile; gives its lines for lxc.conf, none where the kernel has no AppArmor."""
    config = instance.expanded_config
    return await ctx.apparmor.load(
        instance.storage_name,
        privileged=parse_bool(config.get("security.privileged", "")),
        nesting=parse_bool(config.get("security.nesting", "")),
        raw=config.get("raw.apparmor", ""),
    )


async def remove(ctx: Context, instance: Loaded) -> None:
    """Take away both after the container's end, and its device nodes; safe to repeat."""
    await ctx.apparmor.remove(instance.storage_name)
    await asyncio.to_thread(_remove_files, ctx, instance.storage_name)


def _remove_files(ctx: Context, storage_name: str) -> None:
    seccomp.remove(ctx.paths.seccomp, storage_name)
    nodes.remove(devices_path(ctx.paths, storage_name))
