"""Download of packages into an archive of their own, by an apt that shares nothing with the host's.

Signatures of the archive are verified with its keyring, and each package by the hash in the signed index. No
package is unpacked here, and none of its scripts is run.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import shutil

from utsuwa.cli.building import archive
from utsuwa.cli.building.processes import output, run
from utsuwa.cli.errors import CommandFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from utsuwa.cli.building.archive import Archive

_FOLDERS = (
    "etc/apt/apt.conf.d",
    "etc/apt/preferences.d",
    "etc/apt/sources.list.d",
    "etc/apt/trusted.gpg.d",
    "var/cache/apt/archives/partial",
    "var/lib/apt/lists/partial",
    "var/lib/dpkg",
    "var/log/apt",
)
_LISTS = "var/lib/apt/lists"
_FIELD = re.compile(r"^(Package|Version): (.+)$", re.MULTILINE)
_AR_TIME = slice(24, 36)
"""Of the first member of a package, after the magic number of the format and the member's name."""


class Downloads:
    """An apt with its own directories. Methods raise CommandFailed with what apt says."""

    def __init__(self, root: str, source: Archive, release: str, architecture: str) -> None:
        self._root = root
        self._release = release
        self._architecture = architecture
        self._environment = {"APT_CONFIG": f"{root}/apt.conf", "DEBIAN_FRONTEND": "noninteractive"}
        self._log = f"{root}/log"
        for name in _FOLDERS:
            os.makedirs(f"{root}/{name}", exist_ok=True)
        os.chmod(root, 0o755)  # apt downloads as a user of its own, if this one is root
        self._write("var/lib/dpkg/status", "")
        # apt uses packages of `file:` in place; here, they are needed in a directory of their own.
        sources = source.sources(self._keyring(source)).replace("] file:", "] copy:")
        self._write("etc/apt/sources.list", sources)
        self._write("apt.conf", _settings(root, architecture))

    def _keyring(self, source: Archive) -> str:
        """Return a copy of the keyring that apt's user can read."""
        path = f"{self._root}/keyring{archive.suffix(source.keyring)}"
        shutil.copyfile(source.keyring, path)
        os.chmod(path, 0o644)
        return path

    def _write(self, name: str, text: str) -> None:
        path = f"{self._root}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)

    def fetch(self, packages: Iterable[str]) -> None:
        """Download the packages of a minimal system, these ones, and all that they depend on."""
        self._apt_get("update", "--error-on=any")
        minimal = (self._pattern("?essential"), self._pattern("?priority(required),?not(?essential)"))
        self._apt_get("install", "--yes", "--download-only", "--no-install-recommends", *minimal, *packages)

    def _pattern(self, what: str) -> str:
        """Return a pattern for packages of the release itself, as mmdebstrap uses it for the same purpose."""
        name = re.escape(self._release).replace("\\-", "-")
        release = f"?or(?archive(^{name}$),?codename(^{name}$))"
        return f"?narrow({release},?architecture({self._architecture}),{what})"

    def _apt_get(self, *words: str) -> None:
        with open(self._log, "wb"):
            pass
        if run(("apt-get", "-q", "-o", "Dpkg::Use-Pty=0", *words), self._log, self._environment):
            with open(self._log, encoding="utf-8", errors="replace") as file:
                raise CommandFailed(explain(file.read()))

    def make_repository(self, folder: str) -> int:
        """Move the packages into a directory, with an index; return the time of the newest, in seconds.

        This is the time of the release, or the time at which one of the packages was built, if that is later.
        """
        os.mkdir(folder)
        downloaded = f"{self._root}/var/cache/apt/archives"
        names = sorted(name for name in os.listdir(downloaded) if name.endswith(".deb"))
        for name in names:
            os.rename(f"{downloaded}/{name}", f"{folder}/{name}")
        time = max((self._release_time(), *(_built(f"{folder}/{name}") for name in names)))
        index = self._index(names).encode()
        with open(f"{folder}/Packages", "wb") as file:
            file.write(index)
        with open(f"{folder}/Release", "w", encoding="ascii") as file:
            file.write(
                f"Suite: {self._release}\nCodename: {self._release}\n"
                f"Architectures: {self._architecture} all\n"
                f"Date: {email.utils.formatdate(time, usegmt=True)}\n"
                f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
            )
        return time

    def _index(self, names: list[str]) -> str:
        """Return the entries of packages in the signed index, which say more than the packages themselves."""
        files = {}
        for name in names:
            package, version, _ = name.split("_")
            files[package, version.replace("%3a", ":")] = name
        wanted = (f"{package}={version}" for package, version in files)
        shown = output("apt-cache", "show", *wanted, environment=self._environment)
        entries: dict[str, str] = {}
        for entry in shown.split("\n\n"):
            fields = dict(_FIELD.findall(entry))
            found = files.get((fields.get("Package", ""), fields.get("Version", "")))
            if found:
                entries[found] = re.sub(r"(?m)^Filename: .*", f"Filename: ./{found}", entry.strip())
        return "".join(f"{entries[name]}\n\n" for name in names)

    def _release_time(self) -> int:
        """Return the time of the release, or of all of the archive if no part of that has its name."""
        named, others = [0], [0]
        for name in os.listdir(f"{self._root}/{_LISTS}"):
            if not name.endswith("Release"):
                continue
            with open(f"{self._root}/{_LISTS}/{name}", encoding="utf-8", errors="replace") as file:
                fields = dict(re.findall(r"^(Suite|Codename|Date): (.+)$", file.read(), re.MULTILINE))
            is_named = self._release in (fields.get("Suite"), fields.get("Codename"))
            (named if is_named else others).append(_seconds(fields.get("Date", "")))
        return max(named) or max(others)


def _settings(root: str, architecture: str) -> str:
    return (
        f'Dir "{root}/";\n'
        f'Dir::State::Status "{root}/var/lib/dpkg/status";\n'
        f'APT::Architecture "{architecture}";\n'
        f'APT::Architectures {{ "{architecture}"; }};\n'
        'pkgCacheGen::ForceEssential ",";\n' + archive.acquire_settings() + 'Acquire::Languages "none";\n'
    )


def _built(path: str) -> int:
    """Return the time at which a package was built, as its archive says."""
    with open(path, "rb") as file:
        text = file.read(60)[_AR_TIME].strip()
    return int(text) if text.isdigit() else 0


def _seconds(date: str) -> int:
    try:
        return int(email.utils.parsedate_to_datetime(date.replace("UTC", "+0000")).timestamp())
    except ValueError:
        return 0


_EXPLAINED = (
    (r"E: Unable to locate package (\S+)", "There is no package {0} in the archive"),
    (r"E: Couldn't find any package by (?:glob|regex) '([^']+)'", "There is no package {0} in the archive"),
    (r"E: Version '([^']+)' for '([^']+)' was not found", "There is no version {0} of the package {1}"),
    (r"E: Package '([^']+)' has no installation candidate", "The package {0} cannot be installed"),
)
_SIGNATURE = re.compile(
    r"NO_PUBKEY|BADSIG|EXPKEYSIG|REVKEYSIG|EXPSIG|not signed|signatures? (?:were|was|couldn't|could)|"
    r"Clearsigned file isn't valid"
)
_UNREACHABLE = re.compile(
    r"Could not (?:resolve|connect)|Connection (?:failed|refused|timed out)|Temporary failure|"
    r"Unable to connect|File not found|Cannot initiate the connection"
)
_MISSING = re.compile(r"does not have a Release file|404 ")


def explain(said: str) -> str:
    """Return a message for what apt-get has said."""
    for pattern, text in _EXPLAINED:
        found = sorted(set(re.findall(pattern, said)))
        if found:
            return "; ".join(text.format(*([f] if isinstance(f, str) else f)) for f in found)
    lines = [line for line in said.splitlines() if line.startswith(("E:", "W:", "Err:"))]
    details = "\n".join(dict.fromkeys(re.sub(r"^(E|W): ", "", line) for line in lines)) or said.strip()
    if _SIGNATURE.search(said):
        return f"The signature of the archive cannot be verified; check 'keyring'\n{details}"
    if _UNREACHABLE.search(said):
        return f"The archive cannot be reached; check 'mirror' or 'sources', and the network\n{details}"
    if _MISSING.search(said):
        return f"The archive does not have this release; check 'release', 'mirror' or 'sources'\n{details}"
    return f"The packages cannot be downloaded\n{details}"
