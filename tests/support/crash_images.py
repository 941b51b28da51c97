"""Images of an image server that are downloaded and replaced by newer versions, which a kill may meet."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from tests.support.crash_steps import Step
from tests.support.image_server import ImageServer
from tests.support.images import Image

if TYPE_CHECKING:
    from tests.support.crash_world import World

ALIAS = "remote"


class RemoteImages:
    """One image, whose versions have the files of `versions` in turn."""

    def __init__(self, world: World, server: ImageServer, versions: tuple[Image, Image]) -> None:
        self._world, self._server = world, server
        self._versions = versions
        self._serials = count(20260101)
        self.operations: dict[str, Callable[[], Step]] = {
            "image download": self.download,
            "image refresh": self.refresh,
        }
        self._publish()
        world.others.add(server.url.removeprefix("https://"))

    def download(self) -> Step:
        """Import the newest version, which is not there before."""
        for fingerprint in self._found():
            self._world.daemon.do("DELETE", f"/1.0/images/{fingerprint}")

        def after(done: bool) -> None:
            assert len(self._found()) == 1 or not done, "an image was downloaded, and is lost"

        body = {"source": self._server.source("busybox"), "aliases": [{"name": ALIAS}]}
        return self._world.step("POST", "/1.0/images", body, after)

    def refresh(self) -> Step:
        """Replace the image by another version, which keeps its alias."""
        if not self._found():
            self._world.whole(self.download())
        (old,) = self._found()
        new = old
        while new == old:
            new = self._publish()

        def after(done: bool) -> None:
            (found,) = self._found()
            assert found == new or (found == old and not done), f"{old} became {found}, not {new}"

        return self._world.step("POST", f"/1.0/images/{old}/refresh", None, after)

    def _publish(self) -> str:
        serial = next(self._serials)
        return self._server.publish(self._versions[serial % 2], str(serial))

    def _found(self) -> list[str]:
        """The images with the alias."""
        images = self._world.daemon.get("/1.0/images?recursion=1")
        return [i["fingerprint"] for i in images if ALIAS in {alias["name"] for alias in i["aliases"]}]
