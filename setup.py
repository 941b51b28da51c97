"""Builds the web page along with the package; all else is in pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_BUILDER = Path(__file__).resolve().parent / "web/build_page.py"


class BuildWithPage(build_py):
    """Builds the page first, so that its files are there to be copied."""

    def run(self) -> None:
        if _BUILDER.is_file():
            runpy.run_path(str(_BUILDER))["build_or_explain"]()
        super().run()


setup(cmdclass={"build_py": BuildWithPage})
