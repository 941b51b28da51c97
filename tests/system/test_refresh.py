"""Copies that are refreshed: what they get of their source, what they keep, and failures."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.long import usually

pytestmark = pytest.mark.root

POOLS = ["default", "dir"]
OWN = ("volatile.uuid", "volatile.eth0.hwaddr", "volatile.cloud-init.instance-id", "volatile.idmap.next")


@pytest.fixture(scope="module", autouse=True)
def second_pool(module_daemon: Daemon) -> None:
    module_daemon.do("POST", "/1.0/storage-pools", {"name": "dir", "driver": "dir", "config": {}})


@pytest.fixture
def source(shared_daemon: Daemon, busybox: str) -> Daemon:
    """The running instance c1 with the snapshots s1 and s2."""
    d = shared_daemon
    d.lxc("launch", busybox, "c1", "-c", "user.color=blue")
    for name in ("s1", "s2"):
        write(d, "c1", name)
        d.lxc("snapshot", "c1", name)
    write(d, "c1", "now")
    return d


def write(d: Daemon, name: str, text: str) -> None:
    d.lxc("exec", name, "--", "sh", "-c", f"echo {text} > /root/mark")


def mark(d: Daemon, name: str) -> str:
    """The mark of an instance, which is stopped after that."""
    if d.get(f"/1.0/instances/{name}")["status"] != "Running":
        d.lxc("start", name)
    text = d.lxc("exec", name, "--", "cat", "/root/mark").stdout.strip()
    if name != "c1":
        d.lxc("stop", name, "--force")
    return text


def snapshots(d: Daemon, name: str) -> list[tuple[str, str]]:
    found = d.get(f"/1.0/instances/{name}/snapshots?recursion=1")
    return [(snapshot["name"], snapshot["created_at"]) for snapshot in found]


def files(d: Daemon, pool: str) -> list[str]:
    folder = d.dir / "storage-pools" / pool
    found = [*folder.glob("containers/*"), *folder.glob("containers-snapshots/*/*")]
    return sorted(str(path.relative_to(folder)) for path in found)


def change_both(d: Daemon, copy: str) -> None:
    """Take a snapshot of the source, replace another one, delete the third; change the copy as well."""
    d.lxc("start", copy)
    write(d, copy, "own")
    d.lxc("stop", copy, "--force")
    d.lxc("snapshot", copy, "own")
    d.lxc("delete", "c1/s1")
    d.lxc("delete", "c1/s2")
    for name in ("s2", "s3"):
        write(d, "c1", f"new-{name}")
        d.lxc("snapshot", "c1", name)
    write(d, "c1", "later")


@pytest.mark.parametrize(
    ("client", "pool"),
    usually((("lxc", "dir"), ("utsuwa", "default")), itertools.product(("lxc", "utsuwa"), POOLS)),
)
def test_a_refreshed_copy_is_like_its_source(source: Daemon, client: str, pool: str) -> None:
    d = source

    def run(*arguments: str) -> None:
        if client == "lxc":
            d.lxc(*arguments)
        else:
            utsuwa_client(d, *arguments)

    run("copy", "c1", "c2", "--storage", pool, "--refresh")  # there is none yet
    assert snapshots(d, "c2") == snapshots(d, "c1")
    own = {key: d.get("/1.0/instances/c2")["config"][key] for key in OWN}
    assert own["volatile.eth0.hwaddr"] != d.get("/1.0/instances/c1")["config"]["volatile.eth0.hwaddr"]
    for _again in range(2):
        change_both(d, "c2")
        d.lxc("config", "set", "c1", "user.color", "red")
        run("copy", "c1", "c2", "--storage", pool, "--refresh")
        assert snapshots(d, "c2") == snapshots(d, "c1")
        copy = d.get("/1.0/instances/c2")
        assert copy["config"]["user.color"] == "red"
        assert {key: copy["config"][key] for key in OWN} == own
        assert mark(d, "c2") == mark(d, "c1") == "later"
        for name in ("s2", "s3"):
            d.lxc("restore", "c2", name)
            assert mark(d, "c2") == f"new-{name}"
        run("copy", "c1", "c2", "--storage", pool, "--refresh")
        assert mark(d, "c2") == "later"
        d.lxc("delete", "c1/s3")
        d.lxc("snapshot", "c1", "s1")
    d.lxc("delete", "c1", "--force")
    assert mark(d, "c2") == "later"
    assert files(d, pool) == ["containers-snapshots/c2/s2", "containers-snapshots/c2/s3", "containers/c2"]


def test_the_own_client_leaves_a_copy_on_its_pool(source: Daemon) -> None:
    """Whether the root disk of either is its own or that of a profile."""
    d = source
    for name, pool, original in (("c2", "dir", "c1"), ("c3", "default", "c2")):
        utsuwa_client(d, "copy", original, name, "--storage", pool)
        d.lxc("config", "set", original, "user.color", name)
        utsuwa_client(d, "copy", original, name, "--refresh")
        copy = d.get(f"/1.0/instances/{name}")
        assert copy["expanded_devices"]["root"]["pool"] == pool
        assert copy["config"]["user.color"] == name
    utsuwa_client(d, "copy", "c2", "c3", "--refresh", "--device", "root,user.x=y")
    assert d.get("/1.0/instances/c3")["devices"]["root"]["user.x"] == "y"
    for flags in (("--storage", "dir"), ("--device", "root,pool=spare")):
        done = utsuwa_client(d, "copy", "c2", "c3", "--refresh", *flags, check=False)
        assert "c3 is on the pool default" in done.stderr


@pytest.mark.parametrize("pool", usually(["default"], POOLS))
def test_without_snapshots(source: Daemon, pool: str) -> None:
    d = source
    d.lxc("copy", "c1", "c2", "--storage", pool)
    change_both(d, "c2")
    before = snapshots(d, "c2")
    d.lxc("copy", "c1", "c2", "--storage", pool, "--refresh", "--instance-only")
    assert mark(d, "c2") == "later"
    assert snapshots(d, "c2") == before


def test_bad_requests_change_nothing(source: Daemon) -> None:
    """Among them one for a running copy (lxd#17464, lxd#9165)."""
    d = source
    d.lxc("copy", "c1", "c2")
    d.lxc("start", "c2")

    def refresh(name: str, source: str) -> Any:
        body = {"name": name, "source": {"type": "copy", "source": source, "refresh": True}}
        return d.api("POST", "/1.0/instances", body)

    for name, source_, status, words in (
        ("c2", "c1", 400, "'c2' is running: stop it first to refresh it"),
        ("c1", "c1", 400, "cannot be refreshed from itself"),
        ("c2", "c1/s1", 400, "not from one of its snapshots"),
        ("c2", "none", 404, "Instance 'none' not found"),
        ("", "c1", 400, "name cannot be empty"),
    ):
        reply = refresh(name, source_)
        assert (reply.status, words in reply.error) == (status, True), reply.body
    failed = utsuwa_client(d, "copy", "c1", "c2", "--refresh", "--no-profiles", check=False)
    assert "--no-profiles cannot be used with --refresh" in failed.stderr
    failed = utsuwa_client(d, "copy", "c1/s1", "c2", "--refresh", check=False)
    assert "--refresh can only be used with instances" in failed.stderr


POINTS = [
    ("default", "after copy_volume"),
    ("default", "volume is moved away"),
    ("default", "snapshot is moved"),
    ("default", "before files are changed"),
    ("default", "before remove_replaced"),
    ("dir", "snapshot is moved"),
    ("dir", "before remove_replaced"),
]


@pytest.mark.parametrize(("pool", "point"), usually([POINTS[1], POINTS[4], POINTS[5]], POINTS))
def test_a_refresh_that_is_cut_off(
    source: Daemon, tmp_path_factory: pytest.TempPathFactory, pool: str, point: str
) -> None:
    """The copy is as before, or like its source, with all of its snapshots."""
    d, faults = source, Faults(tmp_path_factory.mktemp("faults"))
    d.lxc("copy", "c1", "c2", "--storage", pool)
    change_both(d, "c2")
    before = snapshots(d, "c2")
    d.env |= faults.env
    d.restart()
    body = {"name": "c2", "source": {"type": "copy", "source": "c1", "refresh": True}}
    with faults.kill_at(d, point):
        d.do("POST", "/1.0/instances", body)
    whole = point == "before remove_replaced"
    expected = snapshots(d, "c1") if whole else before
    assert snapshots(d, "c2") == expected
    found = [
        path for path in files(d, pool) if not path.startswith(("containers/c1", "containers-snapshots/c1"))
    ]
    assert found == sorted([*(f"containers-snapshots/c2/{name}" for name, _ in expected), "containers/c2"])
    assert mark(d, "c2") == ("later" if whole else "own")
    d.lxc("restore", "c2", "s2")
    assert mark(d, "c2") == ("new-s2" if whole else "s2")
    d.do("POST", "/1.0/instances", body)
    assert snapshots(d, "c2") == snapshots(d, "c1")
    assert mark(d, "c2") == "later"
