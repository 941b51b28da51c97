"""The shells' completion scripts in the shells themselves, those that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import LAUNCHER, command
from tests.support.terminal import run_in_terminal

PROMPT = "READY> "
ERASE = "\x15"
"""Ctrl+U, which takes away the line that was typed."""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home without a server, in a folder with one file, and `utsuwa` in the PATH."""
    program = tmp_path / "bin" / "utsuwa"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -IS\n{LAUNCHER}\n")
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "image.tar.xz").touch()
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "UTSUWA_CONF": str(tmp_path / "conf"),
        "UTSUWA_SOCKET": str(tmp_path / "none"),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
    }


def script(shell: str) -> str:
    return subprocess.run(command("completion", shell), capture_output=True, text=True, check=True).stdout


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(shell), reason=f"needs {shell}")


TYPED = [
    (PROMPT, "utsuwa la\t"),
    ("utsuwa launch ", f"{ERASE}utsuwa remote switch im\t"),
    ("utsuwa remote switch images ", f"{ERASE}utsuwa list --format=ya\t"),
    ("utsuwa list --format=yaml ", f"{ERASE}utsuwa image import im\t"),
    ("utsuwa image import image.tar.xz ", f"{ERASE}utsuwa st\t\t"),
    ("storage", f"{ERASE}exit\n"),
]
"""What is on the screen, and what is typed then: each waits for what the one before has completed."""


@needs("zsh")
@pytest.mark.parametrize("way", ["a file of fpath", "sourced"])
def test_zsh(env: dict[str, str], tmp_path: Path, way: str) -> None:
    (tmp_path / "fpath").mkdir()
    (tmp_path / ("sourced.zsh" if way == "sourced" else "fpath/_utsuwa")).write_text(script("zsh"))
    (tmp_path / ".zshrc").write_text(
        f"fpath=({tmp_path}/fpath $fpath); autoload -Uz compinit; compinit -u -D; cd {tmp_path}/work\n"
        f"[ ! -e {tmp_path}/sourced.zsh ] || source {tmp_path}/sourced.zsh\nPS1='{PROMPT}'\n"
    )
    status, screen = run_in_terminal(["zsh", "-d", "-i"], env=env, typed=TYPED, columns=200)
    assert status == 0
    assert all(word in screen for word in ("start", "stop", "storage"))


@needs("bash")
def test_bash(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "utsuwa.bash").write_text(script("bash"))
    (tmp_path / "rc").write_text(f"source {tmp_path}/utsuwa.bash; cd {tmp_path}/work; PS1='{PROMPT}'\n")
    argv = ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"]
    status, screen = run_in_terminal(argv, env=env, typed=TYPED, columns=200)
    assert status == 0
    assert all(word in screen for word in ("start", "stop", "storage"))


@needs("fish")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("utsuwa la", ["launch"]),
        ("utsuwa remote switch ", ["images", "local", "ubuntu", "ubuntu-daily"]),
        ("utsuwa --project default list -f c", ["compact", "csv"]),
        ("utsuwa list --format=ya", ["--format=yaml"]),
        ("utsuwa image import im", ["image.tar.xz"]),
        ("utsuwa exec web -- ima", ["image.tar.xz"]),
    ],
)
def test_fish(env: dict[str, str], tmp_path: Path, line: str, found: list[str]) -> None:
    (tmp_path / "utsuwa.fish").write_text(script("fish"))
    asked = f"source {tmp_path}/utsuwa.fish; cd {tmp_path}/work; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", asked], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == found
