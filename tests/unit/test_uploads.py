"""Uploads: files change at once, with and without support for files that have no name."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.host import syscalls
from utsuwa.host.files import uploads
from utsuwa.host.files.confined import ConfinedTree
from utsuwa.host.files.uploads import Upload, put

OWNER = (os.getuid(), os.getgid())


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[ConfinedTree]:
    fd = os.open(tmp_path, os.O_PATH)
    yield ConfinedTree(fd)
    os.close(fd)


@pytest.fixture(params=["unnamed", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "named":
        opened = os.open

        def refused(path: str, flags: int, *args: int, **kwargs: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
            return opened(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", refused)
    return str(request.param)


def upload(tree: ConfinedTree, path: str, content: bytes, *, append: bool = False) -> Upload:
    begun = Upload(tree, path, append=append, mode=0o640, owner=OWNER)
    os.write(begun.fd, content)
    return begun


def always(_: int) -> bool:
    return True


def never(_: int) -> bool:
    return False


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.usefixtures("way")
def test_a_new_file_appears_when_it_is_committed(tree: ConfinedTree, tmp_path: Path) -> None:
    begun = upload(tree, "/new", b"content")
    assert not (tmp_path / "new").exists()
    begun.commit(always)
    assert (tmp_path / "new").read_bytes() == b"content"
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o640
    assert names(tmp_path) == ["new"]


@pytest.mark.usefixtures("way")
def test_an_abandoned_upload_leaves_nothing(tree: ConfinedTree, tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    (tmp_path / "old").write_bytes(b"old")
    for path in ("/new", "/old"):
        begun = upload(tree, path, b"content")
        begun.abandon()
        begun.abandon()
    assert (tmp_path / "old").read_bytes() == b"old"
    assert names(tmp_path) == ["old"]
    assert len(names(Path("/proc/self/fd"))) == before


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [3, 100_000])
def test_an_existing_file_keeps_its_inode(tree: ConfinedTree, tmp_path: Path, size: int) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"longer than three bytes")
    path.chmod(0o600)
    inode = path.stat().st_ino
    content = os.urandom(size)
    upload(tree, "/old", content).commit(never)
    assert path.read_bytes() == content
    upload(tree, "/old", b"more", append=True).commit(never)
    assert path.read_bytes() == content + b"more"
    assert (path.stat().st_ino, path.stat().st_mode & 0o7777) == (inode, 0o600)
    assert names(tmp_path) == ["old"]


@pytest.mark.usefixtures("way")
def test_a_symlink_to_nothing_leads_to_the_new_file(tree: ConfinedTree, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub/made")
    upload(tree, "/link", b"content").commit(never)
    assert (tmp_path / "sub/made").read_bytes() == b"content"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        upload(tree, "/loop", b"")


@pytest.mark.usefixtures("way")
def test_a_file_that_appears_meanwhile_is_overwritten(tree: ConfinedTree, tmp_path: Path) -> None:
    begun = upload(tree, "/new", b"content")
    (tmp_path / "new").write_bytes(b"another one")
    inode = (tmp_path / "new").stat().st_ino
    begun.commit(never)
    assert (tmp_path / "new").read_bytes() == b"content"
    assert (tmp_path / "new").stat().st_ino == inode
    assert names(tmp_path) == ["new"]


@pytest.mark.usefixtures("way")
def test_a_symlink_that_appears_meanwhile_is_followed(tree: ConfinedTree, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    begun = upload(tree, "/new", b"content")
    (tmp_path / "new").symlink_to("/sub/made")
    begun.commit(never)
    assert (tmp_path / "new").is_symlink()
    assert (tmp_path / "sub/made").read_bytes() == b"content"
    assert names(tmp_path / "sub") == ["made"]
    assert names(tmp_path) == ["new", "sub"]


@pytest.mark.usefixtures("way")
def test_a_directory_that_appears_meanwhile_is_refused(tree: ConfinedTree, tmp_path: Path) -> None:
    begun = upload(tree, "/new", b"content")
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="a directory, not a regular file"):
        begun.commit(never)
    assert names(tmp_path) == ["new"]


def test_what_a_killed_process_left_is_swept(
    tree: ConfinedTree, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / f"{uploads._PREFIX}0123456789abcdef"
    left.write_bytes(b"half")
    alive = upload(tree, "/other", b"content")
    assert left.exists() == (way == "unnamed")
    begun = upload(tree, "/new", b"content")  # does not take the one that is still written
    alive.commit(never)
    begun.commit(never)
    assert (tmp_path / "other").read_bytes() == b"content"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["new", "other"]


@pytest.mark.usefixtures("way")
def test_a_file_system_that_cannot_refuse_to_replace(
    tree: ConfinedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invalid(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(syscalls, "renameat2", invalid)
    upload(tree, "/new", b"content").commit(never)
    begun = upload(tree, "/newer", b"content")
    (tmp_path / "newer").write_bytes(b"another one")
    begun.commit(never)
    assert (tmp_path / "newer").read_bytes() == b"content"
    assert names(tmp_path) == ["new", "newer"]


def test_space_that_is_missing_costs_no_content(
    tree: ConfinedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(syscalls, "reserve", full)
    content = memoryview(bytes(100_000))
    for append in (False, True):
        with pytest.raises(OSError, match="No space left"):
            put(tree, "/old", content, append=append, mode=0o644, owner=OWNER, cannot_hang=always)
        with pytest.raises(OSError, match="No space left"):
            upload(tree, "/old", bytes(content), append=append).commit(always)
        assert (tmp_path / "old").read_bytes() == b"old"
    assert names(tmp_path) == ["old"]


def test_a_write_that_fails_while_appending_is_undone(
    tree: ConfinedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    begun = upload(tree, "/old", bytes(1000), append=True)

    def half(source: int, target: int, start: int) -> None:
        os.pwrite(target, b"half", start)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(uploads, "_copy", half)
    with pytest.raises(OSError, match="Input/output error"):
        begun.commit(never)
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize("protected", [True, False])
def test_the_end_of_the_caller_does_not_interrupt_a_copy(
    tree: ConfinedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protected: bool
) -> None:
    held = []

    def copy(*_: object) -> None:
        held.append(signal.SIGIO in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(uploads, "_copy", copy)
    upload(tree, "/old", b"new").commit(lambda _: protected)
    assert held == [protected]
    assert signal.SIGIO not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_content_is_copied_where_the_kernel_does_not(
    tree: ConfinedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    (tmp_path / "old").write_bytes(b"old")
    content = os.urandom(3_000_000)
    monkeypatch.setattr(os, "copy_file_range", other_file_system)
    upload(tree, "/old", content).commit(never)
    assert (tmp_path / "old").read_bytes() == content
