"""Small file systems of a test's own, which can be filled up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loop_ext4(folder: Path, size: int, *options: str) -> Iterator[Path]:
    """An ext4 of `size` bytes in a file beside `folder`, mounted there for the block."""
    file = folder.with_name(f"{folder.name}.ext4")
    folder.mkdir()
    with file.open("wb") as disk:
        disk.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", *options, file], check=True)
    subprocess.run(["mount", "-o", "loop", file, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--recursive", folder], check=True)
        file.unlink()
        folder.rmdir()
