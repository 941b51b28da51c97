"""The running state of containers: saved with a stop and in snapshots, restored, refused, and interrupted."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import criu
from tests.support.client import command, environment, utsuwa_client
from tests.support.daemon import Daemon
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.netbox import until
from tests.support.terminal import run_in_terminal

pytestmark = pytest.mark.root

COUNT = """
(i=0; while :; do i=$((i+1)); echo $i >/root/.new; mv /root/.new /root/count; sleep 0.02; done) \
    </dev/null >/dev/null 2>&1 &
"""


@pytest.fixture(scope="module")
def module_stateful(busybox_image: Image, faults: Faults) -> Iterator[Daemon]:
    """A daemon with CRIU, fault points, and the pools `default` (overlay) and `dir`."""
    daemon = Daemon(env=faults.env)
    try:
        daemon.start()
        criu.provide(daemon, criu.installed())
        daemon.make_defaults()
        daemon.do("POST", "/1.0/storage-pools", {"name": "dir", "driver": "dir", "config": {}})
        daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
        yield daemon
    finally:
        problems = daemon.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def d(module_stateful: Daemon) -> Iterator[Daemon]:
    yield module_stateful
    module_stateful.delete_instances()


def launch(d: Daemon, name: str = "c1", *arguments: str) -> None:
    """Start a container with a process that counts."""
    d.lxc("launch", "busybox", name, *arguments)
    d.lxc("exec", name, "--", "sh", "-c", COUNT)
    until(lambda: count(d, name) > 0)


def count(d: Daemon, name: str = "c1") -> int:
    return int(d.lxc("exec", name, "--", "sh", "-c", "cat /root/count || echo 0").stdout.strip() or 0)


def counts_on(d: Daemon, at_least: int, name: str = "c1") -> None:
    """Check that the process goes on, from a number on."""
    first = count(d, name)
    assert first >= at_least
    until(lambda: count(d, name) > first)


def shown(d: Daemon, name: str = "c1") -> tuple[str, bool]:
    instance = d.get(f"/1.0/instances/{name}")
    return instance["status"], instance["stateful"]


def folder(d: Daemon, name: str = "c1") -> Path:
    return d.dir / "containers" / name


def init_of(d: Daemon, name: str = "c1") -> int:
    return int(d.get(f"/1.0/instances/{name}/state")["pid"])


# ---- stopping and starting


def test_a_process_runs_on_where_it_was_stopped(d: Daemon) -> None:
    """Twice, as a restored container can be saved again, and with a restart of the daemon in between."""
    assert d.get("/1.0")["environment"]["kernel_features"]["criu"] == "true"
    launch(d)
    for _ in range(2):
        before = count(d)
        d.lxc("stop", "--stateful", "c1")
        assert shown(d) == ("Stopped", True)
        assert (folder(d) / "state").is_dir()
        frozen = (folder(d) / "layer" / "upper" / "root" / "count").read_text()
        d.restart()
        assert shown(d) == ("Stopped", True)
        d.lxc("start", "c1")
        assert shown(d) == ("Running", False)
        counts_on(d, max(before, int(frozen)))
        assert not (folder(d) / "state").exists()


def test_a_restored_container_reboots_and_powers_off(d: Daemon) -> None:
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "c1")
    before = init_of(d)
    d.lxc("exec", "c1", "--", "reboot", "-f", check=False)
    until(lambda: shown(d)[0] == "Running" and init_of(d) not in (0, before))
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "c1")
    d.lxc("exec", "c1", "--", "poweroff", "-f", check=False)
    until(lambda: shown(d) == ("Stopped", False))


def test_the_console_of_a_restored_container(d: Daemon) -> None:
    """It can be attached, also after a restart of the daemon, and what is printed is in the log."""
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "c1")
    d.restart()
    answer = "(read line; echo it-was-$line) </dev/console >/dev/console 2>&1 &"
    for _ in range(2):
        d.lxc("exec", "c1", "--", "sh", "-c", answer)
        typed = [("detach", "typed\r"), ("it-was-typed", "\x01q")]
        code, screen = run_in_terminal(command("console", "c1"), env=environment(d), typed=typed)
        assert code == 0, screen
    assert d.lxc("console", "--show-log", "c1").stdout.count("it-was-typed") == 2


def test_limits_apply_to_a_restored_container(d: Daemon) -> None:
    launch(d, "c1", "-c", "limits.processes=77", "-c", "limits.memory=64MiB", "-c", "limits.cpu=1")
    before = limits_of(d)
    assert "77" in before
    assert str(64 << 20) in before
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "c1")
    assert limits_of(d) == before


def limits_of(d: Daemon) -> list[str]:
    """Return the limits in the cgroups of either version, and the number of processors."""
    files = ["pids/pids.max", "pids.max", "memory/memory.limit_in_bytes", "memory.max"]
    names = " ".join(f"/sys/fs/cgroup/{file}" for file in files)
    return d.lxc("exec", "c1", "--", "sh", "-c", f"cat {names} 2>/dev/null; nproc").stdout.split()


def test_the_state_can_be_ignored(d: Daemon) -> None:
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "--stateless", "c1")
    assert shown(d) == ("Running", False)
    assert not (folder(d) / "state").exists()
    assert "sleep" not in d.lxc("exec", "c1", "--", "ps").stdout


def test_our_client_keeps_and_ignores_the_state(d: Daemon) -> None:
    run = partial(utsuwa_client, d)
    launch(d)
    before = count(d)
    run("stop", "--stateful", "c1")
    run("start", "c1")
    counts_on(d, before)
    run("stop", "--stateful", "c1")
    run("start", "--stateless", "c1")
    assert "sleep" not in d.lxc("exec", "c1", "--", "ps").stdout


# ---- snapshots


@pytest.mark.parametrize("pool", ["default", "dir"])
def test_a_snapshot_has_disk_and_memory_of_one_instant(d: Daemon, pool: str) -> None:
    launch(d, "c1", "-s", pool)
    before = count(d)
    d.lxc("snapshot", "--stateful", "c1", "warm")
    after = count(d)
    d.lxc("snapshot", "c1", "cold")
    stateful = {s["name"]: s["stateful"] for s in d.get("/1.0/instances/c1/snapshots?recursion=1")}
    assert stateful == {"warm": True, "cold": False}
    saved = d.dir / "storage-pools" / pool / "containers-snapshots" / "c1" / "warm" / "state"
    assert saved.is_dir()
    for _ in range(2):  # the images stay
        d.lxc("exec", "c1", "--", "sh", "-c", "echo later >/root/later")
        d.lxc("restore", "--stateful", "c1", "warm")
        assert shown(d) == ("Running", False)
        assert d.lxc("exec", "c1", "--", "ls", "/root").stdout.split() == ["count"]
        assert before <= count(d)
        counts_on(d, before)
    d.lxc("stop", "--force", "c1")
    d.lxc("restore", "--stateful", "c1", "warm")
    counts_on(d, before)
    assert after >= before
    refused = d.lxc("restore", "--stateful", "c1", "cold", check=False)
    assert "no running state" in refused.stderr
    d.lxc("copy", "c1/warm", "c2", "--stateless")
    assert shown(d, "c2") == ("Stopped", False)
    d.lxc("delete", "c1/warm")
    assert not saved.parent.exists()


# ---- refusals and failures


def unchanged(d: Daemon) -> None:
    """Check that c1 runs on, without files or rules of a failed attempt to save it."""
    assert shown(d) == ("Running", False)
    counts_on(d, 1)
    assert d.get("/1.0/instances/c1/snapshots") == []
    assert not [path.name for path in folder(d).iterdir() if path.name.startswith("state")]
    rules = ["nsenter", f"--net=/proc/{init_of(d)}/ns/net", "nft", "list", "tables"]
    assert "CRIU" not in subprocess.run(rules, capture_output=True, text=True, check=True).stdout


def test_a_container_that_cannot_be_saved_is_refused(d: Daemon) -> None:
    """The message names the process and what to do, and so does the preflight, without trying."""
    launch(d)
    assert d.get("/1.0/instances/c1/checkpoint") == {"possible": True, "criu": version(d), "obstacles": []}
    assert "can be saved" in utsuwa_client(d, "info", "--checkpoint", "c1").stdout
    d.lxc("exec", "c1", "--", "sh", "-c", "unshare -u sleep 1000 </dev/null >/dev/null 2>&1 &")
    for request in (("stop", "--stateful", "c1"), ("snapshot", "--stateful", "c1", "s")):
        refused = d.lxc(*request, check=False)
        assert refused.returncode != 0
        assert "(sleep) has namespaces of its own (uts): stop the process" in refused.stderr
    unchanged(d)
    seen = d.get("/1.0/instances/c1/checkpoint")
    assert not seen["possible"]
    assert [(o["process"], o["unit"], o["passing"]) for o in seen["obstacles"]] == [("sleep", "", False)]
    listed = utsuwa_client(d, "info", "--checkpoint", "c1", check=False)
    assert listed.returncode == 1
    assert "has namespaces of its own (uts)" in listed.stdout
    d.lxc("init", "busybox", "down")
    assert "not running" in d.get("/1.0/instances/down/checkpoint")["obstacles"][0]["reason"]


def version(d: Daemon) -> str:
    argv = [str(d.dir / "criu" / "criu"), "--version"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[1]


FAILING = """\
#!/bin/sh
# Fails to save containers, and leaves rules behind.
case "$*" in *--freeze-cgroup*)
    nsenter --net=/proc/$3/ns/net nft add table inet CRIU-0123
    echo "(00.1) Error (criu/files.c:1): Can't dump file 3 of that type [600] (chr 10:229)" >"$5/dump.log"
    exit 1
esac
exec {program} "$@"
"""


def test_a_criu_that_fails_leaves_nothing(d: Daemon) -> None:
    launch(d)
    installed = d.dir / "criu"
    target = installed.readlink()
    installed.unlink()
    installed.mkdir()
    (installed / "criu").write_text(FAILING.format(program=target / "criu"))
    (installed / "criu").chmod(0o755)
    try:
        refused = d.lxc("stop", "--stateful", "c1", check=False)
    finally:
        shutil.rmtree(installed)
        installed.symlink_to(target)
    assert "has opened a file that cannot be saved (chr 10:229)" in refused.stderr
    unchanged(d)


def test_what_has_no_running_state_to_save(d: Daemon) -> None:
    d.lxc("init", "busybox", "down")
    refused = d.api("POST", "/1.0/instances/down/snapshots", {"name": "s", "stateful": True})
    assert (refused.status, "not running" in refused.error) == (400, True)
    refused = d.api("PUT", "/1.0/instances/down/state", {"action": "start", "stateful": True})
    assert (refused.status, "no saved running state" in refused.error) == (400, True)
    refused = d.api("PUT", "/1.0/instances/down/state", {"action": "freeze", "stateful": True})
    assert (refused.status, "not kept" in refused.error) == (400, True)
    launch(d, "gone", "--ephemeral")
    refused = d.api("PUT", "/1.0/instances/gone/state", {"action": "stop", "stateful": True})
    assert (refused.status, "ephemeral" in refused.error) == (400, True)
    d.lxc("launch", "busybox", "root", "-c", "security.privileged=true")
    refused = d.api("PUT", "/1.0/instances/root/state", {"action": "stop", "stateful": True})
    assert (refused.status, "privileged" in refused.error) == (400, True)
    d.lxc("pause", "gone")
    refused = d.api("POST", "/1.0/instances/gone/snapshots", {"name": "s", "stateful": True})
    assert (refused.status, "frozen" in refused.error) == (400, True)


@pytest.mark.parametrize("old", [False, True])
def test_a_host_without_a_usable_criu(d: Daemon, old: bool) -> None:
    """Stateful requests say what to do, and so does a warning about instances that are prepared for them."""
    installed = d.dir / "criu"
    target = installed.readlink()
    installed.unlink()
    try:
        if old:
            installed.mkdir()
            (installed / "criu").write_text("#!/bin/sh\necho Version: 4.1.1\n")
            (installed / "criu").chmod(0o755)
        d.lxc("launch", "busybox", "c1", "-c", "migration.stateful=true")
        refused = d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        assert refused.status == 503
        assert "utsuwad criu install" in refused.error
        assert ("4.1.1" in refused.error) is old
        assert d.get("/1.0")["environment"]["kernel_features"]["criu"] == "false"
        warnings = [w for w in d.get("/1.0/warnings?recursion=1") if "CRIU" in w["last_message"]]
        assert [(w["entity_url"], w["status"]) for w in warnings] == [("/1.0/instances/c1", "new")]
    finally:
        shutil.rmtree(installed, ignore_errors=True)
        installed.symlink_to(target)
    d.lxc("restart", "--force", "c1")
    warnings = [w for w in d.get("/1.0/warnings?recursion=1") if "CRIU" in w["last_message"]]
    assert {w["status"] for w in warnings} == {"resolved"}


def damage_record(state: Path) -> None:
    (state / "utsuwa.json").write_text('{"version": 1, "mounts": ["../../etc"]}')


def remove_record(state: Path) -> None:
    (state / "utsuwa.json").unlink()


def cut_images(state: Path) -> None:
    for image in state.glob("*.img"):
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


def change_ids(state: Path) -> None:
    record = json.loads((state / "utsuwa.json").read_text())
    (state / "utsuwa.json").write_text(json.dumps(record | {"idmap": "[]"}))


def want_another_disk(state: Path) -> None:
    record = json.loads((state / "utsuwa.json").read_text())
    (state / "utsuwa.json").write_text(json.dumps(record | {"mounts": [*record["mounts"], "/mnt/disk"]}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_record, "damaged"),
        (remove_record, "no saved running state"),
        (cut_images, "Failed to restore"),
        (change_ids, "other ids"),
        (want_another_disk, "/mnt/disk"),
    ],
)
def test_a_state_that_cannot_be_restored(d: Daemon, damage: object, words: str) -> None:
    """The instance stays stopped with its state, and starts without it."""
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    assert callable(damage)
    damage(folder(d) / "state")
    refused = d.lxc("start", "c1", check=False)
    assert words in refused.stderr
    assert "--stateless" in refused.stderr
    assert shown(d) == ("Stopped", True)
    d.lxc("start", "--stateless", "c1")
    assert shown(d) == ("Running", False)


def test_devices_that_the_state_lacks(d: Daemon) -> None:
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    d.lxc("config", "device", "add", "c1", "eth1", "nic", "nictype=p2p", "name=eth1")
    refused = d.lxc("start", "c1", check=False)
    assert "eth1" in refused.stderr
    assert "network interfaces" in refused.stderr
    d.lxc("config", "device", "remove", "c1", "eth1")
    d.lxc("start", "c1")
    counts_on(d, 1)


def test_a_pool_without_room_for_the_state(d: Daemon, small_disk: Path) -> None:
    d.do(
        "POST",
        "/1.0/storage-pools",
        {"name": "small", "driver": "dir", "config": {"source": str(small_disk)}},
    )
    try:
        launch(d, "c1", "-s", "small")
        refused = d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        assert "free some space there" in d.wait(refused)["err"]
        seen = d.get("/1.0/instances/c1/checkpoint")
        assert [o["reason"][:14] for o in seen["obstacles"]] == ["the state may "]
        assert shown(d) == ("Running", False)
        counts_on(d, 1)
    finally:
        d.delete_instances()
        d.do("DELETE", "/1.0/storage-pools/small")


def test_what_becomes_of_the_state_of_a_stopped_instance(d: Daemon) -> None:
    """A rename keeps it, a rebuild and a restore discard it, and a move to another pool is refused."""
    launch(d)
    d.lxc("snapshot", "--stateful", "c1", "s")
    d.lxc("stop", "--stateful", "c1")
    refused = d.lxc("move", "c1", "-s", "dir", check=False)
    assert "has a saved running state" in refused.stderr
    d.lxc("move", "c1", "c2")
    d.lxc("start", "c2")
    counts_on(d, 1, "c2")
    d.lxc("restore", "--stateful", "c2", "s")
    counts_on(d, 1, "c2")
    utsuwa_client(d, "copy", "c2", "c3")
    utsuwa_client(d, "move", "c3", "-s", "dir")
    for name, stateful in (("c2", True), ("c3", False)):
        assert d.get(f"/1.0/instances/{name}/snapshots/s")["stateful"] is stateful
    for change in (("restore", "c2", "s"), ("rebuild", "busybox", "c2")):
        d.lxc("stop", "--stateful", "c2")
        utsuwa_client(d, *change)
        assert shown(d, "c2") == ("Stopped", False)
        assert not (folder(d, "c2") / "state").exists()
        d.lxc("start", "c2")


# ---- a daemon that is killed

SLOW = """\
#!/bin/sh
# Takes a while to save containers.
case "$*" in *--freeze-cgroup*) sleep 1.5 ;; esac
exec {program} "$@"
"""


def test_a_container_runs_on_if_the_daemon_dies_before_it_is_saved(d: Daemon) -> None:
    """CRIU works on, and would freeze the container again that the daemon has thawed."""
    launch(d)
    before = count(d)
    installed = d.dir / "criu"
    target = installed.readlink()
    installed.unlink()
    installed.mkdir()
    (installed / "criu").write_text(SLOW.format(program=target / "criu"))
    (installed / "criu").chmod(0o755)
    try:
        assert d.get("/1.0/instances/c1/checkpoint")["possible"]
        d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        until(lambda: (folder(d) / "state.new").exists())
        time.sleep(0.2)
        d.kill()
        d.start()
    finally:
        shutil.rmtree(installed)
        installed.symlink_to(target)
    unchanged(d)
    counts_on(d, before)


@pytest.mark.parametrize("point", ["running state saved", "saved state published", "saved state recorded"])
def test_a_container_runs_on_if_the_daemon_dies_while_it_is_saved(
    d: Daemon, faults: Faults, point: str
) -> None:
    launch(d)
    before = count(d)
    with faults.kill_at(d, point):
        d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        until(lambda: point in faults.reached())
        time.sleep(0.1)
    assert shown(d) == ("Running", False)
    counts_on(d, before)
    assert not [path.name for path in folder(d).iterdir() if path.name.startswith("state")]


def test_a_stop_is_completed_if_the_daemon_dies_after_it_was_recorded(d: Daemon, faults: Faults) -> None:
    launch(d)
    before = count(d)
    with faults.kill_at(d, "devices taken from killed container"):
        d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        until(lambda: "devices taken from killed container" in faults.reached())
        time.sleep(0.1)
    assert shown(d) == ("Stopped", True)
    d.lxc("start", "c1")
    counts_on(d, before)


def test_a_snapshot_is_undone_if_the_daemon_dies_meanwhile(d: Daemon, faults: Faults) -> None:
    launch(d)
    with faults.kill_at(d, "snapshot copied"):
        d.api("POST", "/1.0/instances/c1/snapshots", {"name": "s", "stateful": True})
        until(lambda: "snapshot copied" in faults.reached())
        time.sleep(0.1)
    assert d.get("/1.0/instances/c1/snapshots") == []
    counts_on(d, 1)


def test_a_state_is_kept_if_the_daemon_dies_before_it_is_restored(d: Daemon, faults: Faults) -> None:
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    with faults.kill_at(d, "state is about to be restored"):
        d.api("PUT", "/1.0/instances/c1/state", {"action": "start", "stateful": True})
        until(lambda: "state is about to be restored" in faults.reached())
        time.sleep(0.1)
    assert shown(d) == ("Stopped", True)
    d.lxc("start", "c1")
    counts_on(d, 1)


def test_a_restored_container_is_adopted_without_its_state(d: Daemon, faults: Faults) -> None:
    """The daemon dies when the container runs again, but this was not recorded yet."""
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    with faults.kill_at(d, "container started"):
        d.api("PUT", "/1.0/instances/c1/state", {"action": "start", "stateful": True})
        until(lambda: "container started" in faults.reached())
        time.sleep(0.1)
    assert shown(d) == ("Running", False)
    counts_on(d, 1)
    assert not (folder(d) / "state").exists()


# ---- systemd


@pytest.mark.debian
def test_a_debian_with_systemd(module_stateful: Daemon, debian_image: Image) -> None:
    """All of its services run on, and can be restarted, with `migration.stateful`."""
    d = module_stateful
    d.import_image(debian_image.metadata, debian_image.rootfs, alias="debian")
    d.lxc("launch", "debian", "d1", "-c", "migration.stateful=true")

    def status() -> str:
        return d.lxc("exec", "d1", "--", "systemctl", "is-system-running", check=False).stdout.strip()

    until(lambda: status() == "running", 60)
    d.restart()
    assert d.get("/1.0/instances/d1/checkpoint")["possible"]
    d.lxc("snapshot", "--stateful", "d1", "s")
    d.lxc("stop", "--stateful", "d1")
    d.lxc("start", "d1")
    assert status() == "running"
    restarted = "systemctl daemon-reload && systemctl restart systemd-logind && systemd-run --wait true"
    d.lxc("exec", "d1", "--", "sh", "-c", restarted)
    assert status() == "running"
    d.lxc("restore", "--stateful", "d1", "s")
    assert status() == "running"
    d.lxc("stop", "d1")
    d.lxc("delete", "d1")
