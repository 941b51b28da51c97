"""Loading kernel modules by `modprobe`, which a container cannot do for itself."""

from __future__ import annotations

from pathlib import Path

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.core.threads import in_thread
from utsuwa.host.mounts.userns import in_user_namespace
from utsuwa.host.processes.run import run


async def load(value: str) -> None:
    """Load the modules of `linux.kernel_modules`, names separated by commas, and those that they need.

    The host's blacklist is respected. Where nothing can be loaded, because the kernel has everything built in
    or this is a container itself, they are taken for present: most that are built in cannot be seen.

    Raises HostError, with modprobe's reason, for one that cannot be loaded.
    """
    for name in await in_thread(missing, value) if value else ():
        try:
            await run(["modprobe", "--use-blacklist", "--", name])
        except ProcessFailed as error:
            reason = error.message.removeprefix("modprobe: modprobe: FATAL: ")
            raise HostError(
                f"The kernel module {name!r} of linux.kernel_modules was not loaded: {reason}"
            ) from error


def missing(value: str, root: Path = Path("/")) -> list[str]:
    """Return the names of modules that should be loaded. Blocking."""
    if not (root / "proc/modules").exists() or in_user_namespace():
        return []
    names = [name.strip() for name in value.split(",")]
    return [name for name in names if not (root / "sys/module" / name.replace("-", "_")).exists()]
