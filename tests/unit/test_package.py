"""What `python -m build` makes can be installed and used, without the sources beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Others build the page of this tree meanwhile.
IGNORED = shutil.ignore_patterns("*.egg-info", "__pycache__", "_version.py", "page", "page.new")

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that says it is of a tag, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=IGNORED)
    shutil.copytree(ROOT / "web", source / "web", ignore=shutil.ignore_patterns("node_modules"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / ".git_archival.txt").write_text("describe-name: v7.8.9-0-gabcdef0\n")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(source)]
    page = folder / "page.tar"
    with tarfile.open(page, "w") as packed:
        packed.addfile(tarfile.TarInfo("index.html.gz"))
    environment = {**os.environ, "UTSUWA_PAGE": str(page)}
    ended = subprocess.run(build, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    (found,) = (folder / "dist").glob("*.whl")
    return found


def test_a_source_tree_runs_before_anything_is_built(tmp_path: Path) -> None:
    """As the quick start does, to check the host before it installs."""
    shutil.copytree(ROOT / "src/utsuwa", tmp_path / "utsuwa", ignore=IGNORED)

    def utsuwad(*arguments: str) -> str:
        command = ["/usr/bin/python3", "-B", "-m", "utsuwa.daemon.main", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/bin"})
        assert ran.returncode in (0, 1), ran.stderr
        return ran.stdout

    assert utsuwad("version") == "0+unbuilt\n"
    assert json.loads(utsuwad("check", "--before-install", "--format", "json"))["requirements"]


def test_the_version_is_that_of_the_tag(wheel: Path) -> None:
    assert wheel.name == "utsuwa-7.8.9-py3-none-any.whl"


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    kept = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/utsuwa").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    kept = {name for name in kept if not name.startswith(("utsuwa/page/", "utsuwa/page.new/"))}
    kept.add("utsuwa/page/index.html.gz")
    assert kept - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_installed_programs_run(wheel: Path, tmp_path: Path) -> None:
    """What they depend on is that of this environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    (site,) = tmp_path.glob("lib/python3*/site-packages")
    (pip,) = Path("/usr/share/python-wheels").glob("pip-*.whl")  # Debian's
    install = [str(tmp_path / "bin/python"), str(pip / "pip"), "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for program, words in (("utsuwa", ["--version"]), ("utsuwad", ["version"])):
        ran = subprocess.run([tmp_path / "bin" / program, *words], capture_output=True, text=True, check=True)
        assert ran.stdout == "7.8.9\n"
    where = "import utsuwa.db.upgrade as module; print(module.__file__)"
    ran = subprocess.run([tmp_path / "bin/python", "-c", where], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(str(site))
