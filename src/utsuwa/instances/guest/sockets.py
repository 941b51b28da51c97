"""The sockets of the guest API, one for each running instance.

A socket lies in a directory of its own, which is mounted read-only into the instance. What connects there
comes from that instance: neither its process id nor anything that it sends says who it is. After a restart of
the daemon, a new socket replaces the old one in the same directory, where the instance finds it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from utsuwa.core.config_keys import parse_bool
from utsuwa.core.refs import InstanceRef
from utsuwa.devices import BindMount
from utsuwa.host.files.filetree import remove_tree

PLACES = ("/dev/lxd", "/dev/incus")
"""Where an instance finds the directory: software made for Incus looks in the second."""
_NAME = "sock"
_BACKLOG = 128
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FRESH = "."
"""How the names of sockets begin that are not in their directory yet."""


def is_enabled(config: Mapping[str, str]) -> bool:
    """Return whether an instance with this expanded config has the guest API."""
    return parse_bool(config.get("security.guestapi") or config.get("security.devlxd") or "true")


def offers_images(config: Mapping[str, str]) -> bool:
    """Return whether it can download images through the guest API."""
    return parse_bool(config.get("security.guestapi.images") or config.get("security.devlxd.images", ""))


class GuestSockets:
    """The listening sockets by instance.

    `make` and `remove` block; the other methods are for the event loop's thread.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listening: dict[InstanceRef, socket.socket] = {}
        self._on_close: list[Callable[[InstanceRef], None]] = []

    def on_close(self, listener: Callable[[InstanceRef], None]) -> None:
        """Call `listener` right before the socket of an instance is closed."""
        self._on_close.append(listener)

    def get(self, ref: InstanceRef) -> socket.socket | None:
        return self._listening.get(ref)

    def folder(self, ref: InstanceRef) -> Path:
        """The directory that is mounted into the instance; it exists as long as it is."""
        return self._root / ref.storage_name

    def make(self, ref: InstanceRef) -> list[BindMount]:
        """Listen for an instance, in its directory if that exists, and return the mounts for its start.

        Every user inside can connect; who connects is checked then. Raises OSError.
        """
        folder = self.folder(ref)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        folder.chmod(0o755)
        self._listening[ref] = self._bind(folder)
        return [BindMount(folder, place, read_only=True, create="dir") for place in PLACES]

    def _bind(self, folder: Path) -> socket.socket:
        """Return a listening socket, which is moved into the directory when it has its final mode.

        Paths begin at open directories, as addresses of sockets have at most 107 bytes, and the directory of
        a privileged instance may contain symlinks.
        """
        fresh = f"{_FRESH}{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            root, target = os.open(self._root, _FOLDER), os.open(folder, _FOLDER)
            stack.callback(os.close, root)
            stack.callback(os.close, target)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                listening.bind(f"/proc/self/fd/{root}/{fresh}")
                os.chmod(fresh, 0o666, dir_fd=root)  # noqa: PTH101 - below an open directory
                listening.listen(_BACKLOG)
                listening.setblocking(False)
                os.rename(fresh, _NAME, src_dir_fd=root, dst_dir_fd=target)  # noqa: PTH104
            except BaseException:
                listening.close()
                raise
            return listening

    def close(self, ref: InstanceRef) -> None:
        """Stop listening for an instance, whose directory stays; does nothing if nothing listens."""
        listening = self._listening.pop(ref, None)
        if listening is not None:
            for listener in self._on_close:
                listener(ref)
            listening.close()

    def close_all(self) -> None:
        for ref in list(self._listening):
            self.close(ref)

    def remove(self, ref: InstanceRef) -> None:
        """Remove the directory of an instance. Raises ProcessFailed."""
        remove_tree(self.folder(ref))

    def sweep(self) -> None:
        """Remove the sockets of interrupted calls of `make`. Blocking."""
        for path in self._root.glob(f"{_FRESH}*"):
            path.unlink(missing_ok=True)
