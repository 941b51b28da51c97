"""Confinement by AppArmor."""

from __future__ import annotations

import os
import re
import shlex
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stock.checks.asking import (
    DAEMON,
    TIMEOUT,
    begin,
    configure,
    delete,
    init_of,
    inside,
    kill,
    launch,
    must,
    run,
    start,
    systemd_of,
    utsuwa,
    wait_for,
)
from tests.stock.checks.check import CHECKOUT, LONG, Checks, expect

checks = Checks()


@checks("apparmor: the profile is enforced on init and on what is run by exec")
def profile_enforced() -> str:
    pid, _ = init_of("first")
    running = begin("first", "sleep", "1234")
    wait_for("the sleep inside", lambda: run("pgrep", "-xf", "sleep 1234").code == 0)
    executed = int(must("pgrep", "-xf", "sleep 1234").split()[0])
    labels = [Path(f"/proc/{p}/attr/current").read_text().strip("\0\n") for p in (pid, executed)]
    os.kill(executed, signal.SIGKILL)
    DAEMON.wait(running, timeout=TIMEOUT)
    expect(re.fullmatch(r"utsuwa-\w+_first\b.* \(enforce\)", labels[0]), f"init is under {labels[0]!r}")
    expect(labels[0] == labels[1], f"exec runs under {labels[1]!r}")
    return labels[0]


@checks("apparmor: a rule of raw.apparmor holds in an unprivileged container")
def raw_rule() -> str:
    script = "echo x >/root/open && cat /root/open && echo x >/root/shut"
    launch("ruled", {"raw.apparmor": "deny /root/shut rwklx,"})
    try:
        refused = inside("ruled", script)
        kill("ruled")
        configure("ruled", {"raw.lxc": "lxc.apparmor.profile=unconfined"})
        start("ruled")
        allowed = inside("ruled", script)
    finally:
        delete("ruled")
    expect(refused.code != 0 and refused.out == "x\n" and "Permission denied" in refused.err, refused)
    expect(allowed.code == 0, f"with the profile off: {allowed}")
    return refused.err


_SAME = 'v=$(cat {0}) && echo "$v" >{0}'
_SYSCTL = "sys/kernel/core_pattern"
_APART = "unshare -m sh -c '{0}'"
"""In a mount namespace of its own, so that the container keeps its mounts."""
_BY_SHELL = 'read -r v <{0} && echo "$v" >{0}'
"""As `_SAME`, without a program: busybox starts it by /proc."""
_PIVOT = "mount -t tmpfs none /mnt && mkdir /mnt/old && cd /mnt && pivot_root . old && "
OPERATIONS = {
    "drop the host's caches": "echo 1 >/proc/sys/vm/drop_caches",
    "say where cores go": _SAME.format("/proc/sys/kernel/core_pattern"),
    "name the program that loads modules": _SAME.format("/proc/sys/kernel/modprobe"),
    "limit the host's open files": _SAME.format("/proc/sys/fs/file-max"),
    "press the SysRq key": "echo h >/proc/sysrq-trigger",
    "direct interrupts": _SAME.format("/proc/irq/default_smp_affinity"),
    "turn a module's switch": _SAME.format("/sys/module/printk/parameters/time"),
    "rule over memory pages": _SAME.format("/sys/kernel/mm/ksm/run"),
    "rule over suspending": _SAME.format("/sys/power/pm_async"),
    # busybox mounts silently by itself, which some rules do not speak of; others' programs do not
    "mount debugfs": "mount -o loud -t debugfs none /mnt && umount /mnt",
    "mount securityfs": "mount -t securityfs none /mnt && umount /mnt",
    "show /proc/sys elsewhere": "mount -o bind /proc/sys /mnt && umount /mnt",
    "show /sys elsewhere": "mount -o bind /sys /mnt && umount /mnt",
    "mount proc elsewhere": "mount -t proc none /mnt && umount /mnt",
    "mount sysfs elsewhere": "mount -t sysfs none /mnt && umount /mnt",
    "use a /proc without a path": _APART.format(
        "cd /proc && umount -l /proc && " + _BY_SHELL.format(_SYSCTL)
    ),
    "use the /proc of a former root": _APART.format(_PIVOT + _BY_SHELL.format(f"old/proc/{_SYSCTL}")),
}
"""Shell lines that root of a privileged container could do, were it not for the profile.

/proc and /sys are writable there. Nothing of the host changes: what is written is what was there.
"""


class _Tried:
    """What became of each of the operations under the profile and without it."""

    def __init__(self) -> None:
        self.refused: dict[str, str] | None = None
        self.allowed: dict[str, str] = {}

    def run(self) -> None:
        self.refused = {}
        writable = "lxc.mount.auto=proc:rw sys:rw"
        launch("walled", {"security.privileged": "true", "raw.lxc": writable})
        try:
            self.refused = self._all()
            kill("walled")
            configure("walled", {"raw.lxc": f"{writable}\nlxc.apparmor.profile=unconfined"})
            start("walled")
            self.allowed = self._all()
        finally:
            delete("walled")

    @staticmethod
    def _all() -> dict[str, str]:
        lines = [f"( {line} ) >/tmp/said 2>&1; echo $? $(cat /tmp/said)" for line in OPERATIONS.values()]
        said = inside("walled", "\n".join(lines)).out.splitlines()
        expect(len(said) == len(OPERATIONS), said)
        return dict(zip(OPERATIONS, said, strict=True))


_tried = _Tried()


def _operation(name: str) -> Callable[[], str]:
    def look() -> str:
        if _tried.refused is None:
            _tried.run()
        refused, allowed = (_tried.refused or {})[name], _tried.allowed[name]
        expect(refused[:2] != "0 " and refused != "0", "it was not refused")
        expect("denied" in refused or "not permitted" in refused, f"refused for another reason: {refused}")
        expect(allowed.split()[0] == "0", f"refused with the profile off as well: {allowed}")
        return refused

    return look


for _name in OPERATIONS:
    checks(f"apparmor: it alone keeps a privileged container from this: {_name}")(_operation(_name))


@checks("apparmor: systemd in a privileged container is running, too", long=True)
def privileged_systemd() -> str:
    utsuwa("launch", "debian/12", "private", "-c", "security.privileged=true")
    try:
        ended = systemd_of("private")
    finally:
        delete("private")
    expect(ended.out.split() == ["running"], ended)
    return ended.out


@checks("apparmor: systemd confines services in an unprivileged container without nesting")
def confined_services() -> str:
    """The options of which `tests/system/test_confined_services.py` asks the same without AppArmor.

    Those that cannot be combined with others need a service each, and are left to long runs.
    """
    table = tomllib.loads((CHECKOUT / "tests/support/sandboxing.toml").read_text())
    expect((prepared := inside("first", table["prepare"])).code == 0, prepared)
    units = {name: unit for name, unit in table["units"].items() if "shows" in unit and "since" not in unit}
    alone = {name: unit for name, unit in units.items() if unit.get("alone")}
    services = [_service({name: unit}) for name, unit in alone.items() if LONG]
    services.append(_service({name: unit for name, unit in units.items() if name not in alone}))
    ended = inside("first", "\n".join(f"{service} || echo no service" for service in services))
    denied = must("sh", "-c", "journalctl --dmesg --grep 'DENIED.*_first' | tail -n 20 || true")
    expect(ended.code == 0 and ended.out == "", f"not in force: {ended.out}{ended.err}{denied}")
    return f"{len(units) if LONG else len(units) - len(alone)} options in {len(services)} services"


def _service(units: dict[str, dict[str, Any]]) -> str:
    """A line of the shell that starts a service with these options, which names those not in force."""
    options = [option for name, unit in units.items() for option in unit.get("properties", [f"{name}=yes"])]
    lines = [f"{{ {unit['shows']}; }} >/dev/null 2>&1 || echo {name}" for name, unit in units.items()]
    words = ["systemd-run", "--wait", "--pipe", "--quiet", "--collect", *(f"--property={o}" for o in options)]
    return shlex.join([*words, "sh", "-c", "\n".join(lines)])


def profiles() -> str:
    return Path("/sys/kernel/security/apparmor/profiles").read_text()
