"""The public site: its visitors' containers, terminals and tour, and what visitors may try to break."""

from __future__ import annotations

import contextlib
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import try_site
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.try_site import ROOT, Site, Visitor, asking, running

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def folder(module_daemon: Daemon, busybox_image: Image) -> Path:
    """The directory of a site that is set up."""
    return try_site.prepared(module_daemon, busybox_image, ready=1, sessions=3)


@pytest.fixture(scope="module")
def site(module_daemon: Daemon, folder: Path) -> Iterator[Site]:
    with running(module_daemon, folder) as site:
        yield site


def test_a_visitor_launches_a_container_in_the_terminal(site: Site) -> None:
    visitor = site.visitor()
    reply = visitor.begin()
    assert reply.status == 201, reply.body
    assert "HttpOnly" in reply.headers["set-cookie"]
    assert "SameSite=Strict" in reply.headers["set-cookie"]
    shown = visitor.session()
    assert (shown["id"], shown["state"], shown["done"]) == (reply.json["id"], "ready", [])
    assert visitor.check("launch") == {"done": False, "hint": "no-instance", "data": {}}
    terminal = visitor.terminal()
    terminal.type("utsuwa launch busybox first; echo status=$?\n")
    terminal.read_until("status=0")
    assert visitor.check("launch") == {"done": True, "hint": "", "data": {"name": "first"}}
    terminal.close()
    assert visitor.session()["done"] == ["launch"]
    assert visitor.send("DELETE", "/api/session").status == 200
    assert visitor.session()["state"] == "ended"


PRETEND_DOCKER = (
    "utsuwa exec box -- sh -c 'd=/var/lib/docker/containers/$(printf %064d 0); mkdir -p $d;"
    """ echo "{\\"State\\": {\\"StartedAt\\": \\"2026\\"}}" >$d/config.v2.json'"""
)
"""What Docker leaves of a container that has run; tests/system/test_try_docker.py has a real one."""

TOUR = {
    "launch": ("no-instance", "utsuwa launch busybox first"),
    "exec": ("no-exec", "utsuwa exec first -- sh -c 'echo hello >/root/note'"),
    "limits": ("no-limit", "utsuwa config set first limits.memory=64MiB"),
    "snapshot": ("no-snapshot", "utsuwa snapshot first before"),
    "restore": ("no-restore", "utsuwa restore first before"),
    "profile": (
        "no-profile",
        "utsuwa profile create small && utsuwa profile set small limits.processes=50"
        " && utsuwa profile add first small",
    ),
    "images": ("no-image", "utsuwa publish first/before --alias mine && utsuwa launch mine second"),
    "copy": ("no-copy", "utsuwa copy first twin"),
    "docker": ("no-docker", f"utsuwa launch busybox box -p default -p docker && {PRETEND_DOCKER}"),
}
"""Of each step, the hint before it is done, and what does it."""


def test_each_step_of_the_tour_is_done_by_its_command_and_not_before(site: Site) -> None:
    visitor = site.visitor()
    assert visitor.begin().status == 201
    assert [step["id"] for step in visitor.send("GET", "/api/tour").json] == list(TOUR)
    terminal = visitor.terminal()
    for number, (step, (hint, command)) in enumerate(TOUR.items()):
        assert visitor.check(step)["hint"] == hint
        terminal.type(f"{command}; echo status-{number}=$?\n")
        terminal.read_until(f"status-{number}=0")
        until(lambda step=step: visitor.check(step)["done"])
    terminal.close()
    assert visitor.session()["done"] == list(TOUR)
    visitor.send("DELETE", "/api/session")


def test_visitors_come_to_the_step_with_docker_one_after_the_other(site: Site) -> None:
    site.stop()
    site.start(docker_at_once=1, sessions_per_address=3)
    try:
        _come_to_docker(site, *(site.visitor() for _ in range(3)))
    finally:
        site.stop()
        site.start(docker_at_once=5, sessions_per_address=2)


def _come_to_docker(site: Site, first: Visitor, second: Visitor, third: Visitor) -> None:
    for visitor in (first, second, third):
        assert visitor.begin().status == 201
    assert first.ask_turn()["state"] == "turn"
    assert second.ask_turn() == {"state": "waiting", "ahead": 0, "most": 1}
    for _ in range(20):
        assert third.ask_turn() == {"state": "waiting", "ahead": 1, "most": 1}
    assert (site.metric("docker_turns"), site.metric("docker_waiting")) == (1, 2)

    # Who comes again, from elsewhere, has the same place.
    again = site.visitor()
    again.cookie = second.cookie
    assert again.ask_turn()["ahead"] == 0
    assert first.send("DELETE", "/api/session/turn").status == 200
    assert second.ask_turn()["state"] == "turn"
    assert first.ask_turn()["ahead"] == 1

    # With its session ends the turn of a visitor.
    second.send("DELETE", "/api/session")
    assert second.send("POST", "/api/session/turn").status == 404
    assert third.ask_turn()["state"] == "turn"

    # Without a turn, Docker can be run, and the step be done; with it, the turn ends after the instance.
    with asking(third, first), contextlib.closing(third.terminal()) as terminal:
        terminal.type(f"{TOUR['docker'][1]}; echo status-1=$?\n")
        terminal.read_until("status-1=0")
        until(lambda: third.check("docker")["done"])
        assert third.ask_turn()["state"] == "turn"
        assert first.ask_turn()["ahead"] == 0
        terminal.type("utsuwa delete --force box; echo status-2=$?\n")
        terminal.read_until("status-2=0")
        until(lambda: first.ask_turn()["state"] == "turn")
        assert third.ask_turn() == {"state": "done"}
    for visitor in (first, third):
        visitor.send("DELETE", "/api/session")
    assert (site.metric("docker_turns"), site.metric("docker_waiting")) == (0, 0)


def test_the_site_has_no_right_but_its_certificates(module_daemon: Daemon, site: Site, folder: Path) -> None:
    status = Path(f"/proc/{site.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "Groups:\t \n" in status
    assert (folder / "client.key").stat().st_mode & 0o777 == 0o600
    (trusted,) = module_daemon.get("/1.0/certificates?recursion=1")
    assert (trusted["restricted"], trusted["projects"]) == (True, ["try"])
    config = module_daemon.get("/1.0/profiles/default?project=try")["config"]
    assert config["security.devlxd"] == "false"


def test_it_can_be_set_up_again(module_daemon: Daemon, site: Site, folder: Path) -> None:
    """What is there is kept, and what is missing is added."""
    module_daemon.do("PATCH", "/1.0/profiles/default?project=try", {"config": {"limits.memory": "400MiB"}})
    (trusted,) = module_daemon.get("/1.0/certificates?recursion=1")
    module_daemon.do("DELETE", f"/1.0/certificates/{trusted['fingerprint']}")
    before = (folder / "try.yaml").read_text()
    done = try_site.run(module_daemon, "init", "--directory", str(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / "try.yaml").read_text() == before
    assert module_daemon.get("/1.0/certificates?recursion=1") == [trusted]
    config = module_daemon.get("/1.0/profiles/default?project=try")["config"]
    assert (config["limits.memory"], config["security.nesting"]) == ("400MiB", "true")
    project = module_daemon.get("/1.0/projects/try")["config"]
    most = 3 + 1 + 5
    assert project["limits.containers"] == str(most)
    assert project["limits.memory"] == str(most * 400 * 2**20)
    assert project["limits.processes"] == str(most * 500)


def test_the_image_can_be_a_fingerprint(module_daemon: Daemon, site: Site, folder: Path) -> None:
    fingerprint = module_daemon.get("/1.0/images/aliases/try")["target"][:20]
    site.stop()
    site.start(image=fingerprint)
    visitor = site.visitor()
    assert visitor.begin().status == 201
    visitor.send("DELETE", "/api/session")
    done = try_site.run(module_daemon, "init", "--directory", str(folder), "--image", "none")
    assert done.returncode == 0, done.stderr
    assert "as they were" in done.stdout


def test_without_an_image_nothing_is_set_up(module_daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    words = ("init", "--directory", str(folder), "--image", "none", "--project", "other")
    refused = try_site.run(module_daemon, *words)
    assert refused.returncode == 1
    assert "scripts/build-try-image" in refused.stderr
    assert not folder.exists()
    assert "/1.0/projects/other" not in module_daemon.get("/1.0/projects")


NEW_HOST = """
mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work none /etc
mount -t tmpfs -o mode=755 none /var/lib
echo made && exec sleep infinity
"""
"""Users and files that programs make are gone with the mount namespace."""


class NewHost:
    """This host without the site's files and user, on which `utsuwad try` is run."""

    def __init__(self, daemon: Daemon, pid: int) -> None:
        self._daemon = daemon
        self._prefix = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--"]
        self.root = Path(f"/proc/{pid}/root")
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*self._prefix, *before, sys.executable, "-m", "utsuwa.daemon.main", "try", *words]
        env = self._daemon.environment(UTSUWA_DIR=str(self._daemon.dir))
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what still runs."""
        for process in self._started:
            process.kill()
            process.communicate()

    def user(self, name: str) -> pwd.struct_passwd:
        lines = (self.root / "etc/passwd").read_text().splitlines()
        (fields,) = [line.split(":") for line in lines if line.startswith(f"{name}:")]
        return pwd.struct_passwd((*fields[:2], int(fields[2]), int(fields[3]), *fields[4:]))


@pytest.fixture
def new_host(daemon: Daemon) -> Iterator[NewHost]:
    command = ["unshare", "--mount", "sh", "-ec", NEW_HOST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "made\n"
            with contextlib.closing(NewHost(daemon, holder.pid)) as made:
                yield made
        finally:
            holder.kill()


def unit_rights() -> tuple[str, ...]:
    """Return a prefix that starts a program with the capabilities of the unit."""
    unit = (ROOT / "scripts/systemd/utsuwa-try.service").read_text()
    (kept,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    names = [f"+{name.removeprefix('CAP_').lower()}" for name in kept.split()]
    return ("setpriv", f"--bounding-set={','.join(['-all', *names])}", "--no-new-privs")


def site_answers() -> bool:
    """Whether a site answers at the default address."""
    with contextlib.suppress(OSError):
        return Visitor("127.0.0.1:8480").send("GET", "/api/site").status == 200
    return False


def test_it_makes_its_user_and_runs_as_that_with_the_rights_of_its_unit(
    daemon: Daemon, busybox_image: Image, new_host: NewHost
) -> None:
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="try")
    init = new_host.start("init")
    said, _ = init.communicate(timeout=try_site.SECONDS)
    assert init.returncode == 0, said
    assert "The site runs as the user utsuwa-try\n" in said
    user = new_host.user("utsuwa-try")
    assert (user.pw_dir, user.pw_shell) == ("/nonexistent", "/usr/sbin/nologin")
    etc, data = new_host.root / "etc/utsuwa-try", new_host.root / "var/lib/utsuwa-try"
    modes = {path.name: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in (etc, *etc.iterdir())}
    assert modes["utsuwa-try"] == (0, 0o755)
    assert modes["client.key"] == (0, 0o600)
    assert {uid for uid, _ in modes.values()} == {0}
    try_site.change_settings(etc, ready=0)  # the image is none of a site
    for _ in range(2):  # the second time, its files exist and are not root's
        site = new_host.start("--verbose", before=unit_rights())
        until(lambda site=site: site_answers() or site.poll() is not None, try_site.SECONDS)
        assert site.poll() is None, site.communicate()[0]
        status = Path(f"/proc/{site.pid}/status").read_text()
        uid, gid = user.pw_uid, user.pw_gid
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n" in status
        assert "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n" in status
        found = {
            path.name: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in (data, *data.iterdir())
        }
        assert found == {
            "utsuwa-try": (uid, 0o750),
            "feedback.jsonl": (uid, 0o640),
            "statistics.jsonl": (uid, 0o640),
        }
        site.send_signal(signal.SIGTERM)
        said, _ = site.communicate(timeout=try_site.SECONDS)
        assert site.returncode == 0, said
