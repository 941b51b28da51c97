"""What goes on in guests whose state was saved, restored and moved: the table of docs/running-state.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import guest_features, images, packages
from tests.support.daemon import Daemon
from tests.support.guest_features import ANYWHERE, PACKAGED, PACKAGES, PEER, SERVICES, SYSTEMD, Feature
from tests.support.hosts import Hosts, hosts
from tests.support.images import BUSYBOX, Image
from tests.support.long import LONG
from tests.support.netbox import until
from tests.support.networks import create

pytestmark = [pytest.mark.root, pytest.mark.debian, pytest.mark.timeout(900)]

SECONDS = 240
"""For a boot, a saved state, or all checks, on a busy machine."""


@dataclass(frozen=True)
class Guest:
    """A kind of guest, and what goes on in it."""

    features: dict[str, Feature]
    start: Callable[[Daemon, str, Path], None]
    """Start one of this name and wait for its boot; the directory is for files."""
    marks: tuple[pytest.MarkDecorator, ...] = ()


def busybox(d: Daemon, name: str, folder: Path) -> None:
    d.lxc("launch", "busybox", name, "-n", "br")
    _set_address(d, name)


def busybox_with_services(d: Daemon, name: str, folder: Path) -> None:
    unified = images.build_with_init(folder, "rc", guest_features.RC_INIT)
    d.import_image(unified, alias="rc")
    d.lxc("launch", "rc", name, "-n", "br")
    _set_address(d, name)


def _set_address(d: Daemon, name: str, address: str = "10.77.0.5") -> None:
    script = f"ip address add {address}/24 dev eth0; ip link set eth0 up"
    d.lxc("exec", name, "--", "sh", "-c", script)


def debian_12(d: Daemon, name: str, folder: Path) -> None:
    _start_debian(d, name, images.debian())


def debian_12_with_packages(d: Daemon, name: str, folder: Path) -> None:
    debian_12(d, name, folder)
    packages.install(d, name, images.debian(), PACKAGES)


def debian_13(d: Daemon, name: str, folder: Path) -> None:
    _start_debian(d, name, images.debian_13())


def _start_debian(d: Daemon, name: str, image: Image) -> None:
    alias = image.metadata.parent.name
    if d.api("GET", f"/1.0/images/aliases/{alias}").status == 404:
        d.import_image(image.metadata, image.rootfs, alias=alias)
    d.lxc("launch", alias, name, "-n", "br", "-c", "migration.stateful=true")
    d.lxc("file", "push", str(BUSYBOX), f"{name}/root/busybox")
    state = ("exec", name, "--", "systemctl", "is-system-running")
    until(lambda: d.lxc(*state, check=False).stdout == "running\n", SECONDS)


_LATER = (pytest.mark.long,)
GUESTS = {
    "busybox": Guest(ANYWHERE, busybox, _LATER),
    "busybox with services": Guest(ANYWHERE | SERVICES, busybox_with_services),
    "debian 12": Guest(ANYWHERE | SYSTEMD, debian_12),
    "debian 12 with packages": Guest(PACKAGED, debian_12_with_packages, _LATER),
    "debian 13": Guest(ANYWHERE | SYSTEMD, debian_13, _LATER),
}


def stop_and_start(both: Hosts) -> Daemon:
    both.near.lxc("stop", "--stateful", "guest", timeout=SECONDS)
    both.near.lxc("start", "guest", timeout=SECONDS)
    return both.near


def restore(both: Hosts) -> Daemon:
    both.near.lxc("restore", "--stateful", "guest", "s", timeout=SECONDS)
    return both.near


def move(both: Hosts) -> Daemon:
    both.lxc("move", "near:guest", "far:guest")
    return both.far


WAYS = {"stop": stop_and_start, "restore": restore, "move": move}
"""Ways of going on with a guest that has the stateful snapshot `s`, in the order of their use.

Each returns the daemon of the host on which it runs then.
"""

Said = dict[str, tuple[str, str]]
"""The status and the output of the checks by features."""


class Outcomes:
    """What the checks of each guest have said: each guest is run when it is first asked for."""

    def __init__(self, both: Hosts, folder: Path) -> None:
        self._both = both
        self._folder = folder
        self._said: dict[str, dict[str, Said]] = {}

    def of(self, guest: str) -> dict[str, Said]:
        """Return what was said at the beginning (`begin`), and after each way."""
        if guest not in self._said:
            self._said[guest] = {}
            self._run(GUESTS[guest], self._said[guest])
        assert self._said[guest].keys() >= WAYS.keys(), (
            "the guest did not get that far: see the first test of it"
        )
        return self._said[guest]

    def _run(self, guest: Guest, said: dict[str, Said]) -> None:
        d = self._both.near
        guest.start(d, "guest", self._folder)
        try:
            seen = d.get("/1.0/instances/guest/checkpoint")
            assert seen["possible"], seen["obstacles"]
            script = guest_features.begin(guest.features)
            d.lxc("exec", "guest", "--", "bash" if guest.features.get("systemd") else "sh", input=script)
            said["begin"] = _check(d, guest, "begin")
            d.lxc("snapshot", "--stateful", "guest", "s", timeout=SECONDS)
            for way, take in WAYS.items():
                d = take(self._both)
                said[way] = _check(d, guest, way)
        finally:
            d.lxc("delete", "--force", "guest")


def _check(d: Daemon, guest: Guest, way: str) -> Said:
    script = guest_features.check(guest.features, way, long=LONG)
    shell = "bash" if guest.features.get("systemd") else "sh"
    lines = d.lxc("exec", "guest", "--", shell, input=script, timeout=SECONDS).stdout.splitlines()
    found = (line.split("|", 2) for line in lines)
    return {name: (status, text) for name, status, text in found}


@pytest.fixture(scope="module")
def outcomes(busybox_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    with hosts(busybox_image) as both:
        _connect(both)
        d = both.near
        d.lxc("launch", "busybox", "peer", "-n", "br")
        _set_address(d, "peer", PEER)
        d.lxc("exec", "peer", "--", "sh", "-c", "nc -ll -p 5000 -e cat </dev/null >/dev/null 2>&1 &")
        yield Outcomes(both, tmp_path_factory.mktemp("guests"))
        both.clean()


def _connect(both: Hosts) -> None:
    """Make a network of both hosts, whose addresses the near one gives out."""
    addresses = {"ipv4_address": "10.77.0.1/24", "ipv4_dhcp_ranges": "10.77.0.100-10.77.0.150"}
    create(both.near, "br", ipv6_address="none", **addresses)
    create(both.far, "br", ipv4_address="none", ipv6_address="none")
    boxes = [daemon.box for daemon in (both.near, both.far) if daemon.box is not None]
    near, far = (str(box.pid) for box in boxes)
    both.switch.run(
        "ip", "link", "add", "cable", "netns", near, "type", "veth", "peer", "cable", "netns", far
    )
    for box in boxes:
        box.run("ip", "link", "set", "cable", "master", "br", "up")


CASES = [
    pytest.param(name, feature, way, id=f"{name}-{feature}-{way}", marks=guest.marks)
    for name, guest in GUESTS.items()
    for feature in guest.features
    for way in WAYS
]


@pytest.mark.parametrize(("guest", "feature", "way"), CASES)
def test_it_goes_on(outcomes: Outcomes, guest: str, feature: str, way: str) -> None:
    """As before, and with the same processes."""
    said = outcomes.of(guest)
    before = said["begin"][feature]
    assert before[0] == "0", f"it did not even work before: {before[1]}"
    assert said[way][feature] == before
