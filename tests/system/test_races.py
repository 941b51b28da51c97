"""Requests that meet each other, and ends of containers that meet a kill of the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.support.api import Reply
from tests.support.daemon import Daemon
from tests.support.images import Image
from tests.system.test_lxc_instances import status, until

pytestmark = pytest.mark.root

FAULT = "Internal error"
STOP = {"action": "stop", "force": True}


def url(name: str) -> str:
    return f"/1.0/instances/{name}"


def state(daemon: Daemon, name: str, **body: object) -> str:
    """Ask for a change of state, wait for it, and give its error, empty for none."""
    return ended(daemon, daemon.api("PUT", f"{url(name)}/state", body))


def ended(daemon: Daemon, reply: Reply) -> str:
    if reply.status != 202:
        return f"{reply.status} {reply.error}"
    return str(daemon.wait(reply)["err"])


def there(daemon: Daemon, name: str) -> bool:
    return daemon.api("GET", url(name)).status == 200


def launch(daemon: Daemon, name: str, **more: object) -> int:
    """Create and start a container; gives the pid of its init."""
    source = {"type": "image", "alias": "busybox"}
    daemon.do("POST", "/1.0/instances", {"name": name, "source": source, "start": True, **more})
    return int(daemon.get(f"{url(name)}/state")["pid"])


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def own(daemon: Daemon, busybox_image: Image) -> Daemon:
    """A daemon of the test's own, which it may kill, with the image `busybox`."""
    daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    return daemon


# ---- requests at once


def test_of_many_starts_one_wins(shared_daemon: Daemon, busybox: str, threads: ThreadPoolExecutor) -> None:
    d = shared_daemon
    launch(d, "c1")
    d.do("PUT", f"{url('c1')}/state", STOP)
    errors = list(threads.map(lambda _: state(d, "c1", action="start"), range(5)))
    assert sorted(errors)[0] == ""
    assert all("already running" in error for error in sorted(errors)[1:])
    assert status(d, "c1") == "Running"


def test_kill_during_a_clean_stop(shared_daemon: Daemon, busybox: str, threads: ThreadPoolExecutor) -> None:
    d = shared_daemon
    pid = launch(d, "c1")
    os.kill(pid, signal.SIGSTOP)  # its init cannot follow a request to stop
    try:
        clean = threads.submit(state, d, "c1", action="stop", timeout=20)
        until(lambda: "running" in d.get("/1.0/operations"))
        refused = state(d, "c1", action="start")
        assert "already running" in refused
        assert state(d, "c1", action="stop", force=True) == ""
        assert clean.result(10) == ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert status(d, "c1") == "Stopped"


def test_stop_meets_an_end_from_inside(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    for delay in (0, 0.005, 0.01, 0.02, 0.03):
        pid = launch(d, "c1")
        os.kill(pid, signal.SIGKILL)
        time.sleep(delay)
        error = state(d, "c1", action="stop", timeout=10)
        assert error == "" or "already stopped" in error
        until(lambda: status(d, "c1") == "Stopped")
        d.do("DELETE", url("c1"))


def test_freezing_meets_a_kill(shared_daemon: Daemon, busybox: str, threads: ThreadPoolExecutor) -> None:
    d = shared_daemon
    for delay in (0, 0.002, 0.004, 0.006, 0.01):
        launch(d, "c1")
        frozen = threads.submit(state, d, "c1", action="freeze")
        time.sleep(delay)
        assert state(d, "c1", action="stop", force=True) == ""
        assert FAULT not in frozen.result(20)
        d.do("DELETE", url("c1"))


def test_deletions_meet_each_other_and_a_start(
    shared_daemon: Daemon, busybox: str, threads: ThreadPoolExecutor
) -> None:
    d = shared_daemon
    launch(d, "c1")
    d.do("PUT", f"{url('c1')}/state", STOP)
    asked = [("DELETE", None, url("c1")), ("PUT", {"action": "start"}, f"{url('c1')}/state")] * 2
    errors = list(threads.map(lambda a: ended(d, d.api(a[0], a[2], a[1])), asked))
    assert not any(FAULT in error for error in errors)
    assert "" in errors
    assert there(d, "c1") == (errors[0] != "" and errors[2] != "")


def test_of_many_changes_by_one_etag_one_wins(
    shared_daemon: Daemon, busybox: str, threads: ThreadPoolExecutor
) -> None:
    d = shared_daemon
    d.do("POST", "/1.0/instances", {"name": "c1", "source": {"type": "image", "alias": busybox}})
    for method in ("PATCH", "PUT"):
        known = d.api("GET", url("c1"))
        etag = {"If-Match": known.headers["etag"]}

        def change(number: int, method: str = method, known: Reply = known) -> bool:
            config = {**known.metadata["config"], "user.n": f"{method} {number}"}
            reply = d.api(method, url("c1"), {**known.metadata, "config": config}, headers=etag)  # noqa: B023
            return reply.status == 200 or (reply.status == 202 and ended(d, reply) == "")

        assert list(threads.map(change, range(6))).count(True) == 1


def test_ephemeral_instances_are_deleted_when_the_stop_returns(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    for number in range(3):
        launch(d, f"e{number}", ephemeral=True)
        assert state(d, f"e{number}", action="stop", force=True) == ""
        assert not there(d, f"e{number}")


def test_failure_in_a_bulk_change_does_not_reveal_the_host(shared_daemon: Daemon, busybox: str) -> None:
    d = shared_daemon
    launch(d, "c1")
    logs = d.dir / "logs" / "c1"
    d.do("PUT", f"{url('c1')}/state", STOP)
    logs.rename(logs.with_name("elsewhere"))
    logs.write_text("no folder")
    d.faults_expected = True
    try:
        error = ended(d, d.api("PUT", "/1.0/instances", {"state": {"action": "start"}}))
        assert "c1: " in error
        assert str(d.dir) not in error
    finally:
        logs.unlink()
        logs.with_name("elsewhere").rename(logs)


def test_instances_of_a_deleted_image_go_at_once(own: Daemon, threads: ThreadPoolExecutor) -> None:
    names = [f"c{number}" for number in range(6)]
    for name in names:
        own.do("POST", "/1.0/instances", {"name": name, "source": {"type": "image", "alias": "busybox"}})
    (image,) = own.get("/1.0/images")
    own.do("DELETE", image)
    errors = list(threads.map(lambda name: ended(own, own.api("DELETE", url(name))), names))
    assert errors == [""] * len(names)
    assert list((own.dir / "storage-pools/default/images").iterdir()) == []


# ---- ends that meet a kill


def end_and_begin(daemon: Daemon, how: str) -> None:
    if how == "kill":
        daemon.kill()
    else:
        assert daemon.stop() == 0
    daemon.start()


def listening(pid: int) -> bool:
    """Whether busybox's init has come so far that it hears signals, which the kernel keeps from it before.

    It catches SIGTSTP once it has seen to the others.
    """
    (caught,) = (
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    )
    return bool(int(caught, 16) >> (signal.SIGTSTP - 1) & 1)


BOTH_ENDS = pytest.mark.parametrize("how", ["kill", "stop"])


@BOTH_ENDS
def test_a_reboot_is_completed(own: Daemon, how: str) -> None:
    pid = launch(own, "c1")
    for delay in (0.04, 0.1):
        until(partial(listening, pid))
        os.kill(pid, signal.SIGTERM)  # busybox's init reboots, a second later
        until(partial(gone, pid), 20)
        time.sleep(delay)
        end_and_begin(own, how)
        until(lambda: status(own, "c1") == "Running")
        after = own.get(f"{url('c1')}/state")["pid"]
        assert after != pid
        pid = after


@BOTH_ENDS
def test_a_restart_is_completed_or_was_never_begun(own: Daemon, how: str) -> None:
    launch(own, "c1")
    for delay in (0, 0.04, 0.1):
        own.api("PUT", f"{url('c1')}/state", {"action": "restart", "force": True})
        time.sleep(delay)
        end_and_begin(own, how)
        until(lambda: status(own, "c1") == "Running")


@BOTH_ENDS
def test_a_restart_that_failed_is_not_made_up_for(own: Daemon, how: str) -> None:
    pid = launch(own, "c1")
    os.kill(pid, signal.SIGSTOP)
    assert "did not stop in time" in state(own, "c1", action="restart", timeout=1)
    own.kill()
    os.kill(pid, signal.SIGKILL)
    own.start()
    until(lambda: status(own, "c1") == "Stopped")  # it may still be ending
    end_and_begin(own, how)
    assert status(own, "c1") == "Stopped"


def test_an_ephemeral_one_that_ended_is_deleted(own: Daemon) -> None:
    for delay in (0, 0.06):
        pid = launch(own, "e1", ephemeral=True)
        os.kill(pid, signal.SIGKILL)
        time.sleep(delay)
        end_and_begin(own, "kill")
        until(lambda: not there(own, "e1"))  # it may still be ending


def test_starts_in_progress_are_settled_after_a_shutdown(own: Daemon) -> None:
    names = [f"c{number}" for number in range(4)]
    for name in names:
        own.do("POST", "/1.0/instances", {"name": name, "source": {"type": "image", "alias": "busybox"}})
    for name in names:
        own.api("PUT", f"{url(name)}/state", {"action": "start"})
    assert own.stop(signal.SIGPWR) == 0
    own.start()
    for name in names:
        assert status(own, name) in ("Running", "Stopped")
        if status(own, name) == "Running":
            assert own.lxc("exec", name, "--", "true").returncode == 0
    # The shutdown waited for their starts, so the daemon starts them again, in the background.
    until(lambda: all(status(own, name) == "Running" for name in names), seconds=30)


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


# ---- profiles


def test_profile_changes_meet_creations_and_starts(
    shared_daemon: Daemon, busybox: str, threads: ThreadPoolExecutor
) -> None:
    """Whatever comes first: an instance has the id map that its config asks for, and nothing hangs."""
    d = shared_daemon
    d.do("POST", "/1.0/profiles", {"name": "p", "config": {}, "devices": {}})
    profiles = ["default", "p"]
    source = {"type": "image", "alias": busybox}

    def create(number: int) -> str:
        body = {"name": f"c{number}", "source": source, "profiles": profiles, "start": number % 2 == 0}
        return ended(d, d.api("POST", "/1.0/instances", body))

    made = threads.map(create, range(6))
    for number in range(8):
        value = "true" if number % 2 else "false"
        d.do("PUT", "/1.0/profiles/p", {"config": {"security.privileged": value}})
    assert {error[:3] for error in made} <= {"", "409"}
    for instance in d.get("/1.0/instances?recursion=1"):
        privileged = instance["expanded_config"]["security.privileged"] == "true"
        assert (instance["config"]["volatile.idmap.next"] == "[]") == privileged
    d.delete_instances()
    d.do("DELETE", "/1.0/profiles/p")
