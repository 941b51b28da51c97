"""A build, from a definition to the two files of an image."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal

from utsuwa.cli.building import archive, container, definition, kit, metadata, packages, scratch
from utsuwa.cli.building.processes import output, run
from utsuwa.cli.errors import CommandFailed, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from utsuwa.cli.building.archive import Archive
    from utsuwa.cli.building.definition import Definition
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

METADATA, ROOTFS = "metadata.tar.xz", "rootfs.squashfs"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is built, and what of; `architecture` is Debian's name of this host's."""

    definition: Definition
    architecture: str
    archive: Archive


def prepare(path: str, properties: dict[str, str]) -> Plan:
    """Read a definition, to which properties are added. Raises UsageError, CommandFailed."""
    wanted = definition.load(path)
    wanted = dataclasses.replace(wanted, properties=wanted.properties | properties)
    architecture = output("dpkg", "--print-architecture").strip()
    if wanted.architecture not in ("", architecture):
        raise UsageError(f"{path}: architecture is {wanted.architecture}, and this host is {architecture}")
    return Plan(wanted, architecture, archive.find(wanted, architecture))


@contextlib.contextmanager
def built(session: Session, server: Server, plan: Plan, pool: str) -> Iterator[tuple[str, str]]:
    """Build in a container on a server; give metadata and root file system, which exist in the block.

    Nothing is left behind. Raises CommandFailed, ApiError.
    """
    with scratch.folder() as folder:
        session.say("Downloading packages")
        files = _download(plan, folder)
        packed = f"{folder}/kit.tar"
        kit.pack(f"{folder}/kit", packed)
        session.say("Installing packages in a container")
        name = f"utsuwa-build-{secrets.token_hex(4)}"
        with container.started(session, server, name, pool) as room:
            room.install(packed, files[1], f"{folder}/messages")
        yield files


@contextlib.contextmanager
def built_here(plan: Plan) -> Iterator[tuple[str, str]]:
    """As `built`, on this host itself: scripts of packages run in a chroot, as root. Raises CommandFailed."""
    with scratch.folder() as folder:
        files = _download(plan, folder)
        messages = f"{folder}/messages"
        inner = f'exec bash "{folder}/kit/install.sh" "{folder}/kit" >"{files[1]}"'
        if run((*_isolated(), "bash", "-c", inner), messages):
            with open(messages, encoding="utf-8", errors="replace") as file:
                raise CommandFailed(container.failure(file.read()))
        yield files


def _isolated() -> tuple[str, ...]:
    """Return a prefix for a command: without a network, and with processes and mounts that end with it."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        is_chroot = all(line.split()[4] != "/" for line in file)
    namespaces = ("--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    return ("unshare", *namespaces, "--propagation", "unchanged" if is_chroot else "private")


def _download(plan: Plan, folder: str) -> tuple[str, str]:
    """Fill the kit in the directory, write the metadata beside it, and return the paths of both files."""
    wanted = plan.definition
    os.mkdir(f"{folder}/kit", 0o700)
    downloads = packages.Downloads(f"{folder}/apt", plan.archive, wanted.release, plan.architecture)
    downloads.fetch(wanted.packages)
    epoch = downloads.make_repository(f"{folder}/kit/repository")
    kit.write(f"{folder}/kit", wanted, plan.archive, epoch)
    metadata.write(f"{folder}/{METADATA}", wanted, plan.architecture, epoch)
    return f"{folder}/{METADATA}", f"{folder}/{ROOTFS}"


def save(files: tuple[str, str], folder: str) -> None:
    """Write both files into a directory. Raises CommandFailed."""
    import shutil

    try:
        os.makedirs(folder, exist_ok=True)
        for path in files:
            target = os.path.join(folder, os.path.basename(path))
            shutil.copyfile(path, f"{target}.new")
            os.replace(f"{target}.new", target)
    except OSError as error:
        raise CommandFailed(f"Cannot write into {folder}: {error.strerror}") from error


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as an interrupt does, so that it cleans up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
