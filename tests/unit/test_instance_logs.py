from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.support.instances import C1
from utsuwa.core.errors import HostError, InvalidRequest, NotFound
from utsuwa.core.idmap import IdMap
from utsuwa.instances import logs
from utsuwa.instances.commands import console
from utsuwa.instances.commands.exec import ExecTarget

ID = "0b5e3a1c-8d3f-4a77-9a51-1f9b1a0c2d3e"


async def test_only_known_logs_are_listed(tmp_path: Path) -> None:
    assert await logs.names(tmp_path / "missing") == []
    for name in (
        "lxc.log",
        "lxc.conf",
        "lxc.log.old",
        "console.log",
        "lxc.target",
        ".lxc.log",
        "lxc.log.old.old",
    ):
        (tmp_path / name).touch()
    assert await logs.names(tmp_path) == ["console.log", "lxc.conf", "lxc.log", "lxc.log.old"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../lxc.log", "lxc.log/", "lxc.log\n", "exec-output", "lxc.target"]
)
async def test_other_names_are_rejected(tmp_path: Path, name: str) -> None:
    for work in (logs.open_log, logs.delete_log, logs.truncate, logs.open_output, logs.delete_output):
        with pytest.raises(InvalidRequest, match="not valid"):
            await work(tmp_path, name)


async def test_reading_and_deleting(tmp_path: Path) -> None:
    (tmp_path / "lxc.log.old").write_bytes(b"old")
    with await logs.open_log(tmp_path, "lxc.log.old") as file:
        assert file.read() == b"old"
    await logs.delete_log(tmp_path, "lxc.log.old")
    for work in (logs.open_log, logs.delete_log):
        with pytest.raises(NotFound, match="does not exist"):
            await work(tmp_path, "lxc.log.old")
    with pytest.raises(InvalidRequest, match="cannot be deleted"):
        await logs.delete_log(tmp_path, "lxc.conf")


async def test_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "lxc.log").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "lxc.conf")
    (tmp_path / "console.log").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "lxc.log.old"))
    for name in ("lxc.log", "lxc.conf", "console.log", "lxc.log.old"):
        with pytest.raises(InvalidRequest, match="not a regular file"):
            await logs.open_log(tmp_path, name)
    with pytest.raises(InvalidRequest):
        await logs.truncate(tmp_path, "lxc.log")
    assert (tmp_path / "secret").read_text() == "secret"


async def test_outputs(tmp_path: Path) -> None:
    outputs = await logs.create_outputs(tmp_path, ID)
    assert [o.name for o in outputs] == [f"exec_{ID}.stdout", f"exec_{ID}.stderr"]
    os.write(outputs[0].fd, b"out")
    os.fchmod(outputs[1].fd, 0o700)
    await logs.finish_outputs(outputs)
    for output in outputs:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(output.fd)
        assert (tmp_path / "exec-output" / output.name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "exec-output").stat().st_mode & 0o777 == 0o700
    assert await logs.output_names(tmp_path) == [f"exec_{ID}.stderr", f"exec_{ID}.stdout"]
    with await logs.open_output(tmp_path, outputs[0].name) as file:
        assert file.read() == b"out"
    with pytest.raises(HostError, match="cannot be recorded: File exists"):
        await logs.create_outputs(tmp_path, ID)
    await logs.delete_output(tmp_path, outputs[0].name)
    assert await logs.output_names(tmp_path) == [f"exec_{ID}.stderr"]


async def test_a_symlink_to_an_output_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "exec-output").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="cannot be recorded"):
        await logs.create_outputs(tmp_path, ID)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def target(folder: Path) -> ExecTarget:
    return ExecTarget(C1, folder, folder, {}, IdMap(), running=True)


async def test_reading_and_clearing_the_console_log(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"said")
    for _ in range(2):
        assert await console.read(target(tmp_path)) == b"said"
    await console.clear(target(tmp_path))
    assert await console.read(target(tmp_path)) == b""


async def test_only_the_end_of_a_long_console_log_is_returned(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"x" * 2_000_000 + b"end")
    shown = await console.read(target(tmp_path))
    assert len(shown) == 1024 * 1024
    assert shown.endswith(b"xend")


async def test_no_console_log(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no console log yet"):
        await console.read(target(tmp_path))
    await console.clear(target(tmp_path))
