"""The seccomp policy and the AppArmor profile of a container."""

from __future__ import annotations

from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.refs import InstanceRef
from utsuwa.core.threads import in_thread
from utsuwa.instances.context import Context
from utsuwa.instances.identity import machine
from utsuwa.instances.lifecycle.device_host import device_folder
from utsuwa.instances.model import Loaded
from utsuwa.security import seccomp


def prepare_seccomp(ctx: Context, instance: Loaded) -> Path | None:
    """Write the policy for the next start; return None if no filter is configured. Blocking."""
    text = seccomp.policy(instance.expanded.config, machine())
    if text is None:
        return None
    return seccomp.write(ctx.paths.seccomp, instance.ref.storage_name, text)


async def load_apparmor(ctx: Context, instance: Loaded) -> list[tuple[str, str]]:
    """Load the profile; return its lines for lxc.conf, none if the kernel has no AppArmor."""
    config = instance.expanded.config
    return await ctx.apparmor.load(
        instance.ref.storage_name,
        privileged=parse_bool(config.get("security.privileged", "")),
        nesting=parse_bool(config.get("security.nesting", "")),
        raw=config.get("raw.apparmor", ""),
    )


async def remove(ctx: Context, instance: Loaded) -> None:
    """Remove both, and the device nodes, after the end of the container. Idempotent."""
    await ctx.apparmor.unload(instance.ref.storage_name)
    await in_thread(remove_files, ctx, instance.ref)


def remove_files(ctx: Context, ref: InstanceRef) -> None:
    """The part of `remove` that blocks."""
    ctx.apparmor.remove_files(ref.storage_name)
    seccomp.remove(ctx.paths.seccomp, ref.storage_name)
    device_folder(ctx.paths, ref).remove()
