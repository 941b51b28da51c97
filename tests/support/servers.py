"""Two daemons that are remotes of each other's clients, for what is copied between servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support import tls
from tests.support.daemon import Daemon
from tests.support.images import Image

PASSWORD = "open"


@dataclass
class Servers:
    """`near` is `local:` and `near:` of the clients, `far` is `far:`."""

    near: Daemon
    far: Daemon

    def lxc(self, *words: str, check: bool = True) -> str:
        """Return stdout, or without `check` stderr."""
        ended = self.near.lxc(*words, check=check, timeout=120)
        return ended.stdout if check else ended.stderr

    def clean(self) -> None:
        for daemon in (self.near, self.far):
            daemon.delete_instances()
            daemon.delete_volumes()


def listen(daemon: Daemon) -> str:
    """Have a daemon serve HTTPS, with a trust password; return its address."""
    address = tls.free_address()
    config = {"core.https_address": address, "core.trust_password": PASSWORD}
    daemon.do("PATCH", "/1.0", {"config": config})
    return address


@contextmanager
def servers(
    near: Daemon, image: Image | None, *, driver: str = "overlay", env: Mapping[str, str] | None = None
) -> Iterator[Servers]:
    """Start a second daemon, whose pool has the driver; both get the image `busybox`, if it is given."""
    far = Daemon(env)
    problems = ["it was not closed"]
    try:
        far.start()
        far.make_defaults(driver)
        found = Servers(near, far)
        for name, daemon in (("near", near), ("far", far)):
            address = f"https://{listen(daemon)}"
            found.lxc("remote", "add", name, address, "--accept-certificate", "--password", PASSWORD)
            if image is not None:
                daemon.import_image(image.metadata, image.rootfs, alias="busybox")
        yield found
    finally:
        problems = far.close()
    assert problems == []
