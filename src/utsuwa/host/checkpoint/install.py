"""Installing a newer CRIU for Utsuwa alone: Debian's package with its libraries, fetched by apt, which
verifies it.

apt gets a configuration, lists and caches of its own, so the host's sources and packages stay as they are.
The program runs with the loader and the libraries of its own distribution. Blocking, for the command line.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from utsuwa.core.errors import HostError, InvalidRequest, ProcessFailed
from utsuwa.host.checkpoint.program import LAUNCHER, OLDEST_TEXT, is_new_enough, parse_version
from utsuwa.host.processes.run import PATH, run_blocking

SUITES = ("forky", "sid")
"""The suites of Debian that have it, which are tried in this order."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_MIRROR = re.compile(r"(?:https?://|file:/)[A-Za-z0-9._~:/%+-]{1,300}\Z")
_TIMEOUT = 600.0
_INSTALLED = re.compile(r"^Inst (\S+) ", re.MULTILINE)
_LIBRARY = re.compile(r"=> (/\S+) \(0x")
_LAUNCHER = """\
#!/bin/sh
# Runs this CRIU with its own loader and libraries.
program=$0
[ ! -L "$0" ] || program=$(readlink -f "$0")
here=${{program%/*}}
exec "$here/{loader}" --library-path "$here/{libraries}" "$here/{program}" "$@"
"""


def install(folder: Path, mirror: str = "") -> str:
    """Install CRIU into `folder`, replacing what is there; return its version.

    `mirror` is that of Debian; empty for the one of the host's apt, if any, or the default. Raises
    InvalidRequest (mirror), HostError.
    """
    mirror = mirror or _host_mirror() or _DEFAULT_MIRROR
    if not _MIRROR.match(mirror):
        raise InvalidRequest(f"{mirror[:80]!r} is not the URL of a mirror of Debian")
    if not KEYRING.exists():
        raise HostError(f"{KEYRING} is missing: install Debian's package 'debian-archive-keyring'")
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".criu-", dir=folder.parent) as name:
        scratch = Path(name)
        files = _fetch(scratch, mirror)
        fresh = scratch / "criu"
        _take(files, fresh)
        version = _check(fresh / LAUNCHER)
        fresh.chmod(0o755)
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
    return version


def _host_mirror() -> str:
    """Return the mirror of Debian that the host's apt uses, empty if it has none."""
    try:
        found = run_blocking(
            ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
        )
    except ProcessFailed:
        return ""
    for line in found.text.splitlines():
        origin, _, url = line.partition(" ")
        if origin == "Debian" and "security" not in url and _MIRROR.match(url):
            return url.rstrip("/")
    return ""


def _fetch(scratch: Path, mirror: str) -> Path:
    """Download and unpack the package with what it needs; return the folder of their files."""
    problems = []
    for suite in SUITES:
        try:
            return _fetch_from(scratch / suite, mirror, suite)
        except ProcessFailed as error:
            problems.append(f"{suite}: {_last_line(error)}")
    raise HostError(f"cannot get CRIU from {mirror}: {'; '.join(problems)}")


def _last_line(error: ProcessFailed) -> str:
    lines = [line for line in error.stderr.splitlines() if line.startswith("E: ")]
    return lines[-1].removeprefix("E: ") if lines else error.message


def _fetch_from(place: Path, mirror: str, suite: str) -> Path:
    for name in ("lists/partial", "cache/archives/partial", "packages", "files", "none"):
        (place / name).mkdir(parents=True)
    sources, status = place / "sources.list", place / "status"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    status.touch()  # nothing counts as installed, so all libraries are fetched
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": place / "none",
        "Dir::Etc::preferences": place / "no-preferences",
        "Dir::Etc::preferencesparts": place / "none",
        "Dir::State::lists": place / "lists",
        "Dir::State::status": status,
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", "-q", *(w for key, value in settings.items() for w in ("-o", f"{key}={value}"))]
    run_blocking([*apt, "update"], timeout=_TIMEOUT)
    planned = run_blocking([*apt, "-s", "install", "--no-install-recommends", "criu"], timeout=_TIMEOUT)
    names = _INSTALLED.findall(planned.text)
    run_blocking([*apt, "download", *names], timeout=_TIMEOUT, cwd=place / "packages")
    for package in sorted((place / "packages").glob("*.deb")):
        run_blocking(["dpkg-deb", "-x", str(package), str(place / "files")], timeout=_TIMEOUT)
    return place / "files"


def _take(files: Path, fresh: Path) -> None:
    """Copy the program, its loader and the libraries that it needs, and write a launcher."""
    program = _one(files, "usr/sbin/criu")
    loader = _one(files, "usr/lib/*/ld-linux*.so.*")
    libraries = loader.parent
    listed = run_blocking([str(loader), "--library-path", str(libraries), "--list", str(program)])
    fresh.mkdir(mode=0o755)
    (fresh / "lib").mkdir()
    for found in _LIBRARY.findall(listed.text):
        if Path(found).is_relative_to(files):
            shutil.copy2(found, fresh / "lib" / Path(found).name)
    shutil.copy2(loader, fresh / loader.name)
    shutil.copy2(program, fresh / "criu.bin")
    text = _LAUNCHER.format(loader=loader.name, libraries="lib", program="criu.bin")
    launcher = fresh / LAUNCHER
    launcher.write_text(text)
    launcher.chmod(0o755)


def _one(files: Path, pattern: str) -> Path:
    found = sorted(path for path in files.glob(pattern) if path.exists())
    if not found:
        raise HostError(f"the package has no {pattern}: report this as a bug")
    return found[0]


def _check(program: Path) -> str:
    """Return the version of an installed program. Raises HostError."""
    try:
        version = parse_version(run_blocking([str(program), "--version"]).text)
    except ProcessFailed as error:
        raise HostError(f"CRIU was fetched but does not run here: {error.message}") from error
    if not is_new_enough(version):
        raise HostError(f"Debian has version {version or 'unknown'} only; {OLDEST_TEXT} is needed")
    return version


def link(folder: Path, target: Path) -> None:
    """Let the host find the installed CRIU as `target`.

    Raises HostError if something else is there, or if no link can be made there.
    """
    program = folder / LAUNCHER
    if target.is_symlink() and target.resolve() == program.resolve():
        return
    if target.exists() or target.is_symlink():
        raise HostError(f"{target} exists already: remove it first, or choose another place")
    found = shutil.which("criu", path=PATH)
    if found is not None and Path(found).resolve() != program.resolve():
        raise HostError(f"this host has {found} already, which a link would hide or be hidden by")
    try:
        target.symlink_to(program)
    except OSError as error:
        raise HostError(f"cannot link CRIU as {target}: {error.strerror}") from error
