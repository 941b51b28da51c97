"""The host, and what the quick start makes of it."""

from __future__ import annotations

import grp
import json
import os
from pathlib import Path

from tests.stock.checks.asking import TIMEOUT, act, init_of, inside, must, query, systemd_of
from tests.stock.checks.check import CHECKOUT, STATE, Checks, expect

checks = Checks()


@checks("quick start: works from an offline bundle")
def the_quick_start() -> str:
    os.chdir("/")
    quick_start = f"umask 077; exec {CHECKOUT}/scripts/quickstart --criu --offline /mnt/bundle"
    said = must("sh", "-c", quick_start, timeout=3 * TIMEOUT)
    expect("systemctl is-system-running in first: running" in said, said)
    return said


@checks("quick start: members of the group can use it, although root has a strict umask")
def the_group() -> str:
    group = grp.getgrnam("utsuwa").gr_gid
    member = ("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", "env", "HOME=/tmp")
    return must(*member, "utsuwa", "list", "--format", "csv", "--columns", "ns")


@checks("host: cgroup v2 alone, AppArmor in force")
def the_host() -> str:
    expect(Path("/sys/fs/cgroup/cgroup.controllers").exists(), "no cgroup v2 at /sys/fs/cgroup")
    expect(Path("/sys/module/apparmor/parameters/enabled").read_text() == "Y\n", "AppArmor is off")
    must("systemctl", "is-active", "apparmor.service")
    return os.uname().release


@checks("quick start: systemd runs the daemon, and will with the machine")
def the_unit() -> str:
    for unit in ("utsuwa.socket", "utsuwa.service", "utsuwa-containers.service"):
        # the service itself is started by the other two
        expect(must("systemctl", "is-enabled", unit) in ("enabled\n", "indirect\n"), f"{unit} is not enabled")
        must("systemctl", "is-active", unit)
    return must("systemctl", "show", "utsuwa.service", "--property=MainPID,ControlGroup")


LIMITS = ("fs.inotify.max_user_instances", "kernel.keys.maxkeys", "vm.max_map_count")


@checks("quick start: the kernel's limits are raised for many containers")
def limits_raised() -> str:
    file = Path("/etc/sysctl.d/60-utsuwa.conf").read_text()
    found = json.loads(must("utsuwad", "check", "--format", "json"))["requirements"]
    shared = [r for r in found if "hundred containers" in r["detail"]]
    expect(len(shared) == 6, found)
    expect(must("utsuwad", "check", "--raise-limits") == "", "a second time it raises something")
    (STATE / "limits").write_text(must("sysctl", *LIMITS))
    # For `near_limit`: the daemon looks twice a minute.
    users = [line.split() for line in Path("/proc/key-users").read_text().splitlines()]
    used = max(int(fields[3].split("/")[0]) for fields in users if len(fields[0]) > len("99999:"))
    must("sysctl", "-w", f"kernel.keys.maxkeys={used + 1}")
    return file


@checks("quick start: the container is unprivileged")
def unprivileged() -> str:
    pid, _ = init_of("first")
    uids = Path(f"/proc/{pid}/uid_map").read_text().split()
    owner = Path(f"/proc/{pid}").stat().st_uid
    expect(uids[0] == "0" and int(uids[1]) >= 100_000, f"its ids are {uids}")
    expect(owner == int(uids[1]), f"its init runs as user {owner} of the host")
    return f"root inside is {owner}"


@checks("quick start: systemd inside is running")
def systemd_inside() -> str:
    ended = systemd_of("first")
    expect(ended.out.split() == ["running"], ended)
    return inside("first", "systemd-analyze time").out


@checks("network: one that is made while IPv6 is off has IPv4 alone")
def without_ipv6() -> str:
    switch = "net.ipv6.conf.default.disable_ipv6"
    must("sysctl", "-w", f"{switch}=1")
    try:
        act("POST", "/1.0/networks", {"name": "four"})
        config = query("/1.0/networks/four")["config"]
        shown = must("ip", "-br", "address", "show", "four")
    finally:
        must("sysctl", "-w", f"{switch}=0")
        act("DELETE", "/1.0/networks/four")
    expect(config["ipv6.address"] == "none" and config["ipv4.address"] in shown, (config, shown))
    warned = must("journalctl", "--unit", "utsuwa", "--grep", "'four' gets no IPv6 subnet", "--output", "cat")
    return shown + warned
