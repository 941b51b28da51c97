"""What a daemon is for, on each database engine; and what PostgreSQL alone can do to it: be away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from tests.support.api import request
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def engine_daemon(request: pytest.FixtureRequest, busybox_image: Image) -> Iterator[Daemon]:
    """A daemon on one of the engines, with the image `busybox`."""
    arguments: tuple[str, ...] = ()
    if request.param == "postgres":
        server = cast(PostgresServer, request.getfixturevalue("postgres"))
        arguments = ("--database", server.new_database())
    yield from _serving(Daemon(arguments=arguments, warm=False), busybox_image)


def _serving(daemon: Daemon, image: Image) -> Iterator[Daemon]:
    try:
        daemon.start()
        daemon.make_defaults()
        daemon.import_image(image.metadata, image.rootfs, alias="busybox")
        yield daemon
    finally:
        problems = daemon.close()
    assert problems == []


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """One that the test may stop."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def remote_daemon(own_server: PostgresServer, busybox_image: Image) -> Iterator[Daemon]:
    """A daemon whose database the test may take away; its URL stands in `database.yaml`."""
    daemon = Daemon(warm=False)
    daemon.dir.mkdir()
    (daemon.dir / "database.yaml").write_text(f"url: {own_server.new_database()}\n")
    (daemon.dir / "database.yaml").chmod(0o600)
    yield from _serving(daemon, busybox_image)


def test_the_life_of_an_instance(engine_daemon: Daemon) -> None:
    lxc = engine_daemon.lxc
    lxc("launch", "busybox", "c1", "-c", "user.text=ü %s ?")
    assert lxc("exec", "c1", "--", "sh", "-c", "echo in $(hostname)").stdout == "in c1\n"
    assert lxc("list", "--format", "csv", "-c", "ns").stdout == "c1,RUNNING\n"
    assert lxc("config", "get", "c1", "user.text").stdout == "ü %s ?\n"
    lxc("stop", "-f", "c1")
    lxc("rename", "c1", "c2")
    lxc("start", "c2")
    lxc("delete", "-f", "c2")
    assert engine_daemon.get("/1.0/instances") == []


def test_profile_change_applies_to_running_instances(engine_daemon: Daemon) -> None:
    lxc = engine_daemon.lxc
    lxc("profile", "create", "small")
    lxc("launch", "busybox", "c1", "-p", "default", "-p", "small")
    lxc("profile", "set", "small", "limits.processes", "77")
    assert engine_daemon.get("/1.0/instances/c1")["expanded_config"]["limits.processes"] == "77"
    refused = lxc("profile", "delete", "small", check=False)
    assert "currently in use" in refused.stderr
    lxc("delete", "-f", "c1")
    lxc("profile", "delete", "small")


def test_killed_daemon_loses_no_state(engine_daemon: Daemon) -> None:
    engine_daemon.lxc("launch", "busybox", "stays")
    before = engine_daemon.get("/1.0/instances/stays")
    pid = engine_daemon.get("/1.0/instances/stays/state")["pid"]
    engine_daemon.kill()
    engine_daemon.start()
    assert engine_daemon.get("/1.0/instances/stays") == before
    assert engine_daemon.get("/1.0/instances/stays/state")["pid"] == pid
    engine_daemon.lxc("delete", "-f", "stays")


def test_concurrent_requests_do_not_interfere(engine_daemon: Daemon) -> None:
    """Of several creations with one name one succeeds; changes of different keys are all kept."""
    body = {"name": "twin", "source": {"type": "image", "alias": "busybox"}}

    def create(_: int) -> int:
        reply = engine_daemon.api("POST", "/1.0/instances", body)
        return reply.status if reply.status != 202 else int(engine_daemon.wait(reply)["status_code"])

    def change(n: int) -> int:
        reply = engine_daemon.api("PATCH", "/1.0/instances/twin", {"config": {f"user.{n}": "x"}})
        return reply.status

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(create, range(6))) == [200, 409, 409, 409, 409, 409]
        assert set(pool.map(change, range(12))) == {200}
    config = engine_daemon.get("/1.0/instances/twin")["config"]
    assert {key for key in config if key.startswith("user.")} == {f"user.{n}" for n in range(12)}
    engine_daemon.lxc("delete", "twin")


def test_daemon_continues_when_its_database_is_available_again(
    remote_daemon: Daemon, own_server: PostgresServer
) -> None:
    remote_daemon.lxc("launch", "busybox", "c1")
    pid = remote_daemon.get("/1.0/instances/c1/state")["pid"]
    own_server.stop()
    away = remote_daemon.api("GET", "/1.0/instances?recursion=1")
    assert away.status == 503
    assert "of PostgreSQL on" in away.error
    assert "cannot be reached" in away.error
    assert remote_daemon.api("POST", "/1.0/profiles", {"name": "p"}).status == 503
    assert Path("/proc", str(pid)).exists()
    ran = remote_daemon.do("POST", "/1.0/instances/c1/exec", {"command": ["sh", "-c", "exit 3"]})
    assert ran["return"] == 3
    own_server.start()
    assert remote_daemon.get("/1.0/instances/c1/state")["pid"] == pid
    assert remote_daemon.get("/1.0/profiles") == ["/1.0/profiles/default"]
    assert not (remote_daemon.dir / "database" / "utsuwa.db").exists()


def test_a_daemon_that_starts_without_its_database_waits_for_it(
    remote_daemon: Daemon, own_server: PostgresServer
) -> None:
    remote_daemon.lxc("launch", "busybox", "c1")
    pid = remote_daemon.get("/1.0/instances/c1/state")["pid"]
    remote_daemon.stop()
    own_server.stop()
    remote_daemon.start(wait=False)
    until(remote_daemon.socket.exists, 30)
    away = request(remote_daemon.socket, "GET", "/1.0")
    assert away.status == 503
    assert "cannot be reached" in away.error
    own_server.start()
    remote_daemon.wait_ready()
    assert remote_daemon.get("/1.0/instances/c1/state")["pid"] == pid


def test_daemon_that_waits_for_its_database_can_be_stopped(
    remote_daemon: Daemon, own_server: PostgresServer
) -> None:
    remote_daemon.stop()
    own_server.stop()
    remote_daemon.start(wait=False)
    until(remote_daemon.socket.exists, 30)
    assert remote_daemon.stop() == 1
    assert "stopped before the database was available" in remote_daemon.log_tail()
    assert not remote_daemon.socket.exists()
    own_server.start()
    remote_daemon.start()
