from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import HostError, StartFailed
from utsuwa.host import lxc

NO_INIT = """\
lxc-start c 20261124064254.909 WARN     cgfsng - ../src/lxc/cgroups/cgfsng.c:fchowmodat:1619 - No such file
lxc-start c 20261124064254.912 ERROR    start - ../src/lxc/start.c:start:2197 - Too many levels of symbolic \
links - Failed to exec "/sbin/init"
lxc-start c 20261124064254.912 ERROR    sync - ../src/lxc/sync.c:sync_wait:34 - An error occurred in another \
process (expected sequence number 7)
lxc-start c 20261124064254.912 ERROR    lxccontainer - lxccontainer.c:wait_on_daemonized_start:878 - \
Received container state "ABORTING" instead of "RUNNING"
lxc-start c 20261124064254.912 ERROR    lxc_start - ../src/lxc/tools/lxc_start.c:main:306 - The container \
failed to start
lxc-start c 20261124064254.912 ERROR    start - ../src/lxc/start.c:__lxc_start:2107 - Failed to spawn \
container "c"
"""


def test_the_reason_without_the_noise() -> None:
    assert lxc.reasons(NO_INIT) == 'Too many levels of symbolic links - Failed to exec "/sbin/init"'


def test_lines_without_a_container_name() -> None:
    line = 'utsuwa 20261124064254.909 ERROR confile - confile.c:set:164 - Unsupported key "lxc.foo"'
    assert lxc.reasons(line) == 'Unsupported key "lxc.foo"'


def test_repeated_reasons_are_merged_and_only_the_last_are_kept() -> None:
    lines = [f"lxc-start c 20261124064254.912 ERROR a - a.c:f:1 - reason {n}" for n in (1, 2, 3, 4, 5, 6, 4)]
    assert lxc.reasons("\n".join(lines)) == "reason 3; reason 5; reason 6; reason 4"


@given(st.text())
def test_any_text_can_be_a_log(text: str) -> None:
    assert isinstance(lxc.reasons(text), str)


def fake(folder: Path, script: str) -> None:
    program = folder / "lxc-start"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH of the programs that are started."""
    monkeypatch.setattr("utsuwa.host.processes.run.PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr("utsuwa.host.lxc.PATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    return tmp_path


@pytest.mark.processes
async def test_failed_start_reports_the_reason_from_the_new_log(tools: Path) -> None:
    (tools / "log").write_text(NO_INIT.replace("symbolic", "OLD"))
    new = tools / "new"
    new.write_text(NO_INIT)
    fake(tools, f'cat {new} > "$9"; exit 1')
    with pytest.raises(StartFailed, match="^Too many levels of symbolic"):
        await lxc.start("c", tools, tools / "conf", tools / "log")
    assert "OLD" not in (tools / "log").read_text()


@pytest.mark.processes
async def test_lxc_start_runs_outside_of_debians_apparmor_profile(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = tools / "proc/self/attr/apparmor"
    attributes.mkdir(parents=True)
    monkeypatch.setattr("utsuwa.host.lxc._LABEL", attributes / "current")
    told = tools / "told"
    fake(tools, f'echo "lxc-start $1" >>{told}')
    launcher = tools / "aa-exec"
    launcher.write_text(f'#!/bin/sh\necho "aa-exec $1 $2 $3" >>{told}\nshift 3\nexec "$@"\n')
    launcher.chmod(0o755)
    for label, expected in (
        (None, ["lxc-start -d"]),
        ("unconfined\n", ["aa-exec -p unconfined --", "lxc-start -d"]),
        ("utsuwa_outer (enforce)\n", ["lxc-start -d"]),
    ):
        told.unlink(missing_ok=True)
        if label is not None:
            (attributes / "current").write_text(label)
        await lxc.start("c", tools, tools / "conf", tools / "log")
        assert told.read_text().splitlines() == expected


@pytest.mark.processes
async def test_a_start_that_fails_without_a_log(tools: Path) -> None:
    fake(tools, "echo no such luck >&2; exit 1")
    with pytest.raises(StartFailed, match="no such luck"):
        await lxc.start("c", tools, tools / "conf", tools / "log")


@pytest.mark.processes
async def test_arguments(tools: Path) -> None:
    fake(tools, f'printf "%s\\n" "$@" > {tools}/argv')
    await lxc.start("c", tools / "p", tools / "conf", tools / "log", level="TRACE")
    assert (tools / "argv").read_text().split() == [
        *("-d", "-n", "c", "-P", f"{tools}/p", "-f", f"{tools}/conf", "-o", f"{tools}/log", "-l", "TRACE"),
        *("-p", f"{tools}/lxc.pid"),
    ]


@pytest.mark.root
@pytest.mark.processes
def test_processes_of_a_container_are_found(tmp_path: Path) -> None:
    title = f"[lxc monitor] {tmp_path} c"
    monitor = subprocess.Popen(
        [title, "--pid", "--fork", "sh", "-c", "echo up; read end"],
        executable="/usr/bin/unshare",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == b"up\n"
        (tmp_path / "pid").write_text(str(monitor.pid))
        pids = lxc._started(tmp_path / "pid", "c", tmp_path)
        assert pids is not None
        assert (pids.monitor, lxc.monitor_pid(pids.init)) == (monitor.pid, monitor.pid)
        assert lxc._started(tmp_path / "pid", "other", tmp_path) is None
        monitor.communicate(b"\n")
    assert lxc._started(tmp_path / "pid", "c", tmp_path) is None
    assert lxc._started(tmp_path / "missing", "c", tmp_path) is None


@pytest.mark.processes
@pytest.mark.parametrize("own_hooks", [False, True])
async def test_only_programs_of_others_get_a_path(tools: Path, own_hooks: bool) -> None:
    """Where liblxc finds `newuidmap`, it starts four programs to write the id maps."""
    fake(tools, f"/usr/bin/env > {tools}/env")
    await lxc.start("c", tools, tools / "conf", tools / "log", own_hooks=own_hooks)
    names = {line.partition("=")[0] for line in (tools / "env").read_text().splitlines()}
    assert ("PATH" in names) == own_hooks
    assert "HOME" in names


async def test_a_missing_lxc_is_named(tools: Path) -> None:
    with pytest.raises(HostError, match="install Debian's package 'lxc'"):
        await lxc.start("c", tools, tools / "conf", tools / "log")


def test_the_monitor_is_the_parent() -> None:
    parent = os.getppid()
    assert lxc.monitor_pid(os.getpid()) == (parent if parent > 1 else None)
    assert lxc.monitor_pid(2**22 + 1) is None
