"""Images that are downloaded, replaced by newer versions and published, which a kill may meet."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.crash_steps import Request, Step
from tests.support.daemon import Daemon
from tests.support.image_server import ImageServer
from tests.support.images import Image

if TYPE_CHECKING:
    from tests.support.crash_world import World

ALIAS, PUBLISHED = "remote", "published"
UPDATE_SECONDS = 60.0


class Update(Request):
    """A start of the daemon, which then replaces an image by itself; it is begun by whoever makes this."""

    def __init__(self, daemon: Daemon, found: Callable[[], list[str]], wanted: str) -> None:
        super().__init__(daemon, "START", f"and the update of an image to {wanted[:12]}")
        self._process = daemon.process
        self._found, self._wanted = found, wanted

    def send(self) -> None:
        """Wait until the image has been replaced. Raises ConnectionResetError if the daemon has ended."""
        deadline = time.monotonic() + UPDATE_SECONDS
        while not self._updated():
            if self._process is None or self._process.poll() is not None:
                raise ConnectionResetError
            assert time.monotonic() < deadline, f"the image was not updated to {self._wanted}"
            time.sleep(0.02)

    def _updated(self) -> bool:
        try:
            return self._found() == [self._wanted]
        except (ConnectionRefusedError, FileNotFoundError):  # it does not listen yet, or no longer
            return False


class RemoteImages:
    """One image of a server, whose versions have the files of `versions` in turn, and a published one."""

    def __init__(self, world: World, server: ImageServer, versions: tuple[Image, Image]) -> None:
        self._world, self._server = world, server
        self._versions = versions
        self._serials = count(20260101)
        self.operations: dict[str, Callable[[], Step]] = {
            "image download": self.download,
            "image refresh": self.refresh,
            "image update at start": self.update,
            "image publish": self.publish,
        }
        self._publish()
        world.others.add(server.url.removeprefix("https://"))

    def download(self) -> Step:
        """Import the newest version, which is not there before."""
        self._delete(ALIAS)

        def after(done: bool) -> None:
            assert len(self._found(ALIAS)) == 1 or not done, "an image was downloaded, and is lost"

        body = {"source": self._server.source("busybox"), "aliases": [{"name": ALIAS}]}
        return self._world.step("POST", "/1.0/images", body, after)

    def refresh(self) -> Step:
        """Replace the image by another version, which keeps its alias."""
        old, new = self._outdated()

        def after(done: bool) -> None:
            (found,) = self._found(ALIAS)
            assert found == new or (found == old and not done), f"{old} became {found}, not {new}"

        return self._world.step("POST", f"/1.0/images/{old}/refresh", None, after)

    def update(self) -> Step:
        """Have the daemon replace the image by itself, as it does at its start, which is part of this."""
        daemon = self._world.daemon
        old, new = self._outdated()
        daemon.do("PATCH", f"/1.0/images/{old}", {"auto_update": True})
        daemon.stop()
        for document in (daemon.dir / "cache").iterdir():
            document.unlink()
        daemon.start(wait=False)

        def found() -> list[str]:
            return self._found(ALIAS)

        def after(done: bool) -> None:
            """What was cut off is done by the start after the kill."""
            Update(daemon, found, new).send()
            daemon.do("PATCH", f"/1.0/images/{new}", {"auto_update": False})

        return Step(Update(daemon, found, new), after)

    def publish(self) -> Step:
        """Make an image of an instance."""
        world = self._world
        name = world.have(running=False)
        self._delete(PUBLISHED)

        def after(done: bool) -> None:
            found = self._found(PUBLISHED)
            assert len(found) == 1 or not done, "an image was published, and is lost"

        body = {
            "source": {"type": "instance", "name": name},
            "aliases": [{"name": PUBLISHED}],
            "properties": {"name": PUBLISHED},
            "compression_algorithm": world.random.choice(("none", "gzip", "squashfs")),
        }
        return world.step("POST", "/1.0/images", body, after)

    def _outdated(self) -> tuple[str, str]:
        """Return the fingerprint of the image, and that of another version, which is the newest one now."""
        if not self._found(ALIAS):
            self._world.whole(self.download())
        (old,) = self._found(ALIAS)
        new = old
        while new == old:
            new = self._publish()
        return old, new

    def _publish(self) -> str:
        serial = next(self._serials)
        return self._server.publish(self._versions[serial % 2], str(serial))

    def _delete(self, alias: str) -> None:
        for fingerprint in self._found(alias):
            self._world.daemon.do("DELETE", f"/1.0/images/{fingerprint}")

    def _found(self, alias: str) -> list[str]:
        """The images with the alias."""
        images = self._world.daemon.get("/1.0/images?recursion=1")
        return [i["fingerprint"] for i in images if alias in {a["name"] for a in i["aliases"]}]


def damaged(folder: Path) -> list[str]:
    """Return the images in a directory whose files do not have their hash."""
    found = []
    for metadata in folder.iterdir():
        if "." not in metadata.name:
            parts = (path for path in (metadata, metadata.with_suffix(".rootfs")) if path.exists())
            data = b"".join(path.read_bytes() for path in parts)
            found += [metadata.name] if hashlib.sha256(data).hexdigest() != metadata.name else []
    return found
