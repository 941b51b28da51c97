"""The search for leaks finds each kind: every test with a daemon relies on it."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import leaks
from tests.support.images import Image

pytestmark = pytest.mark.root

OWNER = f"utsuwa-leaktest-{secrets.token_hex(4)}"


@pytest.fixture
def leftovers(tmp_path: Path, busybox_image: Image) -> Iterator[tuple[Path, leaks.HostState]]:
    """A folder of which one thing of every kind is left on the host."""
    before = leaks.HostState.now()
    image = tmp_path / "image"
    image.write_bytes(busybox_image.rootfs.read_bytes())
    cgroup, outside = Path("/sys/fs/cgroup/pids", OWNER), Path("/run", f"of-{tmp_path.name}")
    if not cgroup.parent.is_dir():
        cgroup = Path("/sys/fs/cgroup", OWNER)
    (tmp_path / "m").mkdir()
    with ExitStack() as stack:

        def do(*argv: str, undo: tuple[str, ...]) -> None:
            subprocess.run(argv, check=True)
            stack.callback(subprocess.run, undo, check=True)

        do("mount", "-t", "tmpfs", "none", str(tmp_path / "m"), undo=("umount", str(tmp_path / "m")))
        do("nft", "add", "table", "inet", OWNER, undo=("nft", "delete", "table", "inet", OWNER))
        do("ip", "link", "add", "left", "type", "bridge", undo=("ip", "link", "delete", "left"))
        loop = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
        stack.callback(subprocess.run, ["losetup", "-d", loop.stdout.strip()], check=True)
        cgroup.mkdir()
        stack.callback(cgroup.rmdir)
        outside.touch()
        stack.callback(outside.unlink)
        process = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield tmp_path, before


def test_every_kind_is_found(leftovers: tuple[Path, leaks.HostState]) -> None:
    folder, before = leftovers
    kinds = [line.split(":")[0] for line in leaks.find_leaks(folder, OWNER, before, patience=0)]
    assert set(kinds) == {
        "mount",
        "loop device",
        "process",
        "file outside",
        "cgroup",
        "firewall table",
        "network interface",
    }


def test_clean_host_has_no_leaks(tmp_path: Path) -> None:
    folder = tmp_path / f"clean-{secrets.token_hex(6)}"  # files of earlier runs have other names
    folder.mkdir()
    assert leaks.find_leaks(folder, OWNER, leaks.HostState.now(), patience=0) == []
