"""A signed Debian archive of a few small packages, from which an image is built in seconds without a network.

Its only essential package, `system`, has what installing others takes: programs of this host, and their
libraries.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tests.support.cache import cached

RELEASE = "tiny"
DATE = 1_700_000_000
"""Of the release and of its packages."""
_PROGRAMS = (
    *(
        "bash",
        "cat",
        "chmod",
        "chown",
        "cp",
        "dash",
        "dirname",
        "env",
        "false",
        "grep",
        "ln",
        "ls",
        "mkdir",
        "mv",
    ),
    *("rm", "sed", "sleep", "tail", "tar", "touch", "true", "date", "id", "diff"),
    *("dpkg", "dpkg-deb", "dpkg-query", "dpkg-split", "dpkg-trigger", "dpkg-statoverride", "dpkg-divert"),
)
_STUBS = ("ldconfig", "start-stop-daemon")
"""Programs that dpkg wants to find."""


@dataclass(frozen=True)
class TestArchive:
    """`mirror` is a URI of the folder, `keyring` the key that signs it, `home` that of gpg."""

    __test__ = False
    folder: Path
    keyring: Path
    home: Path

    @property
    def mirror(self) -> str:
        return f"file://{self.folder}"

    def definition(self, **keys: str) -> str:
        """Return the YAML of a definition of the archive's system, with further lines."""
        lines = {
            "distribution": "debian",
            "release": RELEASE,
            "mirror": self.mirror,
            "keyring": str(self.keyring),
        } | keys
        return "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in lines.items())

    def add(
        self,
        name: str,
        files: Mapping[str, str],
        version: str = "1.0",
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        """Add a package; `publish` has it known."""
        tree = self.folder.parent / f"tree-{name}"
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(content)
        _pack(self.folder, tree, name, version, "Priority: optional\n", scripts or {})

    def publish(self) -> None:
        """Write the index of all packages, and sign it."""
        place = self.folder / "dists" / RELEASE
        inner = place / "main" / f"binary-{_architecture()}"
        inner.mkdir(parents=True, exist_ok=True)
        index = b"".join(map(self._entry, sorted((self.folder / "pool").iterdir())))
        (inner / "Packages").write_bytes(index)
        release = (
            f"Suite: {RELEASE}\nCodename: {RELEASE}\nDate: {formatdate(DATE, usegmt=True)}\n"
            f"Architectures: {_architecture()}\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(index).hexdigest()} {len(index)} main/{inner.name}/Packages\n"
        )
        self._sign(release, place / "InRelease")

    def _entry(self, deb: Path) -> bytes:
        control = _run("dpkg-deb", "--field", deb)
        size, digest = deb.stat().st_size, hashlib.sha256(deb.read_bytes()).hexdigest()
        return control + f"Filename: pool/{deb.name}\nSize: {size}\nSHA256: {digest}\n\n".encode()

    def _sign(self, text: str, target: Path) -> None:
        signed = subprocess.run(
            ["gpg", "--batch", "--homedir", str(self.home), "--clearsign"],
            input=text.encode(),
            capture_output=True,
            check=True,
        )
        target.write_bytes(signed.stdout)


def archive_of_tests() -> TestArchive:
    """Return an archive with the packages `system`, `apt`, `hello` and `broken`, which is cached."""
    return _in(cached("archive", [Path(__file__).read_bytes()], _make))


def _in(folder: Path) -> TestArchive:
    return TestArchive(folder / "archive", folder / "key.gpg", folder / "gpg")


def _make(folder: Path) -> None:
    (folder / "archive/pool").mkdir(parents=True)
    archive = _in(folder)
    make_key(archive.home, archive.keyring)
    _add_system(archive)
    required = "Priority: required\n"
    _pack(archive.folder, folder / "tree-apt", "apt", "1.0", required, {})
    archive.add(
        "hello", {"usr/share/hello": "hello\n"}, scripts={"postinst": "#!/bin/sh\ntouch /var/installed\n"}
    )
    archive.add(
        "broken", {}, scripts={"postinst": "#!/bin/sh\necho broken has a script that fails\nexit 1\n"}
    )
    archive.publish()


def make_key(home: Path, keyring: Path) -> None:
    """Make a key without a passphrase, and write its public part."""
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--batch", "--homedir", home)
    _run(*gpg, "--passphrase", "", "--quick-generate-key", "tests@example.net", "ed25519", "sign", "never")
    keyring.write_bytes(_run(*gpg, "--export"))
    _run("gpgconf", "--homedir", home, "--kill", "all")


def _add_system(archive: TestArchive) -> None:
    tree = archive.folder.parent / "tree-system"
    for name in (
        "usr/bin",
        "usr/sbin",
        "etc",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "var/lib/dpkg",
        "var/log",
        "root",
        "srv",
    ):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    found = [Path(shutil.which(program) or program) for program in _PROGRAMS]
    for program in found:
        _copy(program.resolve(), tree / "usr/bin" / program.name)
    for word in set(_run("ldd", *found).decode().split()):
        if word.startswith("/") and not word.endswith(":"):
            _copy(Path(word).resolve(), tree / "usr" / word.removeprefix("/usr").lstrip("/"))
    (tree / "usr/bin/sh").symlink_to("dash")
    for name in _STUBS:
        (tree / "usr/sbin" / name).write_text("#!/bin/sh\n")
        (tree / "usr/sbin" / name).chmod(0o755)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "etc/away").symlink_to("/var/../../../srv")
    _pack(archive.folder, tree, "system", "1.0", "Essential: yes\nPriority: required\n", {})


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _pack(folder: Path, tree: Path, name: str, version: str, fields: str, scripts: Mapping[str, str]) -> None:
    control = tree / "DEBIAN"
    control.mkdir(parents=True, exist_ok=True)
    (control / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {_architecture()}\n{fields}"
        "Maintainer: Tests <tests@example.net>\nDescription: Package of the tests\n"
    )
    for script, text in scripts.items():
        (control / script).write_text(text)
        (control / script).chmod(0o755)
    target = folder / "pool" / f"{name}_{version}_{_architecture()}.deb"
    _run(
        "dpkg-deb",
        "--root-owner-group",
        "-Znone",
        "--build",
        tree,
        target,
        env={"SOURCE_DATE_EPOCH": str(DATE)},
    )
    shutil.rmtree(tree)


@functools.cache
def _architecture() -> str:
    return _run("dpkg", "--print-architecture").decode().strip()


def _run(*command: str | Path, env: Mapping[str, str] | None = None) -> bytes:
    ended = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | dict(env or {}),
    )
    assert ended.returncode == 0, f"{command[0]}: {ended.stderr.decode(errors='replace')}"
    return ended.stdout


def tree_of(squashfs: Path) -> dict[str, tuple[str, str, str]]:
    """Return mode, owner and content of each file of an image, a link's target for a link."""
    listed = _run("unsquashfs", "-llnumeric", squashfs).decode()
    found = {}
    for line in listed.splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("squashfs-root/"):
            path, _, target = words[5].removeprefix("squashfs-root").partition(" -> ")
            found[path] = (words[0], words[1], target)
    return found


def content_of(squashfs: Path, path: str) -> str:
    return _run("unsquashfs", "-cat", squashfs, path.lstrip("/")).decode()
