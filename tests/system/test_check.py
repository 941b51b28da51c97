"""`utsuwad check` on this machine, in a process of its own as it is meant to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import utsuwa

pytestmark = pytest.mark.root

SOURCES = Path(utsuwa.__file__).parent.parent
NO_IDMAPPING = {"UTSUWA_IDMAPPED_MOUNTS_DISABLE": "true"}


def check(
    folder: Path, *options: str, wrapper: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """The exit status, and the requirements by name; run without any package but the standard library."""
    ended = subprocess.run(
        [*wrapper, sys.executable, "-S", "-m", "utsuwa.daemon.main", "check", "--format", "json", *options],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "UTSUWA_DIR": str(folder)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    return ended.returncode, {r["name"]: r for r in json.loads(ended.stdout)["requirements"]}


def test_this_machine_can_run_containers_and_keeps_no_trace(tmp_path: Path) -> None:
    code, found = check(tmp_path / "not" / "there")
    assert code == 0
    assert {name for name, r in found.items() if r["essential"] and r["status"] == "missing"} == set()
    assert found["liblxc"]["detail"] == found["lxc-start"]["detail"]
    assert found["cgroups"]["status"] == "found"
    assert list(tmp_path.iterdir()) == []
    assert ".utsuwa-check-" not in Path("/proc/self/mounts").read_text()
    assert ".utsuwa-check-" not in "".join(
        file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")
    )


def test_forced_fallback_is_reported(tmp_path: Path) -> None:
    code, found = check(tmp_path, "--before-install", env=NO_IDMAPPING)
    assert code == 0
    mapped = found["idmapped mounts of the state folder"]
    assert (mapped["status"], mapped["remedy"]) == ("degraded", "unset UTSUWA_IDMAPPED_MOUNTS_DISABLE")
    assert "liblxc" not in found


def test_a_process_that_may_not_mount_runs_no_containers(tmp_path: Path) -> None:
    drop = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    code, found = check(tmp_path, wrapper=drop)
    assert code == 1
    assert found["mounting"]["status"] == "missing"
    assert "overlay" not in found


def test_a_state_folder_on_an_overlay_holds_no_layers(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    script = f'mount -t overlay -o {layers} none {tmp_path}/merged && exec "$@"'
    code, found = check(tmp_path / "merged", wrapper=("unshare", "--mount", "sh", "-c", script, "sh"))
    assert code == 0
    assert found["overlay"]["status"] == "degraded"
    assert "(overlay)" in found["overlay"]["detail"]


def test_a_read_only_cgroup_hierarchy_is_fatal(tmp_path: Path) -> None:
    hierarchies = [m.split()[1] for m in Path("/proc/mounts").read_text().splitlines() if " cgroup" in m]
    script = "".join(f"mount -o remount,bind,ro {m}; " for m in hierarchies) + 'exec "$@"'
    code, found = check(tmp_path, wrapper=("unshare", "--mount", "sh", "-c", script, "sh"))
    assert code == 1
    assert (found["cgroups"]["status"], found["cgroups"]["detail"]) == ("missing", "mounted read-only")
