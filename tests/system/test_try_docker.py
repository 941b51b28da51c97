"""The last step of the public site's tour, with Docker in visitors' containers, and its limits."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.stock.checks.limits import FILL_MEMORY
from tests.support import images, try_site
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.try_site import Site, Terminal, Visitor, running
from utsuwa.tryit.tour import BY_ID

pytestmark = [pytest.mark.root, pytest.mark.debian, pytest.mark.long, pytest.mark.timeout(1200)]

MIB = 2**20


class Guest:
    """A visitor at a terminal."""

    def __init__(self, site: Site) -> None:
        self.visitor: Visitor = site.visitor()
        assert self.visitor.begin().status == 201
        self.terminal: Terminal = self.visitor.terminal()
        self._number = 0

    def run(self, command: str, wanted: int | None = 0) -> str:
        """Run a command in the visitor's shell, and return what it prints; None accepts any exit status."""
        self._number += 1
        self.terminal.seen = ""
        # The text that is waited for is not in the command, which the terminal shows as well.
        self.terminal.type(f"{command}; echo en''ded-{self._number}=$?.\n")
        mark = f"ended-{self._number}={'' if wanted is None else f'{wanted}.'}"
        return self.terminal.read_until(mark)

    def leave(self) -> None:
        self.terminal.close()
        self.visitor.send("DELETE", "/api/session")


@pytest.fixture(scope="module")
def site(module_daemon: Daemon, busybox_image: Image) -> Iterator[Site]:
    docker = images.docker_of_visitors()
    folder = try_site.prepared(
        module_daemon, busybox_image, docker, ready=1, sessions=3, sessions_per_address=3
    )
    with running(module_daemon, folder) as site:
        yield site


@pytest.fixture
def guest(site: Site) -> Iterator[Guest]:
    found = Guest(site)
    yield found
    found.leave()


def used(site: Site, guest: Guest) -> int:
    """Return the memory of a visitor's container in bytes."""
    name = guest.visitor.session()["container"]
    state = site.daemon.get(f"/1.0/instances/{name}/state?project=try")
    return int(state["memory"]["usage"])


def test_the_commands_of_the_step_do_it(site: Site, guest: Guest) -> None:
    before = used(site, guest)
    launch, load, run, show = BY_ID["docker"].commands
    assert guest.visitor.check("docker")["hint"] == "no-docker"
    guest.run(launch)
    assert guest.visitor.check("docker") == {"done": False, "hint": "no-docker-run", "data": {"name": "box"}}
    guest.run(load)
    assert guest.visitor.check("docker")["hint"] == "no-docker-run"
    assert "hello from Docker\r\n" in guest.run(run)
    assert guest.visitor.check("docker") == {"done": True, "hint": "", "data": {"name": "box"}}
    assert "Exited (0)" in guest.run(show)
    assert "overlay2" in guest.run("utsuwa exec box -- docker info --format '{{.Driver}}'")
    assert used(site, guest) - before < 250 * MIB
    # The image takes no memory: what is written is the state, with what Docker has.
    shown = guest.run("df --block-size=M --output=used /var/lib/utsuwa")
    assert int(re.findall(r"\b(\d+)M", shown)[-1]) < 40
    guest.run("utsuwa delete --force box && utsuwa image delete docker")


def test_a_killed_docker_starts_again(guest: Guest) -> None:
    launch, load, run, _ = BY_ID["docker"].commands
    guest.run(f"{launch} && {load}")
    for _ in range(2):
        guest.run("utsuwa exec box -- sh -c 'kill -9 $(cat /run/docker.pid)'")
        assert "hello from Docker\r\n" in guest.run(run)
    guest.run("utsuwa restart box")
    assert "hello from Docker\r\n" in guest.run(run)
    assert guest.visitor.check("docker")["done"]


def test_limits_hold_in_a_container_of_docker(site: Site, guest: Guest) -> None:
    launch, load, _, _ = BY_ID["docker"].commands
    guest.run(f"{launch} && {load}")
    guest.run(f"utsuwa exec box -- docker run --memory 64m busybox {FILL_MEMORY}", wanted=137)
    # Without a limit of its own, and on the disk, it is stopped by those of the visitor's container.
    script = "i=0; while [ $i -lt 9 ]; do dd if=/dev/zero of=/fill$i bs=1M count=64; i=$((i+1)); done"
    guest.run(f"utsuwa exec box -- docker run --rm busybox sh -c '{script}'", wanted=None)
    until(lambda: guest.visitor.send("POST", "/api/session/steps/launch/check").status == 200)
    other = Guest(site)
    other.run("utsuwa launch busybox first")
    other.leave()
