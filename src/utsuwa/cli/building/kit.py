"""All that an installation needs, in one directory.

repository/         the packages, with their index
settings            variables of the shell, for install.sh
install.sh          the installation
dpkg.cfg            options of dpkg
customize           a hook of mmdebstrap: files, commands and what is removed at the end
files/N             content of files
"""

from __future__ import annotations

import os
import shlex
import shutil
import tarfile

from utsuwa.cli.building.definition import File

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.building.archive import Archive
    from utsuwa.cli.building.definition import Definition

_INSTALL = os.path.join(os.path.dirname(__file__), "install.sh")

_FUNCTIONS = """\
#!/bin/bash
# A hook of mmdebstrap, which gives it the root file system. Everything is done inside of that.
set -euo pipefail
umask 022
root=$1
kit=$(dirname "$0")
said=$kit/said

# fail MESSAGE: with what the last command has said.
fail() {
    {
        echo "utsuwa: $1"
        tail -n 30 "$said" | sed 's/^/    /'
    } >"$kit/failure"
    exit 1
}

# file NUMBER PATH OWNER MODE: replace a file; links on the way lead nowhere but into the image.
file() {
    chroot "$root" /bin/sh -ec '
        mkdir -p -- "$(dirname -- "$1")"
        rm -f -- "$1"
        cat >"$1"
        chown -- "$2" "$1"
        chmod -- "$3" "$1"
    ' sh "$2" "$3" "$4" <"$kit/files/$1" >"$said" 2>&1 || fail "The file $2 cannot be written:"
}

# run NUMBER COMMAND
run() {
    local status=0
    chroot "$root" /usr/bin/env DEBIAN_FRONTEND=noninteractive HOME=/root \\
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
        /bin/sh -ec "$2" </dev/null >"$said" 2>&1 || status=$?
    [ $status -eq 0 ] || fail "Command $1 failed with exit status $status: $2"
}

"""

_CLEAN = """
# What belongs to one machine, to this build or to the host that it ran on.
cd "$root"
[ ! -e etc/machine-id ] || : >etc/machine-id
rm -f etc/hostname etc/hosts etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/apt/apt.conf.d/99mmdebstrap
rm -f var/lib/dbus/machine-id var/lib/systemd/random-seed var/lib/urandom/random-seed
rm -f var/cache/debconf/*-old var/lib/dpkg/*-old
rm -f etc/.pwd.lock etc/group- etc/gshadow- etc/passwd- etc/shadow- etc/subuid- etc/subgid-
rm -f etc/ssh/ssh_host_*_key etc/ssh/ssh_host_*_key.pub
find var/log var/cache/apt var/cache/ldconfig -type f -delete 2>/dev/null || true
"""


def write(folder: str, definition: Definition, source: Archive, epoch: int) -> None:
    """Write all but the repository into an existing directory."""
    shutil.copy(_INSTALL, f"{folder}/install.sh")
    settings = {
        "SUITE": definition.release,
        "PACKAGES": ",".join(definition.packages),
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    _write(folder, "settings", "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items()))
    _write(folder, "dpkg.cfg", _dpkg_options(definition))
    os.mkdir(f"{folder}/files")
    _write(folder, "customize", _customize(folder, definition, source))
    os.chmod(f"{folder}/customize", 0o700)


def _write(folder: str, name: str, content: str | bytes) -> None:
    with open(f"{folder}/{name}", "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def _dpkg_options(definition: Definition) -> str:
    return (
        "force-unsafe-io\n"
        + "".join(f"path-exclude={pattern}\n" for pattern in definition.path_exclude)
        + "".join(f"path-include={pattern}\n" for pattern in definition.path_include)
    )


def _customize(folder: str, definition: Definition, source: Archive) -> str:
    lines = []
    for number, file in enumerate((*_apt_files(definition, source), *definition.files)):
        _write(folder, f"files/{number}", file.content)
        lines.append(_call("file", str(number), file.path, file.owner, file.mode))
    for number, command in enumerate(definition.commands, 1):
        lines.append(_call("run", str(number), command))
    # mmdebstrap has copied this host's; a definition may have its own.
    if all(file.path != "/etc/resolv.conf" for file in definition.files):
        lines.insert(0, 'rm -f "$root/etc/resolv.conf"\n')
    return _FUNCTIONS + "".join(lines) + _CLEAN


def _apt_files(definition: Definition, source: Archive) -> tuple[File, ...]:
    """Return the image's sources of packages, with their key if no package of the image has it."""
    sources = File("/etc/apt/sources.list", source.sources(source.keyring_inside).encode())
    if not definition.keyring:
        return (sources,)
    with open(source.keyring, "rb") as file:
        return sources, File(source.keyring_inside, file.read())


def _call(*words: str) -> str:
    return shlex.join(words) + "\n"


def pack(folder: str, path: str) -> None:
    """Write a tar archive with the content of a kit."""
    with tarfile.open(path, "w") as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(f"{folder}/{name}", name)
