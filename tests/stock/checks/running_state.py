"""Running state: what is saved goes on."""

from __future__ import annotations

from pathlib import Path

from tests.stock.checks.asking import act, delete, init_of, inside, launch, must, query, start, wait_for
from tests.stock.checks.check import Checks, expect

checks = Checks()

STEPS = "while :; do echo >>/root/steps; sleep 0.2; done"


def _label(container: str) -> str:
    """The AppArmor label of a container's init, which is that of its process that takes steps, too."""
    pid, _ = init_of(container)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    labels = {Path(f"/proc/{p}/attr/current").read_text().strip("\0\n") for p in (pid, *children)}
    expect(len(labels) == 1, labels)
    return labels.pop()


def _steps(container: str) -> int:
    return int(inside(container, "touch /root/steps; wc -l </root/steps").out)


def _steps_on(container: str, at_least: int) -> str:
    first = _steps(container)
    expect(first >= at_least, f"{first} steps, and there were {at_least}")
    wait_for("another step", lambda: _steps(container) > first)
    return f"from {at_least} to {first}"


@checks("running state: CRIU works on this kernel")
def criu_works() -> str:
    environment = query("/1.0")["environment"]
    expect(environment["kernel_features"]["criu"] == "true", must("utsuwad", "check"))
    must("mountpoint", "/var/lib/lxcfs")
    launch("kept")
    expect(inside("kept", f"setsid sh -c '{STEPS}' </dev/null >/dev/null 2>&1 &").code == 0, "no steps")
    wait_for("steps", lambda: _steps("kept") > 0)
    found = query("/1.0/instances/kept/checkpoint")
    expect(found["possible"], found)
    return str(found["criu"])


@checks("running state: a container that is renamed while it is stopped goes on, under its new profile")
def stateful_stop() -> str:
    before, label = _steps("kept"), _label("kept")
    act("POST", "/1.0/instances/kept/snapshots", {"name": "warm", "stateful": True})
    act("PUT", "/1.0/instances/kept/state", {"action": "stop", "stateful": True})
    act("POST", "/1.0/instances/kept", {"name": "saved"})
    start("saved", stateful=True)
    now = _label("saved")
    expect(now == label.replace("_kept", "_saved") != label, (label, now))
    expect("/proc/uptime fuse.lxcfs" in inside("saved", "cat /proc/mounts").out, "lxcfs is gone")
    return f"{now}: {_steps_on('saved', before)}"


@checks("running state: a snapshot is restored")
def stateful_restore() -> str:
    label = _label("saved")
    try:
        act("PUT", "/1.0/instances/saved", {"restore": "warm", "stateful": True})
        expect(_label("saved") == label, _label("saved"))
        return _steps_on("saved", 1)
    finally:
        delete("saved")
