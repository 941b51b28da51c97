"""Rows with unknown codes, written by a newer version or by hand, are ignored, whatever their type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root


@pytest.fixture
def busybox(daemon: Daemon, busybox_image: Image) -> str:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    return "busybox"


def sql(daemon: Daemon, statement: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "utsuwa.daemon.main", "sql", "global", statement],
        env={"UTSUWA_DIR": str(daemon.dir)},
        check=True,
        capture_output=True,
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.iterdir()}


@pytest.mark.parametrize("column", ["state", "architecture"])
def test_an_instance_whose_row_is_not_understood_survives_a_restart(
    daemon: Daemon, busybox: str, column: str
) -> None:
    """An unknown state was read as `creating`, and the start of the daemon deleted the instance."""
    daemon.lxc("init", busybox, "odd")
    daemon.lxc("init", busybox, "fine")
    daemon.lxc("config", "set", "odd", "user.x", "kept")
    sql(daemon, f"UPDATE instances SET {column} = {column} + 90 WHERE name = 'odd'")
    daemon.restart()
    assert daemon.get("/1.0/instances") == ["/1.0/instances/fine"]
    assert [one["name"] for one in daemon.get("/1.0/instances?recursion=2")] == ["fine"]
    assert daemon.lxc("list", "-c", "n", "-f", "csv").stdout == "fine\n"
    told = [line for line in daemon.log.read_text().splitlines() if "Instance 'odd' of project" in line]
    assert len(told) == 1
    assert "is ignored" in told[0]
    for method, url, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("PUT", "/state", {"action": "start"}),
        ("PATCH", "", {"config": {}}),
    ):
        assert daemon.api(method, f"/1.0/instances/odd{url}", body).status == 503, method
    taken = daemon.lxc("init", "--empty", "odd", check=False)
    assert "already exists" in taken.stderr
    sql(daemon, f"UPDATE instances SET {column} = {column} - 90 WHERE name = 'odd'")
    daemon.lxc("start", "odd")
    assert daemon.lxc("config", "get", "odd", "user.x").stdout == "kept\n"


def test_a_running_container_runs_on(daemon: Daemon, busybox: str) -> None:
    """Its row says nothing that can be relied on, so the daemon neither stops it nor takes it over."""
    daemon.lxc("launch", busybox, "odd")
    pid = daemon.get("/1.0/instances/odd/state")["pid"]
    sql(daemon, "UPDATE instances SET state = 91")
    daemon.restart()
    assert daemon.get("/1.0/instances") == []
    assert Path(f"/proc/{pid}/root").exists()
    sql(daemon, "UPDATE instances SET state = 1")
    daemon.restart()
    state = daemon.get("/1.0/instances/odd/state")
    assert (state["status"], state["pid"]) == ("Running", pid)


def test_images_pools_and_networks_keep_their_files(daemon: Daemon, busybox: str) -> None:
    daemon.lxc("init", busybox, "one")
    pool, pictures = daemon.dir / "storage-pools" / "default" / "containers", daemon.dir / "images"
    before = files(pool), files(pictures)
    for table in ("images", "storage_pools_members", "profiles_devices"):
        column = "type" if table == "profiles_devices" else "state"
        sql(daemon, f"UPDATE {table} SET {column} = {column} + 90")
        daemon.restart()
        assert (files(pool), files(pictures)) == before, table
        sql(daemon, f"UPDATE {table} SET {column} = {column} - 90")
    daemon.restart()
    daemon.lxc("start", "one")
    assert len(daemon.get("/1.0/images")) == 1


def test_lists_omit_unknown_codes(daemon: Daemon, busybox: str) -> None:
    lists = ("instances", "images", "images/aliases", "profiles", "storage-pools", "networks", "certificates")
    sql(daemon, "UPDATE images SET type = 90")
    sql(daemon, "UPDATE storage_pools_members SET state = 90")
    sql(daemon, "UPDATE profiles_devices SET type = type + 90")
    for name in lists:
        for recursion in (0, 1):
            assert daemon.api("GET", f"/1.0/{name}?recursion={recursion}").status == 200, name
    assert daemon.get("/1.0/images") == daemon.get("/1.0/storage-pools") == daemon.get("/1.0/profiles") == []
    assert daemon.api("GET", "/1.0/profiles/default").status == 503
    assert daemon.api("GET", "/1.0/storage-pools/default").status == 503
    sql(daemon, "UPDATE images SET type = 0")
    sql(daemon, "UPDATE storage_pools_members SET state = 1")
    sql(daemon, "UPDATE profiles_devices SET type = type - 90")
