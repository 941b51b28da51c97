"""CRIU is started before the container is frozen, and saves it only when it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from utsuwa.core.errors import OutOfSpace, ProcessFailed
from utsuwa.host.checkpoint import commands, dumping

pytestmark = pytest.mark.processes

CRIU = """\
#!/usr/bin/python3
import os, subprocess, sys

def run(action):
    return subprocess.call([script], env={"CRTOOLS_SCRIPT_ACTION": action, "PATH": os.environ["PATH"]})

images, script = (sys.argv[sys.argv.index(name) + 1] for name in ("-D", "--action-script"))
if run("pre-dump") != 0:
    sys.exit(7)
run("post-dump")
open(f"{images}/saved", "w")
"""
"""As CRIU, whose scripts do not inherit its descriptors."""


def prepared(tmp_path: Path, program: str) -> tuple[str, commands.Dump]:
    (tmp_path / "criu").write_text(program)
    (tmp_path / "criu").chmod(0o700)
    images = tmp_path / "images"
    images.mkdir()
    job = commands.Dump(
        init=42, images=images, cgroup="/c", freezer=Path("/f"), externals=[], tty=commands.tty_key(1, 2)
    )
    return str(tmp_path / "criu"), job


async def test_it_saves_the_container_when_told_to(tmp_path: Path) -> None:
    program, job = prepared(tmp_path, CRIU)
    async with dumping.begun(program, job) as complete:
        assert not (job.images / "saved").exists()
        await complete()
        assert [path.name for path in job.images.iterdir()] == ["saved"]


async def test_it_is_ended_if_the_container_could_not_be_frozen(tmp_path: Path) -> None:
    program, job = prepared(tmp_path, CRIU)
    with pytest.raises(RuntimeError):
        async with dumping.begun(program, job):
            raise RuntimeError("not frozen")
    assert not (job.images / "saved").exists()


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 1\n", "#!/missing\n"])
async def test_one_that_fails_at_once_is_told(tmp_path: Path, program: str) -> None:
    path, job = prepared(tmp_path, program)
    async with dumping.begun(path, job) as complete:
        with pytest.raises(ProcessFailed):
            await complete()


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    program, job = prepared(tmp_path, CRIU)
    (job.images / "gate").symlink_to("/dev/full")
    with pytest.raises(OutOfSpace):
        async with dumping.begun(program, job):
            pass
