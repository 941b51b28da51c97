"""Archives that the client unpacks: nothing gets outside of the target, whatever a server sends."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.unpacking import unpack
from utsuwa.core import tar
from utsuwa.core.tarstream import BadArchive

OWNER = (0, 0)


def file(path: str, content: bytes = b"x", mode: int = 0o644) -> bytes:
    size = len(content)
    return tar.header(path, tar.FILE, mode, OWNER, size=size) + content + tar.padding(size)


def folder(path: str, mode: int = 0o755) -> bytes:
    return tar.header(path, tar.DIRECTORY, mode, OWNER)


def link(path: str, target: str, kind: bytes = tar.SYMLINK) -> bytes:
    return tar.header(path, kind, 0o777, OWNER, target=target)


def put(target: Path, *members: bytes, step: int = 300) -> list[str]:
    """Unpack, and return what was skipped."""
    skipped: list[str] = []
    archive = b"".join(members)
    chunks = [archive[start : start + step] for start in range(0, len(archive), step)]
    unpack(chunks, str(target), lambda member, done: None, skipped.append)
    return skipped


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory beside the file `outside/file`, which must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("mine")
    made = tmp_path / "target"
    made.mkdir()
    return made


def outside(target: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (target.parent / "outside").iterdir()}


def test_a_tree(target: Path) -> None:
    (target / "c/d").mkdir(parents=True)
    skipped = put(
        target,
        folder(".", 0o750),
        folder("a", 0o500),
        file("a/f", b"1" * 1000, 0o4600),
        link("a/l", "/etc"),
        link("b", "a/f", tar.LINK),
        tar.comment("skipped /x: a FIFO"),
        tar.comment("anything else"),
        file("c/d/e"),
        tar.END,
    )
    assert skipped == ["/x: a FIFO"]
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("", "a", "a/f")}
    assert modes == {"": 0o750, "a": 0o500, "a/f": 0o600}  # set-user-ID stays away
    assert (target / "b").stat().st_ino == (target / "a/f").stat().st_ino
    assert str((target / "a/l").readlink()) == "/etc"
    assert (target / "c/d/e").read_text() == "x"


@pytest.mark.parametrize(
    "members",
    [
        [link("l", "../outside"), file("l/file")],
        [link("l", "../outside"), folder("l/new")],
        [folder("d"), link("d/l", "../../outside"), file("d/l/file")],
        [file("../outside/file")],
        [file("a/../../outside/file")],
        [link("file", "../outside/file", tar.LINK)],
        [link("l", "../outside"), link("file", "l/file", tar.LINK)],
        [link("l", "../outside/file"), link("hard", "l", tar.LINK)],
        [file("not/there")],
        [file("f"), file("f/below")],
    ],
    ids=lambda members: str(len(members)),
)
def test_nothing_gets_outside(target: Path, members: list[bytes]) -> None:
    with pytest.raises((BadArchive, OSError)):
        put(target, *members, tar.END)
    assert outside(target) == {"file": "mine"}
    assert not (target / "hard").exists()


def test_links_that_are_here_are_replaced(target: Path) -> None:
    for name in ("f", "d", "l"):
        (target / name).symlink_to(f"../outside/{'file' if name == 'f' else ''}")
    (target / "h").write_text("old")
    members = (file("f"), folder("d"), file("d/file"), link("l", "new"), link("h", "f", tar.LINK))
    put(target, *members, tar.END)
    assert outside(target) == {"file": "mine"}
    assert [(target / name).read_text() for name in ("f", "d/file", "h")] == ["x", "x", "x"]
    assert str((target / "l").readlink()) == "new"


def test_a_file_with_other_names_is_replaced(target: Path) -> None:
    os.link(target.parent / "outside/file", target / "f")
    put(target, file("f"), tar.END)
    assert outside(target) == {"file": "mine"}
    assert (target / "f").read_text() == "x"


def test_an_absolute_path_is_below_the_target(target: Path) -> None:
    put(target, file(f"/{target.name}"), tar.END)
    assert (target / target.name).read_text() == "x"


@pytest.mark.parametrize("cut", [1, 512, 600, 1500, 2000])
def test_an_archive_that_is_cut_off(target: Path, cut: int) -> None:
    archive = file("one", b"1" * 100) + file("two") + tar.END
    with pytest.raises(BadArchive, match="cut off"):
        put(target, archive[:cut])


def test_what_the_server_cannot_read(target: Path) -> None:
    with pytest.raises(CommandFailed, match="/a/b: Permission denied"):
        put(target, file("one"), tar.comment("failed /a/b: Permission denied"))
    assert (target / "one").read_text() == "x"


NAMES = st.sampled_from(["a", "b", "..", ".", "a/b", "b/a", "a/../b", "/a", "../outside/file", "../outside"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("fdsh"), NAMES, NAMES), max_size=8))
def test_any_members_stay_inside(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, str]]
) -> None:
    base = tmp_path_factory.mktemp("any")
    (base / "outside").mkdir()
    (base / "outside/file").write_text("mine")
    (base / "target").mkdir()
    make: dict[str, Callable[[str, str], bytes]] = {
        "f": lambda path, _: file(path),
        "d": lambda path, _: folder(path),
        "s": link,
        "h": lambda path, to: link(path, to, tar.LINK),
    }
    with contextlib.suppress(BadArchive, OSError):
        put(base / "target", *(make[kind](path, to) for kind, path, to in members), tar.END)
    assert outside(base / "target") == {"file": "mine"}
    assert sorted(path.name for path in base.iterdir()) == ["outside", "target"]
    assert (base / "outside/file").stat().st_nlink == 1
