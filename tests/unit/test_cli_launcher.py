"""The program file of the client."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from utsuwa.cli import launcher
from utsuwa.cli.errors import UsageError
from utsuwa.version import __version__


@pytest.mark.processes
def test_the_launcher_starts_the_client(tmp_path: Path) -> None:
    program = tmp_path / "utsuwa"
    launcher.write(str(program))
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert program.read_text().splitlines()[0] == f"#!{Path(sys.executable).resolve()} -IS"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"{__version__}\n"
    (tmp_path / "config.yml").write_text("remotes: {}\nx: 1\n")  # PyYAML must be found as well
    env = {"UTSUWA_CONF": str(tmp_path)}
    argv = [str(program), "remote", "get-default"]
    assert subprocess.run(argv, capture_output=True, env=env, timeout=20, check=True).stdout == b"local\n"


@pytest.mark.parametrize("python", ["/opt/my python/bin/python3", "/" + "x" * 130])
def test_interpreters_that_no_program_can_name(python: str) -> None:
    with pytest.raises(UsageError, match="shorter path"):
        launcher.text(python, "/x")


def test_launcher_into_missing_directory_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["launcher", "/nowhere/utsuwa"])
    assert launcher.main() == 1
    assert "/nowhere" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["launcher"])
    assert launcher.main() == 1
