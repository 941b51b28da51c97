"""Turns and shared files of the workers of a test run."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from pathlib import Path

from tests.support import workers

SECONDS = 20


def shut(gate: Path) -> bool:
    with gate.open("ab") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_test_alone_waits_for_others_and_keeps_later_ones_out(tmp_path: Path) -> None:
    order: list[str] = []

    def run(name: str, alone: bool) -> None:
        with workers.turn(tmp_path, alone=alone):
            order.append(name)

    first, later = (threading.Thread(target=run, args=(name, name == "alone")) for name in ("alone", "later"))
    with workers.turn(tmp_path, alone=False):
        run("beside", alone=False)
        first.start()
        while not shut(tmp_path / "gate"):
            time.sleep(0.01)
        later.start()
        later.join(0.1)
        order.append("own")
    for thread in (first, later):
        thread.join(SECONDS)
    assert order == ["beside", "own", "alone", "later"]


def test_shared_files_are_created_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("content")

    def ask() -> None:
        assert (workers.once(tmp_path, "image", make) / "file").read_text() == "content"

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(made) == 1


def test_failed_creation_is_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError

    with contextlib.suppress(OSError):
        workers.once(tmp_path, "image", fail)
    folder = workers.once(tmp_path, "image", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
