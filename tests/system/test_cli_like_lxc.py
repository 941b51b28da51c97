"""`utsuwa` prints what Debian's `lxc` prints at the same daemon, character by character."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.support.client import environment, utsuwa_client
from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

LISTS = ("list", "image list", "image alias list", "profile list", "storage list", "network list")
MORE_LISTS = ("project list", "config trust list", "storage volume list default")


@pytest.fixture(scope="module")
def full(module_daemon: Daemon, busybox: str) -> Daemon:
    """A daemon with something of everything."""
    d = module_daemon
    d.lxc("launch", busybox, "c1")
    d.lxc("init", busybox, "c10", "-c", "user.owner=ann", "-c", "user.lines=a\nb")
    d.lxc("init", busybox, "c2", "--ephemeral", "-c", "user.odd=yes")
    d.lxc("image", "alias", "create", "bb", d.get("/1.0/images")[0].rsplit("/", 1)[1])
    d.lxc("profile", "create", "big")
    d.lxc("profile", "set", "big", "user.quote", 'a "b", c')
    d.lxc("profile", "assign", "c10", "default,big")
    d.lxc("config", "set", "user.something=x: y")
    d.lxc("project", "create", "web", "-c", "limits.memory=1GiB", "-c", "limits.containers=5")
    return d


def both(daemon: Daemon, *arguments: str) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
    """Exit status, output and errors of `lxc` and of `utsuwa`."""
    theirs = subprocess.run(
        ["lxc", *arguments],
        env=environment(daemon),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = utsuwa_client(daemon, *arguments, check=False)
    return (theirs.returncode, theirs.stdout, theirs.stderr), (ours.returncode, ours.stdout, ours.stderr)


@pytest.mark.parametrize("style", ["table", "csv", "compact"])
@pytest.mark.parametrize("listing", LISTS + MORE_LISTS)
def test_listings(full: Daemon, listing: str, style: str) -> None:
    theirs, ours = both(full, *listing.split(), "--format", style)
    assert theirs[0] == 0, theirs[2]
    assert ours == theirs


@pytest.mark.parametrize("listing", LISTS + MORE_LISTS)
def test_listings_as_data(full: Daemon, listing: str) -> None:
    theirs, ours = both(full, *listing.split(), "--format", "json")
    assert theirs[0] == 0, theirs[2]
    known, found = json.loads(theirs[1]), json.loads(ours[1])
    assert len(known) == len(found)
    for record, shown in zip(known, found, strict=True):
        fields = [name for name in shown if name in record]  # lxc leaves out what it does not know
        assert fields == list(record)
        record.pop("state", None)
        assert {name: shown[name] for name in record} == record


def test_the_hardware_of_the_host(full: Daemon) -> None:
    """But for the memory in use, and the speeds of processors, which change meanwhile."""
    theirs, ours = both(full, "info", "--resources")
    assert theirs[0] == ours[0] == 0
    changing = re.compile(r"^ *(?:Free|Used|Frequency): .*$", re.MULTILINE)
    assert changing.sub("", ours[1]) == changing.sub("", theirs[1])
    assert "CPU" in ours[1]


@pytest.mark.parametrize(
    "arguments",
    [
        "list --fast",
        "list --all-projects",
        "list -c nsacPtdelbfF",
        "list -c n,user.owner:OWNER,devices:root.pool,user.owner::2",
        "list c1",
        "list c1$",
        "list u.owner=ann",
        "list status=stopped type=container -f csv",
        "list -c nL",
        "list -c nZ",
        "list zz=1",
        "list -f yaml user.owner=ann",
        "image list os=BusyBox -c lLfFpast",
        "image list nothing",
        "image show busybox",
        "image get-property busybox os",
        "image get-property busybox none",
        "image info none",
        "profile show big",
        "profile show none",
        "profile get big user.quote",
        "profile device list default",
        "profile device show default",
        "profile device get default root pool",
        "config show c10",
        "config show c10 --expanded",
        "config show",
        "config get c10 user.owner",
        "config get c10 user.lines",
        "config get c10 none.such",
        "config get user.something",
        "config device list c1",
        "config device show c1",
        "config device get c1 root pool",
        "config device override c1 none",
        "config device remove c1 root",
        "config unset c10 user.none",
        "config set c10 bad.key=1",
        "storage show default",
        "storage info none",
        "storage get default source",
        "storage volume list none",
        "project show default",
        "project show web",
        "project info web",
        "project info web --format csv",
        "project info none",
        "project get web limits.memory",
        "project get web none",
        "project create web",
        "project create a_b",
        "project set web bad.key=1",
        "project set web limits.memory=10%",
        "project unset web user.none",
        "project rename web default",
        "project rename default x",
        "project delete default",
        "project delete none",
        "profile list --project web",
        "list --project none",
        "project switch none",
        "operation show none",
        "network show none",
        "query /1.0/instances",
        "query --raw /1.0/profiles",
        "query /1.0/none",
        "console --show-log c1",
        "remote get-default",
        "delete c1",
        "stop c10",
        "rename c1 c3",
        "launch none x",
        "profile delete default",
        "profile create big",
        "profile remove c10 none",
        "storage delete default",
        "exec c10 -- true",
        "exec c1 -- sh -c exit",
        "exec c1 -- none",
        "exec c1 -- /etc",
        "config trust show abc",
        "foo",
        "profile foo",
        "list --bogus",
        "list -x",
    ],
)
def test_answers(full: Daemon, arguments: str) -> None:
    theirs, ours = both(full, *arguments.split(" "))
    if arguments.endswith("foo"):
        theirs = (theirs[0], theirs[1], theirs[2].replace("lxc", "utsuwa"))
    if "device list" in arguments:  # `lxc` has devices in any order
        ours, theirs = _in_order(ours), _in_order(theirs)
    assert ours == theirs


def _in_order(answer: tuple[int, str, str]) -> tuple[int, str, str]:
    status, output, errors = answer
    return status, "".join(sorted(output.splitlines(keepends=True))), errors


def test_unknown_format(full: Daemon) -> None:
    theirs, ours = both(full, "list", "-f", "odd")
    assert ours[0] == theirs[0]
    assert ours[2].startswith(theirs[2].strip())


def test_info_of_an_image(full: Daemon) -> None:
    """`lxc` has the properties in any order."""
    theirs, ours = both(full, "image", "info", "busybox")
    assert sorted(ours[1].splitlines()) == sorted(theirs[1].splitlines())


def test_info_of_an_instance(full: Daemon) -> None:
    """`lxc` has interfaces in any order, no id maps and no use of disks: its lines are all in ours."""
    theirs, ours = both(full, "info", "c10")
    assert (ours[0], ours[2]) == (theirs[0], theirs[2])
    before, _, after = ours[1].partition("Id map:\n")
    assert before + "".join(line for line in after.splitlines(keepends=True) if line[0] != " ") == theirs[1]
    theirs, ours = both(full, "info", "c1")
    moving = ("Memory", "Bytes", "Packets", "Swap", "CPU usage (in")
    known = {line for line in theirs[1].splitlines() if not line.strip().startswith(moving)}
    assert known <= set(ours[1].splitlines())
    assert both(full, "info")[0] == both(full, "info")[1]
