"""The rows of the benchmark: what is measured, in which unit, and the ratio to the peers that is aimed at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`unit` is `s` or `MiB`, and less is better; `target` is the ratio to the best peer that is aimed at."""

    key: str
    title: str
    unit: str = "s"
    target: float | None = None


DEBIAN, BUSYBOX = "debian", "busybox"
RUNNING_KEY, COUNT_KEY, BURST_KEY, EXECS_KEY = "running", "instances", "burst", "execs"
PAUSE_KEY, PAUSE_SECONDS = "pause", 5

ROWS = (
    Row("import", "image import, Debian"),
    Row("first-launch-at-once", "first launch of an image, Debian, at once after its import", target=0.77),
    Row("first-launch-later", "first launch of an image, Debian, {pause} s after its import", target=1.5),
    Row("launch", "launch, Debian", target=3.5),
    Row("ready", "launch of Debian until its systemd runs and its address is there"),
    Row("exec-wire", "exec `true` at the wire, Debian", target=2),
    Row("exec-client", "exec `true` with the client", target=1.3),
    Row("exec-own", "exec `true` with `utsuwa` (peers: their client)", target=1.3),
    Row("restart", "restart -f"),
    Row("stop", "stop -f", target=5),
    Row("start", "start", target=3),
    Row("stop-wire", "stop by force at the wire"),
    Row("start-wire", "start at the wire"),
    Row("delete", "delete, stopped"),
    Row("init", "init only"),
    Row("delete-new", "delete, never started"),
    Row("busybox-launch", "launch, busybox"),
    Row("busybox-exec-wire", "exec `true` at the wire, busybox", target=2),
    Row("busybox-delete", "delete -f, running busybox"),
    Row("burst-launch", "launch {burst} busybox, 8 at a time", target=4),
    Row("burst-delete", "stop and delete {burst} running, 8 at a time", target=6),
    Row("get-server", "GET /1.0", target=1),
    Row("list-1", "GET instances, recursion=1, {instances} of which {running} run", target=3),
    Row("list-2", "GET instances, recursion=2, {instances} of which {running} run", target=20),
    Row("list-client", "list with the client"),
    Row("list-own", "list with `utsuwa` (peers: their client)"),
    Row("memory-daemon", "daemon, {running} containers run (PSS)", unit="MiB", target=1),
    Row("memory-monitor", "monitor of one container (PSS)", unit="MiB", target=4),
    Row("memory-fresh", "daemon just started, one container runs (PSS)", unit="MiB"),
    Row("memory-execs", "the same a minute after {execs} `exec true` over HTTPS (PSS)", unit="MiB"),
)
