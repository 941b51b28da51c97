"""Sessions of the helper for files: with the container's rights alone, confined, and killed if they hang."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host import syscalls
from utsuwa.host.helper import session as sessions
from utsuwa.host.helper.calls import BUFFER
from utsuwa.host.helper.client import Helper
from utsuwa.host.helper.replies import HelperGone
from utsuwa.host.helper.session import FileSession
from utsuwa.host.mounts import mounts
from utsuwa.host.mounts.userns import user_namespace

pytestmark = pytest.mark.root

RANGES = (IdRange(0, 100_000, 65_536),)
MAP = IdMap(RANGES, RANGES)
OWNER = (0, 0)


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[Path]:
    root, tree = tmp_path / "rootfs", tmp_path / "tree"
    root.mkdir()
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hosts").write_text("inside\n")
    (tmp_path / "secret").write_text("outside\n")
    mounts.bind_idmapped(tree, root, MAP)
    yield root
    mounts.unmount(root)


@pytest.fixture
def tree(rootfs: Path) -> Path:
    """The files of `rootfs` as they are on disk, with the container's own ids."""
    return rootfs.parent / "tree"


@asynccontextmanager
async def session_in(helper: Helper, root: Path, idmap: IdMap = MAP) -> AsyncIterator[FileSession]:
    fd = os.open(root, os.O_PATH)
    try:
        if idmap.privileged:
            session = await helper.files(fd, None)
        else:
            with user_namespace(idmap) as namespace:
                session = await helper.files(fd, namespace)
    finally:
        os.close(fd)
    try:
        yield session
    finally:
        await session.end()


async def push(session: FileSession, path: str, data: bytes, *, append: bool = False) -> int:
    return await session.push(path, data, append=append, mode=0o640, owner=(1000, 1001), more=False)


async def test_files_are_written_with_the_ids_of_the_container(
    helper: Helper, rootfs: Path, tree: Path
) -> None:
    async with session_in(helper, rootfs) as session:
        assert await push(session, "/etc/new", b"one") == -1
        assert await push(session, "/etc/new", b"+two", append=True) == -1
        found, data = await session.pull("/etc/new")
        assert data == b"one+two"
        assert list(found["entry"])[1:4] == [1000, 1001, 7]
        await session.call("make_directory", "/folder", 0o2755, (5, 6))
        await session.call("make_symlink", "/link", "/etc/new", (7, 8))
        assert (await session.stat("/link"))[1:3] == (7, 8)
        assert (await session.stat("/link", follow=True))[1:3] == (1000, 1001)
        assert sorted((await session.pull("/"))[0]["names"] or []) == ["etc", "folder", "link"]
        assert (await session.pull("/link"))[0]["target"] == "/etc/new"
    on_disk = (tree / "etc/new").stat()
    assert (on_disk.st_uid, on_disk.st_gid, on_disk.st_mode & 0o7777) == (1000, 1001, 0o640)
    assert (tree / "folder").stat().st_mode & 0o7777 == 0o2755


async def test_large_files_are_read_and_written_in_parts(helper: Helper, rootfs: Path) -> None:
    content = os.urandom(BUFFER + 5)
    async with session_in(helper, rootfs) as session:
        handle = await session.push("/large", content[:10], append=False, mode=0o644, owner=OWNER, more=True)
        await session.write(handle, content[10:], 10)
        await session.commit(handle, len(content))
        found, data = await session.pull("/large")
        assert data == content[:BUFFER]
        assert found["handle"] is not None
        assert await session.read(found["handle"], BUFFER, BUFFER) == content[BUFFER:]
        assert await session.read(found["handle"], BUFFER, BUFFER + 5) == b""


@pytest.mark.parametrize("idmap", [MAP, IdMap()])
async def test_paths_cannot_leave_the_root(helper: Helper, rootfs: Path, tree: Path, idmap: IdMap) -> None:
    (tree / "out").symlink_to("../secret")
    (tree / "magic").symlink_to("/proc/self/root/etc/passwd")
    (tree / "proc").mkdir()
    mounts.bind(Path("/proc"), rootfs / "proc")
    try:
        async with session_in(helper, rootfs, idmap) as session:
            for path in ("../../secret", "out/", "/etc/../../secret"):
                with pytest.raises(FileNotFoundError):
                    await session.pull(path)
            with pytest.raises(OSError):  # noqa: PT011
                await session.call("open", "magic", os.O_RDONLY)
            with pytest.raises(PermissionError):
                await session.call("open", "/proc/sys/kernel/core_pattern", os.O_WRONLY)
            with pytest.raises(PermissionError):
                await session.call("open", "/proc/1/environ", os.O_RDONLY)
            for path in ("/", "..", "/etc/.", ""):
                with pytest.raises(OSError, match="does not end in a name"):
                    await session.call("remove", path)
            with pytest.raises(OSError, match="NUL"):
                await session.pull("/a\0b")
    finally:
        mounts.unmount(rootfs / "proc")


async def test_special_files_are_refused(helper: Helper, rootfs: Path, tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mknod(tree / "socket", 0o140666)
    async with session_in(helper, rootfs) as session:
        for name, kind in (("fifo", "FIFO"), ("null", "device"), ("socket", "socket"), ("etc", "directory")):
            with pytest.raises(OSError, match=f"{kind}, not a regular file"):
                await push(session, name, b"x")
        for name in ("fifo", "null", "socket"):
            with pytest.raises(OSError, match="not a regular file"):
                await session.pull(name)


async def test_a_container_s_root_has_no_rights_on_files_of_others(helper: Helper, tmp_path: Path) -> None:
    """A directory of the host that is not shifted belongs to nobody inside, as in the container itself."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "private").mkdir(mode=0o700)
    (shared / "readable").write_text("x")
    async with session_in(helper, shared) as session:
        with pytest.raises(PermissionError):
            await push(session, "/private/file", b"x")
        with pytest.raises(PermissionError):
            await push(session, "/readable", b"y")
        assert (await session.pull("/readable"))[1] == b"x"
        assert (await session.stat("/readable"))[1] == 65534


async def test_an_owner_that_is_not_mapped_leaves_nothing(helper: Helper, rootfs: Path) -> None:
    async with session_in(helper, rootfs) as session:
        for call in ("make_directory", "create"):
            args = (
                ("/new", os.O_WRONLY, 0o644, (70_000, 0))
                if call == "create"
                else ("/new", 0o755, (70_000, 0))
            )
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await session.call(call, *args)
            assert caught.value.errno == errno.EINVAL
    assert [entry.name for entry in rootfs.iterdir()] == ["etc"]


async def test_a_new_file_that_cannot_be_written_is_removed(helper: Helper, rootfs: Path, tree: Path) -> None:
    small = rootfs / "small"
    (tree / "small").mkdir()
    syscalls.mount("none", small, "tmpfs", 0, "size=16k,uid=100000,gid=100000")
    try:
        async with session_in(helper, rootfs) as session:
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await push(session, "/small/file", bytes(100_000))
        assert caught.value.errno == errno.ENOSPC
        assert list(small.iterdir()) == []
    finally:
        mounts.unmount(small)


async def test_links_that_are_exchanged_lead_nowhere(
    helper: Helper, rootfs: Path, tree: Path, tmp_path: Path
) -> None:
    """A directory on the way is exchanged with a symlink to the outside, all the time (lxd#789)."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    (tree / "a").mkdir()
    (tree / "b").symlink_to(outside)
    stop = asyncio.Event()

    async def exchange() -> None:
        folder = os.open(tree, os.O_PATH)
        while not stop.is_set():
            os.rename("a", "c", src_dir_fd=folder, dst_dir_fd=folder)
            os.rename("b", "a", src_dir_fd=folder, dst_dir_fd=folder)
            await asyncio.sleep(0)
            os.rename("a", "b", src_dir_fd=folder, dst_dir_fd=folder)
            os.rename("c", "a", src_dir_fd=folder, dst_dir_fd=folder)
            await asyncio.sleep(0)
        os.close(folder)

    exchanging = asyncio.create_task(exchange())
    written = 0
    async with session_in(helper, rootfs) as session:
        for number in range(300):
            try:
                await push(session, f"/a/{number}", b"x")
                written += 1
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EAGAIN), error  # noqa: PT017
    stop.set()
    await exchanging
    assert written
    assert list(outside.iterdir()) == []


@pytest.fixture
def deaf(rootfs: Path, tree: Path) -> Iterator[str]:
    """A FUSE file system whose server never answers."""
    (tree / "deaf").mkdir()
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    syscalls.mount("none", rootfs / "deaf", "fuse", 0, options)
    yield "/deaf/file"
    os.close(server)
    mounts.unmount(rootfs / "deaf")


async def _stat(session: FileSession, path: str) -> None:
    await session.stat(path)


async def _pull(session: FileSession, path: str) -> None:
    await session.pull(path)


@pytest.mark.parametrize("ask", [_stat, _pull])
async def test_a_session_that_hangs_is_killed(
    helper: Helper,
    rootfs: Path,
    deaf: str,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[FileSession, str], Awaitable[None]],
) -> None:
    async with session_in(helper, rootfs, IdMap()) as session:
        with monkeypatch.context() as patch:
            patch.setattr(sessions, "CALL_TIMEOUT", 0.2)
            with pytest.raises(HostError, match=r"within 0\.2 s"):
                await ask(session, deaf)
        with pytest.raises(HelperGone):
            await session.stat("/")
    async with session_in(helper, rootfs, IdMap()) as session:  # another one works
        await session.stat("/")


async def test_a_cancelled_call_ends_the_session(helper: Helper, rootfs: Path, deaf: str) -> None:
    async with session_in(helper, rootfs, IdMap()) as session:
        call = asyncio.create_task(session.stat(deaf))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert session.closed
