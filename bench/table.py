"""The rows of the benchmark: what is measured, in which unit, and the ratio to the peers that is aimed at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`unit` is `s`, `MiB` or `x`; less is better. `target` is the ratio to the best peer that is aimed at.

    Rows of a part are measured one after the other, mostly on the same containers.
    """

    key: str
    part: str
    title: str
    unit: str = "s"
    target: float | None = None


DEBIAN, BUSYBOX = "debian", "busybox"
RUNNING_KEY, COUNT_KEY, BURST_KEY, EXECS_KEY = "running", "instances", "burst", "execs"
MANY_KEY = "many"
FILES_KEY, FILES = "files", 1000
ALIASES_KEY, ALIASES = "aliases", 10_000
BIG_KEY, BIG_MIB = "big", 1024
TOUCHED_KEY, TOUCHED_MIB = "touched", 100
FAR_KEY, FAR_MIB = "far", 200
PAUSE_KEY, PAUSE_SECONDS = "pause", 5

ROWS = (
    Row("import", "images", "image import, Debian", target=1.5),
    Row(
        "first-launch-at-once",
        "images",
        "first launch of an image, Debian, at once after its import",
        target=0.77,
    ),
    Row(
        "first-launch-later",
        "images",
        "first launch of an image, Debian, {pause} s after its import",
        target=1.5,
    ),
    Row("publish", "images", "publish of a stopped container, Debian, at the wire", target=2),
    Row(
        "publish-size", "images", "size of that image, with the default compression", unit="MiB", target=0.95
    ),
    Row("download", "images", "download of an image of 50 MiB, as a multiple of `curl`", unit="x"),
    Row("launch-cached", "images", "second launch of an image of another server, which transfers nothing"),
    Row("launch", "debian", "launch, Debian", target=3.5),
    Row("ready", "ready", "launch of Debian until its systemd runs and its address is there"),
    Row("exec-wire", "debian", "exec `true` at the wire, Debian", target=2),
    Row("exec-client", "debian", "exec `true` with the client", target=1.3),
    Row("exec-own", "debian", "exec `true` with `utsuwa` (peers: their client)", target=1.3),
    Row("restart", "debian", "restart -f"),
    Row("stop", "debian", "stop -f", target=5),
    Row("start", "debian", "start", target=3),
    Row("stop-wire", "debian", "stop by force at the wire"),
    Row("start-wire", "debian", "start at the wire"),
    Row("delete", "debian", "delete, stopped"),
    Row("init", "debian", "init only"),
    Row("delete-new", "debian", "delete, never started"),
    Row("busybox-launch", "busybox", "launch, busybox"),
    Row("busybox-exec-wire", "busybox", "exec `true` at the wire, busybox", target=2),
    Row("busybox-delete", "busybox", "delete -f, running busybox"),
    Row("file-push", "files", "push of a file of 1 KiB at the wire", target=2.5),
    Row("file-pull", "files", "pull of a file of 1 KiB at the wire", target=2.5),
    Row("tree-push", "files", "recursive push of {files} files of 1 KiB with the client"),
    Row(
        "tree-push-own",
        "files",
        "recursive push of {files} files with `utsuwa` (peers: their client)",
        target=6,
    ),
    Row("tree-pull", "files", "recursive pull of {files} files of 1 KiB with the client"),
    Row("tree-pull-own", "files", "recursive pull of {files} files with `utsuwa` (peers: their client)"),
    Row("big-push", "files", "push of a file of {big} MiB with `utsuwa` (peers: their client)"),
    Row("big-push-cp", "files", "the same, as a multiple of `cp` on the same file system", unit="x"),
    Row("disk-plug", "devices", "add a disk to a running container, at the wire", target=3),
    Row("disk-unplug", "devices", "remove a disk from a running container, at the wire", target=3),
    Row("nic-plug", "devices", "add a network interface to a running container, at the wire", target=3),
    Row(
        "nic-unplug", "devices", "remove a network interface from a running container, at the wire", target=3
    ),
    Row("guest-metadata", "guest", "GET /1.0/meta-data of the guest API from inside", target=2),
    Row("snapshot", "snapshots", "snapshot of a stopped container, Debian, at the wire"),
    Row("snapshot-running", "snapshots", "snapshot of a running container, Debian, at the wire"),
    Row("restore", "snapshots", "restore of a stopped container, Debian, at the wire"),
    Row("copy", "snapshots", "copy of a stopped container, Debian, at the wire"),
    Row("snapshot-delete", "snapshots", "delete of a snapshot, Debian, at the wire"),
    Row("copy-delete", "snapshots", "delete of a copy, Debian, at the wire"),
    Row("state-snapshot-busybox", "state", "snapshot with the running state, busybox, at the wire"),
    Row("state-restore-busybox", "state", "restore of it, the running container is stopped for that"),
    Row("state-snapshot", "state", "snapshot with the running state, Debian with {touched} MiB in use"),
    Row("state-restore", "state", "restore of it, the running container is stopped for that, Debian"),
    Row(
        "docker-run",
        "docker",
        "`docker run --rm busybox true` in a container, as a multiple of the same on the host",
        unit="x",
    ),
    Row(
        "docker-files",
        "docker",
        "1000 files created, read, copied and removed in a container of that Docker, likewise",
        unit="x",
    ),
    Row("nested-launch", "nested", "launch of Debian by a daemon in a container, with the client there"),
    Row("nested-size", "nested", "disk space of that container when it has booted", unit="MiB"),
    Row("far-copy", "migration", "copy to another daemon, Debian", target=4),
    Row("far-copy-image", "migration", "copy to another daemon that uses its image, Debian", target=10),
    Row("far-copy-files", "migration", "copy to another daemon, {far} files of 1 MiB"),
    Row("far-refresh", "migration", "refresh of that copy, 1 % of which has changed"),
    Row(
        "far-copy-big",
        "migration",
        "copy to another daemon, a file of {big} MiB, as a multiple of `rsync` over `ssh`",
        unit="x",
    ),
    Row(
        "far-copy-big-alone",
        "migration",
        "the same, as a multiple of `rsync` without `ssh`",
        unit="x",
    ),
    Row("live-busybox", "migration", "downtime of a move of a running container, busybox"),
    Row("live-debian", "migration", "the same, Debian with {touched} MiB in use that writes 10 MiB/s"),
    Row("burst-launch", "bursts", "launch {burst} busybox, 8 at a time", target=4),
    Row("burst-delete", "bursts", "stop and delete {burst} running, 8 at a time", target=6),
    Row("get-server", "bursts", "GET /1.0", target=1),
    Row("list-1", "bursts", "GET instances, recursion=1, {instances} of which {running} run", target=3),
    Row("list-2", "bursts", "GET instances, recursion=2, {instances} of which {running} run", target=20),
    Row("list-client", "bursts", "list with the client"),
    Row("list-own", "bursts", "list with `utsuwa` (peers: their client)"),
    Row("list-many", "many", "GET instances, recursion=2, {many} stopped and {running} running"),
    Row("metrics", "many", "GET metrics, {running} containers run", target=5),
    Row("metrics-crowd", "crowd", "GET metrics, {instances} containers run", target=5),
    Row("memory-daemon", "bursts", "daemon, {running} containers run (PSS)", unit="MiB", target=1),
    Row("memory-monitor", "bursts", "monitor of one container (PSS)", unit="MiB", target=4),
    Row(
        "tls-connect",
        "https",
        "TLS connection with a client certificate and a request, the daemon on one processor, 8 at a time",
        target=1,
    ),
    Row("aliases", "aliases", "GET images/aliases, recursion=1, {aliases} aliases", target=2),
    Row("shop-list", "aliases", "list of an image server with {aliases} images with the client"),
    Row("shop-list-own", "aliases", "the same with `utsuwa` (peers: their client)"),
    Row("memory-fresh", "https", "daemon just started, one container runs (PSS)", unit="MiB"),
    Row("memory-execs", "https", "the same a minute after {execs} `exec true` over HTTPS (PSS)", unit="MiB"),
)

PARTS = tuple(dict.fromkeys(row.part for row in ROWS))


def chosen(names: Iterable[str]) -> frozenset[str]:
    """Return the keys of rows, given names of rows and of parts. Raises LookupError for other names."""
    keys: set[str] = set()
    for name in names:
        found = {row.key for row in ROWS if name in (row.key, row.part)}
        if not found:
            raise LookupError(f"no row or part {name!r}; parts are {', '.join(PARTS)}")
        keys |= found
    return frozenset(keys)
