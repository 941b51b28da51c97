"""Reading of files in /proc."""

from __future__ import annotations


def read(path: str) -> str:
    with open(path, errors="surrogateescape") as file:  # noqa: PTH123 - pathlib takes 10 ms to import
        return file.read()
