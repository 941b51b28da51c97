"""The seccomp policy and the AppArmor profile of a container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.instances.confinement.lxcconf import SeccompPolicy
from utsuwa.instances.context import Context
from utsuwa.instances.identity import machine
from utsuwa.instances.lifecycle.device_host import device_folder
from utsuwa.instances.model import Loaded, Running
from utsuwa.security import interception, seccomp


def prepare_seccomp(ctx: Context, instance: Loaded) -> SeccompPolicy | None:
    """Write the policy for the next start; return None if no filter is configured. Blocking."""
    text = seccomp.policy(instance.expanded.config, machine())
    if text is None:
        return None
    path = seccomp.write(ctx.paths.seccomp, instance.ref.storage_name, text)
    if not seccomp.notifies(text):
        return SeccompPolicy(path)
    settings = None
    if interception.intercepts(instance.expanded.config, "mount"):
        settings = _settings(ctx, instance.ref)
        interception.write_settings(settings, instance.expanded.config)
    return SeccompPolicy(path, ctx.paths.interception_socket, settings)


def _settings(ctx: Context, ref: InstanceRef) -> Path:
    return ctx.paths.interception / ref.storage_name


async def change_running(ctx: Context, running: Running, new: Mapping[str, str], undo: Rollback) -> None:
    """Change what a running instance may mount to the expanded config `new`."""
    if all(running.config.get(key) == new.get(key) for key in interception.LIVE_KEYS):
        return
    undo.push(in_thread, write_settings_again, ctx, running.ref, running.config)
    await in_thread(write_settings_again, ctx, running.ref, new)


def write_settings_again(ctx: Context, ref: InstanceRef, config: Mapping[str, str]) -> None:
    """Replace what a running instance may mount, if its mounts are intercepted. Blocking."""
    settings = _settings(ctx, ref)
    if settings.exists():
        interception.write_settings(settings, config)


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
    """Remove both, the device nodes and the guest API, after the end of the container. Idempotent."""
    ctx.guest_sockets.close(instance.ref)
    await ctx.apparmor.unload(instance.ref.storage_name)
    await in_thread(remove_files, ctx, instance.ref)


def remove_files(ctx: Context, ref: InstanceRef) -> None:
    """The part of `remove` that blocks."""
    ctx.apparmor.remove_files(ref.storage_name)
    seccomp.remove(ctx.paths.seccomp, ref.storage_name)
    _settings(ctx, ref).unlink(missing_ok=True)
    device_folder(ctx.paths, ref).remove()
    ctx.guest_sockets.remove(ref)
