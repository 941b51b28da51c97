"""The running state of containers: saved with a stop and in snapshots, restored, refused, and interrupted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import criu, leaks
from tests.support.client import command, environment, utsuwa_client
from tests.support.daemon import Daemon
from tests.support.disks import loop_ext4
from tests.support.faults import Faults
from tests.support.images import Image
from tests.support.long import LONG
from tests.support.netbox import until
from tests.support.terminal import run_in_terminal
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.app import owner_name

pytestmark = pytest.mark.root

COUNT = """
(i=0; while :; do i=$((i+1)); echo $i >/root/.new; mv /root/.new /root/count; sleep 0.02; done) \
    </dev/null >/dev/null 2>&1 &
"""

IN_OTHER_NAMESPACE = """
own() { readlink /proc/$1/ns/uts; }
unshare -u sleep 1000 </dev/null >/dev/null 2>&1 &
until grep -q sleep /proc/$!/comm && [ "$(own $!)" != "$(own $$)" ]; do sleep 0.1; done
"""
"""Has a process be in one, and waits until it is."""


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
    """Both clients attach, detach and attach again, also after a restart of the daemon; a log is kept."""
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "c1")
    d.restart()
    # `lxc` takes both keys only if they come one after the other.
    # Either of them may be late, so they are typed again and again.
    later = "while [ -e /root/more ]; do sleep 0.5; echo later; done"
    answer = f"touch /root/more; (read line; echo it-was-$line; {later}) </dev/console >/dev/console 2>&1 &"
    keys = 50 * [("later", "q"), ("later", "\x01")]
    clients = [(command(), environment(d)), (["lxc"], d.lxc_environment())]
    for argv, env in 2 * clients:
        d.lxc("exec", "c1", "--", "sh", "-c", answer)
        typed = [("detach", "typed\r"), ("it-was-typed", "\x01"), *keys]
        code, screen = run_in_terminal([*argv, "console", "c1"], env=env, typed=typed, timeout=60)
        assert code == 0, screen
        d.lxc("exec", "c1", "--", "rm", "/root/more")
    assert d.lxc("console", "--show-log", "c1").stdout.count("it-was-typed") == 4


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


def test_both_clients_keep_and_ignore_the_state(d: Daemon) -> None:
    run = partial(utsuwa_client, d)
    launch(d)
    before = count(d)
    run("stop", "--stateful", "c1")
    run("start", "c1")
    counts_on(d, before)
    for client in (run, d.lxc):
        client("stop", "--stateful", "c1")
        client("start", "--stateless", "c1")
        assert shown(d) == ("Running", False)
        assert not (folder(d) / "state").exists()
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


def test_what_waits_for_a_stateful_stop(d: Daemon) -> None:
    """It has the lock before what cleans up after the container: there are files, but no processes."""
    launch(d)
    stop = d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
    url = "/1.0/instances/c1/snapshots"
    warm, cold = (
        d.api("POST", url, {"name": n, "stateful": s}) for n, s in (("warm", True), ("cold", False))
    )
    pause = d.api("PUT", "/1.0/instances/c1/state", {"action": "freeze"})
    assert d.wait(stop)["err"] == ""
    assert d.wait(warm)["err"] == "The instance 'c1' has ended meanwhile: its state was not saved"
    assert d.wait(cold)["err"] == ""
    assert "has ended meanwhile" in d.wait(pause)["err"]
    assert [s["name"] for s in d.get(f"{url}?recursion=1")] == ["cold"]
    d.lxc("start", "c1")
    counts_on(d, 1)


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
    d.lxc("exec", "c1", "--", "sh", "-c", IN_OTHER_NAMESPACE)
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
    d.lxc("exec", "c1", "--", "sh", "-c", "kill $(pidof sleep); ip link add link eth0 name m0 type macvlan")
    refused = d.lxc("stop", "--stateful", "c1", check=False)
    assert "the network interface m0 is of the type macvlan: remove m0" in refused.stderr
    d.lxc("init", "busybox", "down")
    assert "not running" in d.get("/1.0/instances/down/checkpoint")["obstacles"][0]["reason"]


def version(d: Daemon) -> str:
    argv = [str(d.dir / "criu" / "criu"), "--version"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[1]


@contextmanager
def replaced(d: Daemon, script: str) -> Iterator[None]:
    """Have a shell script take the place of CRIU, whose path is its variable `criu`."""
    installed = d.dir / "criu"
    target = installed.readlink()
    installed.unlink()
    installed.mkdir()
    program = installed / "criu"
    program.write_text(f"#!/bin/sh\ncriu={target / 'criu'}\n{script}")
    program.chmod(0o755)
    try:
        yield
    finally:
        shutil.rmtree(installed)
        installed.symlink_to(target)


KILLED = """
case "$*" in
    *{option}*)
        "$criu" "$@" & killed=$!
        until {until} >/dev/null 2>&1 || ! kill -0 $killed; do :; done
        kill -9 $killed; wait $killed
        exit 1 ;;
esac
exec "$criu" "$@"
"""
FULL = """
case "$*" in *--freeze-cgroup*) dd if=/dev/zero of="$5/filling" bs=64k 2>/dev/null ;; esac
exec "$criu" "$@"
"""


@pytest.mark.parametrize("image", ["dump.log", "netdev-*.img", "pages-1.img"])
def test_a_criu_that_is_killed_while_it_saves_leaves_nothing(d: Daemon, image: str) -> None:
    """It works inside of the processes by then, and keeps packets from them."""
    launch(d)
    with replaced(d, KILLED.format(option="--freeze-cgroup", until=f'ls "$5"/{image}')):
        refused = d.lxc("stop", "--stateful", "c1", check=False)
    assert "could not be saved" in refused.stderr
    unchanged(d)
    assert not working(d)
    d.lxc("stop", "--stateful", "c1")
    d.lxc("start", "c1")
    counts_on(d, 1)


def working(d: Daemon) -> list[str]:
    """Return the processes of CRIU that work for a daemon."""
    found = subprocess.run(
        ["pgrep", "-af", f"criu.bin .*{d.dir}"], capture_output=True, text=True, check=False
    )
    return found.stdout.splitlines()


def processes_in_cgroups(d: Daemon) -> list[str]:
    """Return the processes in the cgroups of c1."""
    folders = leaks.cgroups_of(owner_name(StatePaths(d.dir)))
    files = (file for path in folders for file in Path(path).glob("lxc.payload.c1*/cgroup.procs"))
    return [pid for file in files for pid in file.read_text().split()]


def test_a_criu_that_is_killed_while_it_restores(d: Daemon) -> None:
    """The state is kept, and nothing of the container is left, whose processes were being made."""
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    with replaced(d, KILLED.format(option="--restore-sibling", until="grep assigned $5")):
        refused = d.lxc("start", "c1", check=False)
    assert "Failed to restore the running state" in refused.stderr
    assert shown(d) == ("Stopped", True)
    assert not working(d)
    until(lambda: not processes_in_cgroups(d))
    d.lxc("start", "c1")
    counts_on(d, 1)


def test_a_pool_that_fills_up_meanwhile(d: Daemon, place: Path) -> None:
    """It had room when the preflight looked."""
    with loop_ext4(place / "medium", 80 << 20, "-O", "^has_journal", busy_seconds=5) as source:
        pool = {"name": "medium", "driver": "dir", "config": {"source": str(source)}}
        d.do("POST", "/1.0/storage-pools", pool)
        try:
            launch(d, "c1", "-s", "medium")
            with replaced(d, FULL):
                refused = d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
                assert "There is no space left for the running state" in d.wait(refused)["err"]
            until(lambda: count(d) > 0)  # what counts has written nothing while there was no space
            unchanged(d)
        finally:
            d.delete_instances()
            d.do("DELETE", "/1.0/storage-pools/medium")


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
    found = d.get("/1.0/instances/root/checkpoint")
    assert (found["possible"], "all devices of the host" in found["obstacles"][0]["reason"]) == (False, True)
    requests: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("PUT", "/state", {"action": "stop", "stateful": True}),
        ("POST", "/snapshots", {"name": "s", "stateful": True}),
        ("POST", "", {"name": "root", "migration": True, "live": True}),
    )
    for method, path, body in requests:
        refused = d.api(method, f"/1.0/instances/root{path}", body)
        assert (refused.status, "unset security.privileged" in refused.error) == (400, True)
    assert shown(d, "root") == ("Running", False)
    d.lxc("pause", "gone")
    refused = d.api("POST", "/1.0/instances/gone/snapshots", {"name": "s", "stateful": True})
    assert (refused.status, "frozen" in refused.error) == (400, True)


@pytest.mark.parametrize("old", [False, True])
def test_a_host_without_a_usable_criu(d: Daemon, old: bool) -> None:
    """Stateful requests say what to do, and so does a warning about instances that are prepared for them."""
    with replaced(d, "echo Version: 4.1.1"):
        if not old:
            (d.dir / "criu" / "criu").unlink()
        d.lxc("launch", "busybox", "c1", "-c", "migration.stateful=true")
        refused = d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        assert refused.status == 503
        assert "utsuwad criu install" in refused.error
        assert ("4.1.1" in refused.error) is old
        assert d.get("/1.0")["environment"]["kernel_features"]["criu"] == "false"
        warnings = [w for w in d.get("/1.0/warnings?recursion=1") if "CRIU" in w["last_message"]]
        assert [(w["entity_url"], w["status"]) for w in warnings] == [("/1.0/instances/c1", "new")]
    d.lxc("restart", "--force", "c1")
    warnings = [w for w in d.get("/1.0/warnings?recursion=1") if "CRIU" in w["last_message"]]
    assert {w["status"] for w in warnings} == {"resolved"}


def damage_record(state: Path) -> None:
    (state / "utsuwa.json").write_text('{"version": 1, "mounts": ["../../etc"]}')


def remove_record(state: Path) -> None:
    (state / "utsuwa.json").unlink()


def change_ids(state: Path) -> None:
    record = json.loads((state / "utsuwa.json").read_text())
    (state / "utsuwa.json").write_text(json.dumps(record | {"idmap": "[]"}))


def want_another_disk(state: Path) -> None:
    record = json.loads((state / "utsuwa.json").read_text())
    (state / "utsuwa.json").write_text(json.dumps(record | {"mounts": [*record["mounts"], "/mnt/disk"]}))


RECORDS = {
    "damaged": damage_record,
    "no saved running state": remove_record,
    "other ids": change_ids,
    "/mnt/disk": want_another_disk,
}
"""What the error says of ways to spoil the record of a state."""
IMAGES = (
    "inventory.img",
    "pstree.img",
    "core-1.img",
    "mm-1.img",
    "pages-1.img",
    "files.img",
    "mountpoints-*.img",
)
"""Some kinds of images; `scripts/test --long` damages all of them."""


def test_a_state_that_cannot_be_restored(d: Daemon) -> None:
    """The instance stays stopped with its state; it starts when that is whole again, or without it."""
    launch(d)
    d.lxc("stop", "--stateful", "c1")
    state, whole = folder(d) / "state", d.home / "whole"
    shutil.copytree(state, whole)
    for words, damage in RECORDS.items():
        damage(state)
        assert words in refusal_to_start(d)
        shutil.copy2(whole / "utsuwa.json", state)
    for pattern in ("*.img",) if LONG else IMAGES:
        for image in state.glob(pattern):
            content = image.read_bytes()
            for damaged in (content[: len(content) // 2], os.urandom(len(content))):
                if damaged == content or (image.name.startswith("pages-") and len(damaged) == len(content)):
                    continue  # any bytes are memory
                image.write_bytes(damaged)
                words = refusal_to_start(d)
                assert "Failed to restore" in words or "not complete" in words, image.name
            image.write_bytes(content)
    shutil.rmtree(whole)
    d.lxc("start", "c1")
    counts_on(d, 1)
    d.lxc("stop", "--stateful", "c1")
    remove_record(state)
    d.lxc("start", "--stateless", "c1")
    assert shown(d) == ("Running", False)


def refusal_to_start(d: Daemon) -> str:
    refused = d.lxc("start", "c1", check=False)
    assert refused.returncode != 0
    assert "--stateless" in refused.stderr
    assert shown(d) == ("Stopped", True)
    return refused.stderr


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


def test_disks_and_devices_that_were_added_since(d: Daemon, tmp_path: Path) -> None:
    """They are mounted when the processes go on, saved again with them, and removed like others."""
    (tmp_path / "file").touch()
    tmp_path.chmod(0o755)
    d.do("POST", "/1.0/storage-pools/default/volumes/custom", {"name": "v1"})
    launch(d)
    d.lxc("config", "device", "add", "c1", "old", "disk", f"source={tmp_path}", "path=/mnt/old")
    d.lxc("stop", "--stateful", "c1")
    added = {
        "folder": ("disk", f"source={tmp_path}", "path=/mnt/folder"),
        "volume": ("disk", "pool=default", "source=v1", "path=/mnt/volume"),
        "node": ("unix-char", "source=/dev/zero", "path=/dev/zero9"),
        "none": ("disk", f"source={tmp_path}/none", "path=/mnt/none", "required=false"),
    }
    for name, words in added.items():
        d.lxc("config", "device", "add", "c1", name, *words)
    d.lxc("start", "c1")
    counts_on(d, 1)
    run = ("exec", "c1", "--", "sh", "-c")
    d.lxc(*run, "ls /mnt/old/file /mnt/folder/file && head -c 1 /dev/zero9 && touch /mnt/volume/x")
    for _ in range(2):
        d.lxc("stop", "--stateful", "c1")
        d.lxc("start", "c1")
    d.lxc(*run, "ls /mnt/old/file /mnt/folder/file /mnt/volume/x && head -c 1 /dev/zero9")
    for name in added:
        d.lxc("config", "device", "remove", "c1", name)
    assert "/mnt/" not in d.lxc(*run, "grep -v /mnt/old /proc/mounts").stdout
    assert d.lxc(*run, "ls /dev/zero9", check=False).returncode
    d.lxc("delete", "--force", "c1")
    d.do("DELETE", "/1.0/storage-pools/default/volumes/custom/v1")


def test_what_was_mounted_of_the_host_may_have_been_replaced(d: Daemon, tmp_path: Path) -> None:
    """The mounts show what is there now: a file as editors replace it, and a directory."""
    file, place = tmp_path / "file", tmp_path / "folder"
    file.write_text("old\n")
    place.mkdir()
    launch(d)
    add = ("config", "device", "add", "c1")
    d.lxc(*add, "file", "disk", f"source={file}", "path=/mnt/file")
    d.lxc(*add, "folder", "disk", f"source={place}", "path=/mnt/folder")
    (tmp_path / "new").write_text("new\n")
    (tmp_path / "new").rename(file)
    place.rmdir()
    place.mkdir()
    d.lxc("snapshot", "--stateful", "c1", "s")
    for back in (("restore", "--stateful", "c1", "s"), ("start", "c1")):
        d.lxc(*back)
        counts_on(d, 1)
        assert d.lxc("exec", "c1", "--", "cat", "/mnt/file").stdout == "new\n"
        (place / "seen").touch()
        assert d.lxc("exec", "c1", "--", "ls", "/mnt/folder").stdout == "seen\n"
        d.lxc("stop", "--stateful", "c1")


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
    """A rename keeps it; a rebuild, a restore and a refresh discard it; a move to another pool is refused."""
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
    for change in (("restore", "c2", "s"), ("rebuild", "busybox", "c2"), ("copy", "c3", "c2", "--refresh")):
        d.lxc("stop", "--stateful", "c2")
        utsuwa_client(d, *change)
        assert shown(d, "c2") == ("Stopped", False)
        assert not (folder(d, "c2") / "state").exists()
        d.lxc("start", "c2")


def test_a_copy_of_a_snapshot_in_another_project_goes_on_with_its_state(d: Daemon) -> None:
    """On one server, only there it can have the same name; with its addresses, and also on another pool."""
    d.do("POST", "/1.0/projects", {"name": "p", "config": {"features.images": "false"}})
    d.do("PUT", "/1.0/profiles/default?project=p", d.get("/1.0/profiles/default"))
    try:
        launch(d)
        before = count(d)
        d.lxc("snapshot", "--stateful", "c1", "s")
        d.lxc("stop", "--force", "c1")
        refused = d.lxc(
            "copy", "c1/s", "c1", "--target-project", "p", "-c", "security.idmap.isolated=true", check=False
        )
        assert "other ids than the copy" in refused.stderr
        assert d.get("/1.0/instances?project=p") == []
        utsuwa_client(d, "copy", "c1/s", "c1", "--target-project", "p", "-s", "dir")
        assert d.get("/1.0/instances/c1?project=p")["stateful"]
        d.lxc("start", "c1", "--project", "p")
        files = ("/root/count", "/sys/class/net/eth0/address")

        def read() -> list[str]:
            return d.lxc("exec", "c1", "--project", "p", "--", "cat", *files).stdout.split()

        number, address = read()
        assert int(number) >= before
        until(lambda: read() != [number, address])
        assert address == d.get("/1.0/instances/c1?project=p")["config"]["volatile.eth0.hwaddr"]
        assert address == d.get("/1.0/instances/c1")["config"]["volatile.eth0.hwaddr"]
        d.lxc("stop", "--stateful", "c1", "--project", "p")
        shared = d.api(
            "POST",
            "/1.0/instances",
            {"name": "x", "stateful": True, "source": {"type": "copy", "source": "c1", "project": "p"}},
        )
        assert (shared.status, "a copy would share" in shared.error) == (400, True)
        d.lxc("delete", "c1", "--project", "p")
        d.lxc("copy", "c1/s", "c1", "--target-project", "p", "--stateless")
        assert not d.get("/1.0/instances/c1?project=p")["stateful"]
    finally:
        d.delete_instances()
        d.delete_projects()


# ---- a daemon that is killed

SLOW = """
case "$*" in *--freeze-cgroup*) sleep 1.5 ;; esac
exec "$criu" "$@"
"""


def test_a_container_runs_on_if_the_daemon_dies_before_it_is_saved(d: Daemon) -> None:
    """CRIU works on, and would freeze the container again that the daemon has thawed."""
    launch(d)
    before = count(d)
    with replaced(d, SLOW):
        assert d.get("/1.0/instances/c1/checkpoint")["possible"]
        d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
        until(lambda: (folder(d) / "state.new").exists())
        time.sleep(0.2)
        d.kill()
        d.start()
    unchanged(d)
    counts_on(d, before)


def test_a_container_runs_on_if_the_daemon_dies_while_it_is_saved(d: Daemon, faults: Faults) -> None:
    launch(d)
    points = ("CRIU waits for the container", "running state saved", "saved state published")
    for point in (*points, "saved state recorded"):
        before = count(d)
        with faults.kill_at(d, point):
            d.api("PUT", "/1.0/instances/c1/state", {"action": "stop", "stateful": True})
            until(lambda point=point: point in faults.reached())
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
