"""What a reboot of the machine leaves, and brings back."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from tests.stock.checks.apparmor import profile_enforced, profiles
from tests.stock.checks.asking import inside, must, state_of, systemd_of, wait_for
from tests.stock.checks.check import STATE, Checks, expect
from tests.stock.checks.limits import fill_memory, no_memory
from tests.stock.checks.quick_start import LIMITS, unprivileged

checks = Checks()


@checks("reboot: the machine shuts the containers down and boots again")
def rebooted() -> str:
    before = json.loads((STATE / "rebooted").read_text())
    now = Path("/proc/sys/kernel/random/boot_id").read_text()
    expect(before["boot"] != now, "it is the same boot as before")
    expect(must("systemctl", "--failed", "--no-legend") == "", must("systemctl", "--failed"))
    return f"{now}; {time.time() - before['at']:.0f} s"


@checks("reboot: the container with boot.autostart is back, its systemd running")
def back() -> str:
    wait_for("first", lambda: state_of("first")["status"] == "Running")
    ended = systemd_of("first")
    expect(ended.out.split() == ["running"], ended)
    expect(inside("first", "cat /root/secret").out == "secret\n", "what was written in it is gone")
    shut_down = inside("first", "journalctl --boot=-1 --no-pager --grep='Stopped target .*Multi-User'")
    expect("target" in shut_down.out, f"it was cut off, not shut down: {shut_down}")
    return shut_down.out


@checks("reboot: one that ran is back with its limits, one without autostart rests")
def others() -> str:
    wait_for("limited", lambda: state_of("limited")["status"] == "Running")
    expect(state_of("resting")["status"] == "Stopped", state_of("resting"))
    return no_memory(fill_memory())


@checks("reboot: the kernel's limits are as the quick start has raised them")
def limits_still_raised() -> str:
    now = must("sysctl", *LIMITS)
    expect(now == (STATE / "limits").read_text(), now)
    return now


@checks("reboot: the profile and the ids are as before")
def confined_again() -> str:
    profile_enforced()
    expect(not re.search("(?m)^utsuwa-.*_(walled|ruled) ", profiles()), profiles())
    return unprivileged() or ""
