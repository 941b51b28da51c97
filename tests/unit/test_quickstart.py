"""The quick start's arguments, and what it refuses before anything is changed; nothing is installed here."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def shell(text: str) -> str:
    """What a few lines print that have the functions of the scripts."""
    prelude = (
        f"set -euo pipefail; root={SCRIPTS.parent}; . {SCRIPTS}/debian-host.sh; . {SCRIPTS}/uninstall.sh\n"
    )
    ended = subprocess.run(["bash", "-c", prelude + text], capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("script", ["quickstart", "offline-bundle"])
def test_help_describes_options(script: str) -> None:
    ended = run(script, "--help")
    assert ended.returncode == 0, ended.stderr
    assert f"scripts/{script}" in ended.stdout
    assert "#" not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fast"], "'--fast' is not an option; see quickstart --help"),
        (["first"], "'first' is not an option"),
        (["--offline"], "--offline needs a folder"),
        (["--offline", ""], "--offline needs a folder"),
        (["--uninstall", "--offline", "/x"], "cannot be used together"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str) -> None:
    ended = run("quickstart", *arguments)
    assert ended.returncode == 1
    assert words in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("place", ["relative/state", "/has space", "/has'quote", "/has\nline"])
@pytest.mark.parametrize("variable", ["UTSUWA_DIR", "UTSUWA_PREFIX"])
def test_places_that_cannot_be_used(variable: str, place: str) -> None:
    ended = run("quickstart", **{variable: place})
    assert ended.returncode == 1
    assert "are absolute paths without spaces and quotes" in ended.stderr


@pytest.mark.root
def test_an_archive_of_the_page_is_named_from_the_callers_folder(tmp_path: Path) -> None:
    """It is read in another one, in which the package is built."""
    trace = ["bash", "-x", str(SCRIPTS / "quickstart"), "--offline", "none"]
    environment = {**os.environ, "UTSUWA_PAGE": "page.tar"}
    missing = subprocess.run(trace, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "there is no archive of the web page at page.tar" in missing.stderr
    (tmp_path / "page.tar").touch()
    found = subprocess.run(trace, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert f"UTSUWA_PAGE={tmp_path}/page.tar\n" in found.stderr
    assert "there is no folder none" in found.stderr


@pytest.mark.root
def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    assert "there is no folder" in run("quickstart", "--offline", str(tmp_path / "none")).stderr
    assert "is not a whole bundle" in run("quickstart", "--offline", str(tmp_path)).stderr
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "rootfs.squashfs").touch()
    (tmp_path / "Packages").touch()
    (tmp_path / "program.stamp").write_text("another\n")
    (tmp_path / "made-for").write_text("debian 99 m68k\n")
    assert "was made for debian 99 m68k, and this is" in run("quickstart", "--offline", str(tmp_path)).stderr
    assert "is not a whole bundle for" in run("offline-bundle", "--program", str(tmp_path)).stderr
    (tmp_path / "made-for").write_text(shell('echo "$(host_system) $(dpkg --print-architecture)"'))
    told = run("quickstart", "--offline", str(tmp_path)).stderr
    assert f"was filled from another version of this repository than {SCRIPTS.parent}" in told


def test_the_stamp_of_the_program_follows_its_sources_alone(tmp_path: Path) -> None:
    names = ("src/a.py", "scripts/quickstart", "web/a.ts", "pyproject.toml", "setup.py")
    sources = {name: tmp_path / name for name in names}
    for path in sources.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    stamp = f"root={tmp_path}; program_stamp"
    before = shell(stamp)
    assert len(before.split()) == 1
    built_files = ("src/_version.py", "src/a.pyc", "src/utsuwa.egg-info/PKG-INFO", "README.md")
    for built in (*built_files, "src/utsuwa/page/a.gz", "web/node_modules/a/b.js"):
        (tmp_path / built).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / built).touch()
    assert shell(stamp) == before
    for path in sources.values():
        path.write_text("y")
        assert shell(stamp) != before
        path.write_text("x")


@pytest.mark.root
def test_uninstall_needs_confirmation_and_removes_only_own_files(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "utsuwa.lock").touch()
    (tmp_path / "program").mkdir()
    here = {"UTSUWA_DIR": str(tmp_path / "state"), "UTSUWA_PREFIX": str(tmp_path / "program")}
    assert "run it again with --yes" in run("quickstart", "--uninstall", **here).stderr

    (tmp_path / "program" / "diary").touch()
    ended = run("quickstart", "--uninstall", "--yes", **here)
    assert "does not look like Utsuwa's (.stamp is missing in it)" in ended.stderr
    assert (tmp_path / "program" / "diary").exists()
    assert (tmp_path / "state" / "utsuwa.lock").exists()

    (tmp_path / "program" / ".stamp").touch()
    ended = run("quickstart", "--uninstall", "--yes", **here)
    assert ended.returncode == 0, ended.stderr
    assert not list(tmp_path.iterdir())
    assert run("quickstart", "--uninstall", "--yes", **here).returncode == 0, "a second time nothing is there"


def a_wheel(folder: Path) -> Path:
    """A package with a program that ends with status 7."""
    wheel = folder / "thing-1.0-py3-none-any.whl"
    files = {
        "thing.py": "def main(): return 7\n",
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "thing-1.0.dist-info/entry_points.txt": "[console_scripts]\nthing = thing:main\n",
    }
    files["thing-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def test_the_program_can_be_run_by_others_whatever_the_umask(tmp_path: Path) -> None:
    """A strict umask, a clone and a prefix made with one: all of it is readable (lxc#3100, lxc#4186)."""
    prefix, clone = tmp_path / "prefix", tmp_path / "clone"
    told = shell(
        f"umask 077; mkdir -m 700 {prefix} {clone}; echo text >{clone}/page; . {SCRIPTS}/debian-host.sh\n"
        f"make_venv {prefix} stamp pip_install {a_wheel(tmp_path)} >/dev/null; "
        f"copy_readable {clone}/page {prefix}/share/doc; umask"
    )
    assert told.splitlines()[-1] == "0022"
    for path in (prefix, *prefix.rglob("*")):
        mode = path.stat().st_mode
        assert mode & 0o044 == 0o044, path
        assert not path.is_dir() or mode & 0o011 == 0o011, path
    assert not (prefix / "bin/thing").stat().st_mode & 0o022
    assert subprocess.run([prefix / "bin/thing"], check=False).returncode == 7
    assert (prefix / "share/doc/page").stat().st_mode & 0o777 == 0o644


def test_a_packed_program_runs_at_another_place(tmp_path: Path) -> None:
    """It is that of its new place: compiled, owned by root, and without traces of where it was packed."""
    first, packed, second = (tmp_path / name for name in ("first", "program.tar.zst", "second"))
    told = shell(
        f"make_venv {first} one pip_install {a_wheel(tmp_path)} >/dev/null\n"
        f"cp {first}/bin/thing {first}/bin/utsuwa; cp {first}/bin/thing {first}/bin/utsuwad\n"
        f"pack_program {first} {packed}; rm -r {first}; umask 077\n"
        f"make_venv {second} two unpack_program {packed}; echo $VENV_CHANGED $(cat {second}/.stamp)\n"
        f"make_venv {second} two false"
    )
    assert told == f"==> Installing Utsuwa into {second}\ntrue two\n"
    for name in ("utsuwa", "utsuwad"):
        assert subprocess.run([second / "bin" / name], check=False).returncode == 7
        assert str(first) not in (second / "bin" / name).read_text()
        assert (second / "bin" / name).stat().st_mode & 0o777 == 0o755
    (site,) = second.glob("lib/python3*/site-packages")
    assert list(site.glob("__pycache__/thing.*.pyc"))
    assert (site / "thing.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("told", "status", "shown"),
    [
        ("", 0, ""),
        (
            "raised vm.max_map_count from 65530 to 1048576\n"
            "/etc/sysctl.d/60-utsuwa.conf sets limits at each boot",
            0,
            "==> Raised kernel limits for many containers, now and at each boot "
            "(/etc/sysctl.d/60-utsuwa.conf)\n",
        ),
        (
            "cannot be set here (Permission denied)",
            1,
            "==> Some kernel limits are still low; see utsuwad check\n"
            "cannot be set here (Permission denied)\n",
        ),
    ],
)
def test_summary_of_raised_limits(tmp_path: Path, told: str, status: int, shown: str) -> None:
    program = tmp_path / "bin/utsuwad"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'check --raise-limits' ] && printf '{told}'\nexit {status}\n")
    program.chmod(0o755)
    function = "$(sed -n '/^raise_limits()/,/^}/p' \"$root/scripts/quickstart\")"
    assert shell(f'prefix={tmp_path}; eval "{function}"; raise_limits') == shown


def test_other_systems_get_instructions() -> None:
    told = shell('host_system() { echo "fedora 40"; }; require_system "debian 12" "ubuntu 24.04"')
    assert "knows debian 12, ubuntu 24.04, and this is fedora 40: install Python 3.11" in told
    assert told.count("\n") == 1
    assert (
        shell('host_system() { echo "debian 12"; }; require_system "debian 13" "debian 12"; echo ok')
        == "ok\n"
    )


def test_owner_is_named_as_the_daemon_names_it(tmp_path: Path) -> None:
    from utsuwa.core.paths import StatePaths
    from utsuwa.daemon.app import owner_name

    (tmp_path / "link").symlink_to(tmp_path)
    folder = tmp_path / "link" / "state"
    expected = owner_name(StatePaths(folder.resolve()))
    assert shell(f"UTSUWA_DIR={folder} owner_name").strip() == expected
