"""The common part of disks other than the root disk: mounts inside, at the start or while running."""

from __future__ import annotations

from dataclasses import replace

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import HostError, InvalidConfig, UtsuwaError
from utsuwa.devices.base import BindMount, Device, DeviceHost, RunConfig
from utsuwa.host.files.filetree import FileTree

_FRESH = ("dev", "run")
"""Directories inside on which liblxc mounts a new tmpfs before it mounts devices."""
_KERNELS = ("proc", "sys")
"""Directories inside on which liblxc mounts file systems in which nothing can be created."""


def check_path(value: str) -> None:
    """Check a path inside, which may be relative to the root. Raises InvalidConfig."""
    if any(part in ("", ".", "..") for part in value.strip("/").split("/")):
        raise InvalidConfig("must be a path without '.' and '..', and not the root")


def inner_path(value: str) -> str:
    """Return the absolute form of a path inside."""
    return f"/{value.strip('/')}"


class InnerMount(Device):
    """A device that is mounted at `path` inside."""

    @property
    def place(self) -> tuple[str, ...]:
        return tuple(self.target.strip("/").split("/"))

    @property
    def target(self) -> str:
        return inner_path(self.config.get("path", ""))

    def flag(self, key: str, default: str = "false") -> bool:
        return parse_bool(self.config.get(key) or default)

    async def attached(self, host: DeviceHost) -> bool:
        return await host.container.mounted(self.target)

    async def attach_tree(self, host: DeviceHost, tree: int, propagation: int = 0) -> None:
        """Attach a detached mount in the running container. Raises InvalidConfig with the reason."""
        try:
            await host.container.mount(tree, self.target, propagation)
        except HostError as error:
            raise self.invalid("path", f"{self.target} cannot be mounted: {error.message}") from error

    async def detach(self, host: DeviceHost) -> RunConfig:
        await host.container.unmount(self.target)
        return RunConfig()

    def with_mount_point(self, host: DeviceHost, mount: BindMount, *, is_folder: bool) -> BindMount:
        """Create the mount point for a start, as liblxc might follow symlinks out of the container. Blocking.

        Returns `mount` with a target in which symlinks are resolved, as liblxc refuses them.
        Raises InvalidConfig.
        """
        above = max(
            (other for other in host.mounts if mount.target.startswith(f"{other.target}/")),
            key=lambda other: len(other.target),
            default=None,
        )
        if above is not None:
            path = self._make(host, above, mount.target.removeprefix(above.target), is_folder)
            return replace(mount, target=above.target + path)
        if _top(mount.target) not in (*_FRESH, *_KERNELS):
            mount = replace(mount, target=self._make(host, None, mount.target, is_folder))
        if _top(mount.target) in _FRESH:
            return replace(mount, create="dir" if is_folder else "file")
        return mount

    def _make(self, host: DeviceHost, above: BindMount | None, path: str, is_folder: bool) -> str:
        root = host.volume.rootfs if above is None else above.source
        try:
            with FileTree(root, host.idmap) as tree:
                return tree.make_mount_point(path, is_folder=is_folder)
        except UtsuwaError as error:
            raise self.invalid("path", f"{self.target} cannot be mounted: {error.message}") from error


def _top(path: str) -> str:
    return path.split("/")[1]
