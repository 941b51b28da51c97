"""Checks of Utsuwa on a stock host, run inside of it; the outcome of each goes to the host as a line of JSON.

Plain Python without packages: on the host it is imported for the names of the checks alone.
"""

from __future__ import annotations

import grp
import http.client
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTCOMES = Path("/dev/ttyS1")
STATE = Path("/var/lib/stock-host")
CHECKOUT = Path("/mnt/checkout")
SOCKET = Path("/var/lib/utsuwa/unix.socket")
CONTAINERS = Path("/var/lib/utsuwa/storage-pools/default/containers")
LONG = "stock.long" in Path("/proc/cmdline").read_text()
"""Whether all checks run, as `scripts/test --long --stock-host` says on the kernel's command line."""
BOXES = ("first", "limited", "resting")
"""Containers that run when the daemon is restarted and the machine rebooted."""


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[], str | None]
    """Gives words about what was seen; raises whatever it likes when things are not as they should be."""
    long: bool = False
    """Whether it is left to long runs: the tests' marker `long`."""


BEFORE_REBOOT: list[Check] = []
AFTER_REBOOT: list[Check] = []
_Function = Callable[[], str | None]


def check(
    name: str, when: list[Check] = BEFORE_REBOOT, *, long: bool = False
) -> Callable[[_Function], _Function]:
    def add(function: _Function) -> _Function:
        when.append(Check(name, function, long))
        return function

    return add


def expect(holds: object, words: object) -> None:
    if not holds:
        raise AssertionError(words)


# ---- tools

TIMEOUT = 600.0
"""Seconds for a command or a condition: emulation on a busy machine is a hundred times slower."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def run(*command: str, stdin: bytes | None = None, timeout: float = TIMEOUT) -> Ended:
    ended = subprocess.run(command, input=stdin or b"", capture_output=True, timeout=timeout)
    return Ended(ended.returncode, *(b.decode(errors="replace") for b in (ended.stdout, ended.stderr)))


def must(*command: str, stdin: bytes | None = None, timeout: float = TIMEOUT) -> str:
    ended = run(*command, stdin=stdin, timeout=timeout)
    expect(ended.code == 0, f"{shlex.join(command)} gave {ended.code}: {ended.out}{ended.err}")
    return ended.out


def utsuwa(*arguments: str, stdin: bytes | None = None) -> str:
    return must("utsuwa", *arguments, stdin=stdin)


def inside(container: str, script: str, stdin: bytes | None = None) -> Ended:
    return run("utsuwa", "exec", container, "--", "sh", "-c", script, stdin=stdin)


class _Daemon(http.client.HTTPConnection):
    """A connection to the daemon's socket, for what asks often: emulation takes seconds to start a client."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(SOCKET))


def query(url: str) -> dict[str, Any]:
    """What the API shows at a URL; raises AssertionError if that is an error."""
    daemon = _Daemon("unix", timeout=TIMEOUT)
    try:
        daemon.request("GET", url)
        answer = json.loads(daemon.getresponse().read())
    finally:
        daemon.close()
    expect(answer["type"] == "sync", f"{url} gave {answer}")
    shown: dict[str, Any] = answer["metadata"]
    return shown


def state_of(container: str) -> dict[str, Any]:
    return query(f"/1.0/instances/{container}/state")


def kill(container: str) -> None:
    """Stop a container by force. On a busy host, the kernel may need longer for it than the daemon waits."""
    run("utsuwa", "stop", "--force", container)
    wait_for(f"the end of {container}", lambda: state_of(container)["status"] == "Stopped")


def init_of(container: str) -> tuple[int, str]:
    """The pid of a container's init, and when that process was started."""
    pid = state_of(container)["pid"]
    expect(pid > 0, f"{container} does not run")
    return pid, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def wait_for(what: str, true: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Look until it is true, a quarter of the time at most: what is waited for needs the processor, too."""
    end = time.monotonic() + seconds
    begin = time.monotonic()
    while not true():
        now = time.monotonic()
        expect(now < end, f"{what} did not come true in {seconds:g} s")
        time.sleep(max(0.5, 3 * (now - begin)))
        begin = time.monotonic()


# ---- the host and the quick start


@check("quick start: works from an offline bundle")
def the_quick_start() -> str:
    os.chdir("/")
    quick_start = f"umask 077; exec {CHECKOUT}/scripts/quickstart --criu --offline /mnt/bundle"
    said = must("sh", "-c", quick_start, timeout=3 * TIMEOUT)
    expect("systemctl is-system-running in first: running" in said, said)
    return said


@check("quick start: members of the group can use it, although root has a strict umask")
def the_group() -> str:
    group = grp.getgrnam("utsuwa").gr_gid
    member = ("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", "env", "HOME=/tmp")
    return must(*member, "utsuwa", "list", "--format", "csv", "--columns", "ns")


@check("host: cgroup v2 alone, AppArmor in force")
def the_host() -> str:
    expect(Path("/sys/fs/cgroup/cgroup.controllers").exists(), "no cgroup v2 at /sys/fs/cgroup")
    expect(Path("/sys/module/apparmor/parameters/enabled").read_text() == "Y\n", "AppArmor is off")
    must("systemctl", "is-active", "apparmor.service")
    return f"{os.uname().release}; {must('utsuwad', 'check')}"


@check("quick start: systemd runs the daemon, and will with the machine")
def the_unit() -> str:
    for unit in ("utsuwa.socket", "utsuwa.service", "utsuwa-containers.service"):
        # the service itself is started by the other two
        expect(must("systemctl", "is-enabled", unit) in ("enabled\n", "indirect\n"), f"{unit} is not enabled")
        must("systemctl", "is-active", unit)
    return must("systemctl", "show", "utsuwa.service", "--property=MainPID,ControlGroup")


LIMITS = ("fs.inotify.max_user_instances", "kernel.keys.maxkeys", "vm.max_map_count")


@check("quick start: the kernel's limits are raised for many containers")
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


@check("quick start: the container is unprivileged")
def unprivileged() -> str:
    pid, _ = init_of("first")
    uids = Path(f"/proc/{pid}/uid_map").read_text().split()
    owner = Path(f"/proc/{pid}").stat().st_uid
    expect(uids[0] == "0" and int(uids[1]) >= 100_000, f"its ids are {uids}")
    expect(owner == int(uids[1]), f"its init runs as user {owner} of the host")
    return f"root inside is {owner}"


@check("quick start: systemd inside is running")
def systemd_inside() -> str:
    ended = _systemd_of("first")
    expect(ended.out.split() == ["running"], ended)
    return inside("first", "systemd-analyze time").out


def _systemd_of(container: str) -> Ended:
    """What systemd inside says of itself and of what failed, once it has started."""
    wait_for("a system bus", lambda: inside(container, "test -S /run/dbus/system_bus_socket").code == 0)
    return inside(container, "systemctl is-system-running --wait; systemctl --failed --no-legend --plain")


@check("network: one that is made while IPv6 is off has IPv4 alone")
def without_ipv6() -> str:
    switch = "net.ipv6.conf.default.disable_ipv6"
    must("sysctl", "-w", f"{switch}=1")
    try:
        utsuwa("network", "create", "four")
        config = query("/1.0/networks/four")["config"]
        shown = must("ip", "-br", "address", "show", "four")
    finally:
        must("sysctl", "-w", f"{switch}=0")
        run("utsuwa", "network", "delete", "four")
    expect(config["ipv6.address"] == "none" and config["ipv4.address"] in shown, (config, shown))
    warned = must("journalctl", "--unit", "utsuwa", "--grep", "'four' gets no IPv6 subnet", "--output", "cat")
    return shown + warned


# ---- AppArmor


@check("apparmor: the profile is enforced on init and on what is run by exec")
def profile_enforced() -> str:
    pid, _ = init_of("first")
    child = subprocess.Popen(
        ["utsuwa", "exec", "first", "--", "sleep", "1234"], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for("the sleep inside", lambda: run("pgrep", "-xf", "sleep 1234").code == 0)
        executed = int(must("pgrep", "-xf", "sleep 1234").split()[0])
        labels = [Path(f"/proc/{p}/attr/current").read_text().strip("\0\n") for p in (pid, executed)]
        os.kill(executed, signal.SIGKILL)
    finally:
        child.wait(timeout=TIMEOUT)
    expect(re.fullmatch(r"utsuwa-\w+_first\b.* \(enforce\)", labels[0]), f"init is under {labels[0]!r}")
    expect(labels[0] == labels[1], f"exec runs under {labels[1]!r}")
    return labels[0]


@check("apparmor: a rule of raw.apparmor holds in an unprivileged container")
def raw_rule() -> str:
    script = "echo x >/root/open && cat /root/open && echo x >/root/shut"
    utsuwa("launch", "busybox", "ruled", "-c", "raw.apparmor=deny /root/shut rwklx,")
    try:
        refused = inside("ruled", script)
        kill("ruled")
        utsuwa("config", "set", "ruled", "raw.lxc=lxc.apparmor.profile=unconfined")
        utsuwa("start", "ruled")
        allowed = inside("ruled", script)
    finally:
        run("utsuwa", "delete", "--force", "ruled")
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
        utsuwa("launch", "busybox", "walled", "-c", "security.privileged=true", "-c", f"raw.lxc={writable}")
        try:
            self.refused = self._all()
            kill("walled")
            utsuwa("config", "set", "walled", f"raw.lxc={writable}\nlxc.apparmor.profile=unconfined")
            utsuwa("start", "walled")
            self.allowed = self._all()
        finally:
            run("utsuwa", "delete", "--force", "walled")

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
    check(f"apparmor: it alone keeps a privileged container from this: {_name}")(_operation(_name))


@check("apparmor: systemd in a privileged container is running, too", long=True)
def privileged_systemd() -> str:
    utsuwa("launch", "debian/12", "private", "-c", "security.privileged=true")
    try:
        wait_for("a system bus", lambda: inside("private", "test -S /run/dbus/system_bus_socket").code == 0)
        ended = inside(
            "private", "systemctl is-system-running --wait; systemctl --failed --no-legend --plain"
        )
    finally:
        run("utsuwa", "delete", "--force", "private")
    expect(ended.out.split() == ["running"], ended)
    return ended.out


@check("apparmor: systemd confines services in an unprivileged container without nesting")
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


# ---- limits

SECOND_PROCESSOR = Path("/sys/devices/system/cpu/cpu1/online")
LOW = {"limits.memory": "48MiB", "limits.cpu.allowance": "20ms/100ms", "limits.processes": "20"}
HIGH = {"limits.memory": "400MiB", "limits.cpu.allowance": "80ms/100ms", "limits.processes": "200"}
SPIN = "while :; do :; done"
SECONDS = 3
BEGUN = 0.5
"""Seconds of processor time after which a loop runs and its shell has started."""


def settings(values: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


FILL_MEMORY = "awk 'BEGIN { s = \"x\"; while (length(s) < 134217728) s = s s; print length(s) }'"
"""128 MiB of text; busybox's awk holds up to twice that."""


def _memory() -> Ended:
    return inside("limited", FILL_MEMORY)


def _processors(container: str, loops: int = 1) -> float:
    """How many processors endless loops get for a while, by the instance's state and this machine's clock.

    Both are read while the loops run: how late they begin and end on a busy machine does not count.
    """
    script = f"for i in $(seq {loops}); do sh -c '{SPIN}' & all=\"$all $!\"; done; read end; kill $all; wait"
    command = ["utsuwa", "exec", container, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            before = _usage(container)[1]
            wait_for("the loops' start", lambda: _usage(container)[1] > before + BEGUN * loops)
            begin, before = _usage(container)
            time.sleep(SECONDS)
            end, after = _usage(container)
        finally:
            child.communicate(b"end\n", timeout=TIMEOUT)
    return (after - before) / (end - begin)


def _usage(container: str) -> tuple[float, float]:
    """The time, and the processor time that the container has used so far, both in seconds."""
    begin = time.monotonic()
    usage = state_of(container)["cpu"]["usage"] / 1e9
    return (begin + time.monotonic()) / 2, usage


def _processes() -> Ended:
    """Sixty processes at once. Only their end makes room for another `exec` where the limit was hit."""
    ended = inside("limited", "for i in $(seq 60); do sleep 6 >/dev/null 2>&1 & done; echo started")
    wait_for("their end", lambda: state_of("limited")["processes"] < 10)
    return ended


def _no_memory(ended: Ended) -> str:
    expect(ended.code == 137 and not ended.out, f"256 MiB fit in: {ended}")
    return f"the program was ended with {ended.code}"


@check("memory: limits.memory holds under load")
def memory_low() -> str:
    utsuwa("launch", "busybox", "limited", *(part for s in settings(LOW) for part in ("-c", s)))
    return _no_memory(_memory())


@check("cpu: a processor that comes online while containers run can be used by them")
def second_processor() -> str:
    """The machine starts with one: see `machine.KERNEL`."""
    expect(inside("limited", "nproc").out == "1\n", "there were more already")
    SECOND_PROCESSOR.write_text("1")
    ended = inside("limited", "nproc")
    expect(ended.out == "2\n", ended)
    return ended.out


@check("cpu: limits.cpu.allowance holds under load")
def cpu_low() -> str:
    got = _processors("limited")
    expect(0.1 < got < 0.3, f"{got:.2f} processors, to be 0.2")
    return f"{got:.2f} processors"


@check("processes: limits.processes holds under load")
def processes_low() -> str:
    ended = _processes()
    expect("can't fork" in ended.err and "started" not in ended.out, ended)
    return ended.err


@check("memory: limits.memory raised live holds under load")
def memory_high() -> str:
    utsuwa("config", "set", "limited", *settings(HIGH))
    ended = _memory()
    expect(ended.out == "134217728\n", ended)
    return ended.out


@check("cpu: limits.cpu.allowance raised live holds under load", long=True)
def cpu_high() -> str:
    got = _processors("limited")
    expect(0.5 < got < 0.95, f"{got:.2f} processors, to be 0.8")
    return f"{got:.2f} processors"


@check("processes: limits.processes raised live holds under load", long=True)
def processes_high() -> str:
    ended = _processes()
    expect(ended.code == 0 and ended.out == "started\n", ended)
    return ended.out


@check("memory: limits.memory lowered live holds under load")
def memory_lowered() -> str:
    utsuwa("config", "set", "limited", *settings(LOW))
    return _no_memory(_memory())


@check("processes: limits.processes lowered live holds under load", long=True)
def processes_lowered() -> str:
    return processes_low() or ""


@check("cpu: limits.cpu holds under load, also changed live")
def cpu_count() -> str:
    utsuwa("launch", "busybox", "resting", "-c", "limits.cpu=1", "-c", "boot.autostart=false")
    one = _processors("resting", loops=2)
    utsuwa("config", "set", "resting", "limits.cpu=2")
    two = _processors("resting", loops=2)
    expect(0.6 < one < 1.2, f"{one:.2f} processors, to be 1")
    expect(two > 1.3, f"{two:.2f} processors, to be 2")
    return f"{one:.2f}, then {two:.2f} processors"


# ---- running state

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


@check("running state: CRIU works on this kernel")
def criu_works() -> str:
    environment = query("/1.0")["environment"]
    expect(environment["kernel_features"]["criu"] == "true", must("utsuwad", "check"))
    must("mountpoint", "/var/lib/lxcfs")
    utsuwa("launch", "busybox", "kept")
    expect(inside("kept", f"setsid sh -c '{STEPS}' </dev/null >/dev/null 2>&1 &").code == 0, "no steps")
    wait_for("steps", lambda: _steps("kept") > 0)
    return utsuwa("info", "--checkpoint", "kept")


@check("running state: a container that is renamed while it is stopped goes on, under its new profile")
def stateful_stop() -> str:
    before, label = _steps("kept"), _label("kept")
    utsuwa("snapshot", "--stateful", "kept", "warm")
    utsuwa("stop", "--stateful", "kept")
    utsuwa("rename", "kept", "saved")
    utsuwa("start", "saved")
    now = _label("saved")
    expect(now == label.replace("_kept", "_saved") != label, (label, now))
    expect("/proc/uptime fuse.lxcfs" in inside("saved", "cat /proc/mounts").out, "lxcfs is gone")
    return f"{now}: {_steps_on('saved', before)}"


@check("running state: a snapshot is restored")
def stateful_restore() -> str:
    label = _label("saved")
    try:
        utsuwa("restore", "--stateful", "saved", "warm")
        expect(_label("saved") == label, _label("saved"))
        return _steps_on("saved", 1)
    finally:
        run("utsuwa", "delete", "--force", "saved")


NETWORK, PEER, SAVED, FAR = "saved0", "peer", "saved", Path("/var/lib/stock-far")
"""What `_saved_guest` uses: a network, a container on it that echoes, a guest, and another daemon's state."""
NIC = ("nic", "nictype=bridged", f"parent={NETWORK}", "name=eth0")
POOL = """
storage_pools: [{name: default, driver: overlay}]
profiles: [{name: default, devices: {root: {type: disk, pool: default, path: /}}}]
"""
WAYS: dict[str, Callable[[], str]] = {}
"""Ways of going on with a saved guest, in their order. Each returns the remote where it runs then."""


def _way(function: Callable[[], str]) -> Callable[[], str]:
    WAYS[function.__name__.strip("_")] = function
    return function


@_way
def _stop() -> str:
    utsuwa("stop", "--stateful", SAVED)
    utsuwa("start", SAVED)
    return "local:"


@_way
def _restore() -> str:
    utsuwa("restore", "--stateful", SAVED, "s")
    return "local:"


@_way
def _move() -> str:
    utsuwa("move", SAVED, f"far:{SAVED}")
    return "far:"


def _with_address(name: str, address: str) -> None:
    utsuwa("config", "device", "add", name, "eth0", *NIC)
    utsuwa("start", name)
    script = f"ip address add {address}/24 dev eth0; ip link set eth0 up"
    expect(inside(name, script).code == 0, f"{name} has no address")


def _two_hosts(peer: str) -> None:
    """Start another daemon, as on another host, and a container that echoes what it gets from the guests."""
    config = ("ipv4.address=10.77.0.1/24", "ipv4.dhcp.ranges=10.77.0.100-10.77.0.150", "ipv6.address=none")
    utsuwa("network", "create", NETWORK, *config)
    utsuwa("init", "busybox", PEER)
    _with_address(PEER, peer)
    inside(PEER, "nc -ll -p 5000 -e cat </dev/null >/dev/null 2>&1 &")
    FAR.mkdir(mode=0o711)
    (FAR / "criu").symlink_to("/var/lib/utsuwa/criu")
    must(
        "systemd-run", "--unit=stock-far", f"--setenv=UTSUWA_DIR={FAR}", "--property=Delegate=yes", "utsuwad"
    )
    far = ("env", f"UTSUWA_DIR={FAR}", "UTSUWA_CONF=/root/far-client")
    must(*far, "utsuwad", "waitready")
    must(*far, "utsuwad", "init", "--preseed", stdin=POOL.encode())
    must(*far, "utsuwa", "config", "set", "core.https_address", "127.0.0.1:8444")
    utsuwa("config", "set", "core.https_address", "127.0.0.1:8443")
    token = must(*far, "utsuwa", "config", "trust", "add", "--name", "near", "--quiet").split()[-1]
    utsuwa("remote", "add", "far", token)


def _end_two_hosts() -> None:
    run("utsuwa", "delete", "--force", PEER)
    run("utsuwa", "config", "unset", "core.https_address")
    must("env", f"UTSUWA_DIR={FAR}", "utsuwad", "shutdown")
    must("utsuwa", "remote", "remove", "far")
    must("utsuwa", "network", "delete", NETWORK)
    shutil.rmtree(FAR)


def _saved_guest(*, systemd: bool) -> str:
    """Begin what goes on in a guest, and see after each way that it still does, by the same processes."""
    sys.path.append(str(CHECKOUT))
    from tests.support import guest_features

    features = guest_features.ANYWHERE | (guest_features.SYSTEMD if systemd else {})
    shell = "bash" if systemd else "sh"

    def in_guest(remote: str, script: str) -> str:
        return utsuwa("exec", f"{remote}{SAVED}", "--", shell, stdin=script.encode())

    def seen(remote: str, way: str) -> dict[str, list[str]]:
        lines = in_guest(remote, guest_features.check(features, way, long=False)).splitlines()
        return {name: said for name, *said in (line.split("|", 2) for line in lines)}

    _two_hosts(guest_features.PEER)
    remote = "local:"
    try:
        if systemd:
            image = utsuwa("config", "get", "first", "volatile.base_image").strip()
            utsuwa("init", image, SAVED, "-c", "migration.stateful=true")
            utsuwa("config", "device", "add", SAVED, "eth0", *NIC)
            utsuwa("start", SAVED)
            busybox = str(STATE / "busybox")
            utsuwa("file", "pull", f"{PEER}/bin/busybox", busybox)
            utsuwa("file", "push", busybox, f"{SAVED}/root/busybox")
            state = "systemctl is-system-running"
            wait_for("the guest's boot", lambda: inside(SAVED, state).out == "running\n")
        else:
            utsuwa("init", "busybox", SAVED)
            _with_address(SAVED, "10.77.0.5")
        in_guest(remote, guest_features.begin(features))
        begun = seen(remote, "begin")
        expect(all(said[0] == "0" for said in begun.values()), begun)
        utsuwa("snapshot", "--stateful", SAVED, "s")
        for way, go_on in WAYS.items():
            remote = go_on()
            now = seen(remote, way)
            differ = {name: (said, now.get(name)) for name, said in begun.items() if said != now.get(name)}
            expect(not differ, f"after {way}: {differ}")
    finally:
        run("utsuwa", "delete", "--force", f"{remote}{SAVED}")
        _end_two_hosts()
    return f"{', '.join(WAYS)}: {', '.join(begun)}"


@check("running state: what goes on in a busybox does so after a stop, a restore and a move", long=True)
def busybox_guest() -> str:
    return _saved_guest(systemd=False)


@check("running state: what goes on in a Debian does so after a stop, a restore and a move", long=True)
def debian_guest() -> str:
    return _saved_guest(systemd=True)


# ---- attributes of files

CAPABILITY = "security.capability"
ACL = "system.posix_acl_access"
AS_USER = "setpriv --reuid={0} --regid={0} --clear-groups "


def _install_tools() -> None:
    packages = sorted((CHECKOUT / "packages").glob("*.deb"))
    for package in packages:
        expect(inside("first", f"cat >/root/{package.name}", stdin=package.read_bytes()).code == 0, package)
    ended = inside("first", "dpkg --install /root/*.deb")
    expect(ended.code == 0, ended)


def _on_disk(path: str) -> Path:
    return CONTAINERS / "first/layer/upper" / path


@check("files: setcap from inside is in force")
def setcap() -> str:
    _install_tools()
    script = """
        set -e
        echo secret >/root/secret; chmod 600 /root/secret
        cp /bin/cat /usr/local/bin/reader
        setcap cap_dac_read_search+ep /usr/local/bin/reader
        getcap /usr/local/bin/reader
    """
    expect("cap_dac_read_search=ep" in (made := inside("first", script)).out, made)
    without = inside("first", AS_USER.format(1234) + "cat /root/secret")
    expect("Permission denied" in without.err, without)
    ended = inside("first", AS_USER.format(1234) + "/usr/local/bin/reader /root/secret")
    expect(ended.out == "secret\n", ended)
    return made.out


@check("files: a capability set inside is unshifted on disk")
def setcap_on_disk() -> str:
    file = _on_disk("usr/local/bin/reader")
    raw = os.getxattr(file, CAPABILITY)
    numbers = struct.unpack(f"<{len(raw) // 4}I", raw)
    owner = file.stat().st_uid
    # a third form of the attribute names the root user whose namespace it holds in, as a last number
    expect(len(numbers) == 5 or numbers[5:] == (0,), f"it belongs to the root user {numbers[5:]}")
    expect(owner == 0, f"the file belongs to {owner}")
    return raw.hex()


@check("files: setfacl from inside is in force")
def setfacl() -> str:
    script = """
        echo shared >/srv/shared
        chmod 600 /srv/shared
        setfacl -m u:1234:r /srv/shared && getfacl -n /srv/shared
    """
    made = inside("first", script)
    expect("user:1234:r--" in made.out, made)
    allowed, refused = (inside("first", AS_USER.format(uid) + "cat /srv/shared") for uid in (1234, 1235))
    expect(allowed.out == "shared\n", allowed)
    expect("Permission denied" in refused.err, refused)
    return made.out


@check("files: setfacl works on what the image brought and nothing has changed")
def setfacl_on_image() -> str:
    made = inside("first", "setfacl -m u:1234:rx /opt /usr/bin/env && getfacl -np /opt /usr/bin/env")
    expect(made.out.count("user:1234:r-x") == 2, made)
    return made.out


@check("files: an ACL set inside is unshifted on disk")
def setfacl_on_disk() -> str:
    raw = os.getxattr(_on_disk("srv/shared"), ACL)
    # a version, then tag, permissions and id of each entry; 2 is a named user
    named = [entry[2] for entry in struct.iter_unpack("<HHI", raw[4:]) if entry[0] == 2]
    expect(named == [1234], f"it names the users {named}")
    return raw.hex()


# ---- limits of the host


@check("daemon: it warns of a limit of the host that is nearly reached")
def near_limit() -> str:
    """The quota of keys was lowered when the quick start had been checked; what follows needs more again."""
    command = (
        "journalctl",
        "--unit",
        "utsuwa",
        "--grep",
        "near these limits: .*kernel.keys.maxkeys",
        "--output",
        "cat",
    )
    wait_for("a warning", lambda: run(*command).code == 0)
    must("sysctl", "--load=/etc/sysctl.d/60-utsuwa.conf")
    warned = must(*command)
    expect(len(warned.splitlines()) == 1, warned)
    return warned


# ---- Docker


@check("kernel modules: those of linux.kernel_modules are loaded, and without one an instance does not start")
def kernel_modules() -> str:
    loaded = Path("/sys/module/dummy")
    expect(not loaded.exists(), "the module dummy is loaded already")
    utsuwa("launch", "busybox", "moduled", "-c", "linux.kernel_modules=overlay, dummy")
    try:
        expect(loaded.exists(), "the module dummy was not loaded")
        refused = run("utsuwa", "config", "set", "moduled", "linux.kernel_modules=no_such_module")
        expect(refused.code != 0 and "'no_such_module'" in refused.err, refused)
        kill("moduled")
        utsuwa("config", "set", "moduled", "linux.kernel_modules=no_such_module")
        stopped = run("utsuwa", "start", "moduled")
        expect("'no_such_module' of linux.kernel_modules was not loaded" in stopped.err, stopped)
        expect(state_of("moduled")["status"] == "Stopped", "it runs")
    finally:
        run("utsuwa", "delete", "--force", "moduled")
        run("modprobe", "--remove", "dummy")
    return stopped.err


RUN_DOCKER = "docker run --rm --sysctl net.ipv4.ip_forward=0 busybox cat /proc/sys/net/ipv4/ip_forward"
SERVE = "echo served >/index.html && exec httpd -f -h /"
IMPORT_BUSYBOX = """
set -e
mkdir -p /root/image/bin /root/image/mnt
for applet in $(busybox --list); do ln -sf busybox /root/image/bin/$applet; done
cp --remove-destination $(command -v busybox) /root/image/bin/
tar -C /root/image -c . | {} import - busybox
"""
"""Makes an image of the busybox inside, for Docker or Podman."""


@check("docker: it works in an instance, on overlays, with limits and published ports", long=True)
def docker() -> str:
    files = [str(CHECKOUT / "docker" / name) for name in ("metadata.tar.xz", "rootfs.squashfs")]
    utsuwa("image", "import", *files, "--alias", "docker")
    utsuwa("launch", "docker", "box", "--profile", "default", "--profile", "docker")
    expect(Path("/sys/module/nf_nat").exists(), "the modules of the profile are not loaded")
    expect(_systemd_of("box").out.split() == ["running"], inside("box", "systemctl --failed"))
    imported = inside("box", IMPORT_BUSYBOX.format("docker"))
    expect(imported.code == 0, imported)
    ran = inside("box", RUN_DOCKER)
    expect(ran.out == "0\n", ran)
    driver = inside("box", "docker info --format '{{.Driver}} {{.SecurityOptions}}'")
    expect(driver.out.startswith("overlay2 "), driver)
    _no_memory(inside("box", f"docker run --rm --memory 64m busybox {FILL_MEMORY}"))
    web = inside("box", f"docker run --detach --publish 8080:80 busybox sh -c '{SERVE}' && hostname -I")
    expect(web.code == 0, web)
    address = web.out.splitlines()[-1].split()[0]
    wait_for("the port", lambda: _fetch(f"http://{address}:8080/") == "served\n")
    return f"{driver.out}{_denials()}"


@check("docker: a runc that opens /proc/sys in a mount of its own works, too", long=True)
def newer_runc() -> str:
    (package,) = (CHECKOUT / "docker").glob("runc_*.deb")
    installed = inside("box", "cat >/root/runc.deb && dpkg --install /root/runc.deb", package.read_bytes())
    expect(installed.code == 0, installed)
    ran = inside("box", f"{RUN_DOCKER} && runc --version")
    expect(ran.out.startswith("0\n"), ran)
    return ran.out


@check("podman: it works beside Docker, on overlays, with limits and published ports", long=True)
def podman() -> str:
    imported = inside("box", IMPORT_BUSYBOX.format("podman"))
    expect(imported.code == 0, imported)
    driver = inside("box", "podman info --format '{{.Store.GraphDriverName}} {{.Host.OCIRuntime.Name}}'")
    expect(driver.out.startswith("overlay "), driver)
    _no_memory(inside("box", f"podman run --rm --memory 64m busybox {FILL_MEMORY}"))
    web = inside("box", f"podman run --detach --publish 8081:80 busybox sh -c '{SERVE}' && hostname -I")
    expect(web.code == 0, web)
    address = web.out.splitlines()[-1].split()[0]
    wait_for("the port", lambda: _fetch(f"http://{address}:8081/") == "served\n")
    denials = _denials()
    expect(not denials, denials)
    return driver.out


STRICT = "systemd-run --wait --pipe --quiet -p DevicePolicy=strict -p 'DeviceAllow=/dev/null rw'"


@check("bpf: systemd and Podman inside use device programs, where cgroups are of version 2 alone", long=True)
def device_programs() -> str:
    before = inside("box", f"{STRICT} head -c 1 /dev/zero")
    expect(before.code == 0, before)
    keys = [f"security.syscalls.intercept.{name}=true" for name in ("bpf", "bpf.devices")]
    utsuwa("config", "set", "box", *keys)
    kill("box")
    utsuwa("start", "box")
    expect(_systemd_of("box").out.split() == ["running"], inside("box", "systemctl --failed"))
    denied = inside("box", f"{STRICT} head -c 1 /dev/zero")
    expect(denied.code != 0 and "Operation not permitted" in denied.err, denied)
    allowed = inside("box", f"{STRICT} head -c 1 /dev/null")
    expect(allowed.code == 0, allowed)
    ran = inside("box", "podman run --rm busybox echo ran")
    expect(ran.out == "ran\n", ran)
    return denied.err


@check("docker: a privileged container works, and AppArmor has denied nothing to any", long=True)
def no_denials() -> str:
    try:
        privileged = inside("box", "docker run --rm --privileged busybox mount -t tmpfs none /mnt")
        denials = _denials()
    finally:
        run("utsuwa", "delete", "--force", "box")
    expect(privileged.code == 0, privileged)
    expect(not denials, denials)
    return privileged.out


def _fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            return str(reply.read().decode())
    except OSError as error:
        return str(error)


def _denials() -> str:
    """What the kernel has denied to programs in the instance `box`."""
    lines = must("journalctl", "--dmesg", "--output", "cat", "--no-pager").splitlines()
    return "\n".join(line for line in lines if 'apparmor="DENIED"' in line and "_box" in line)


# ---- the public site

SITE = "utsuwa-try.service"
SITE_URL = "http://127.0.0.1:8480"
SITE_SETTINGS, SITE_DATA = Path("/etc/utsuwa-try"), Path("/var/lib/utsuwa-try")
SITE_UNIT = Path("/etc/systemd/system") / SITE


@check("public site: systemd runs it confined, as its user, and again when it is killed", long=True)
def public_site() -> str:
    image = query("/1.0/images/aliases/busybox")["target"]
    utsuwa("image", "alias", "create", "try", image)
    must("utsuwad", "try", "init")
    settings = SITE_SETTINGS / "try.yaml"
    # No daemon runs in this image: containers of it would never be ready.
    settings.write_text(re.sub("(?m)^ready: .*$", "ready: 0", settings.read_text()))
    unit = (CHECKOUT / "scripts/systemd" / SITE).read_text()
    SITE_UNIT.write_text(unit.replace("@PREFIX@", "/opt/utsuwa"))
    must("systemctl", "daemon-reload")
    must("systemctl", "enable", "--now", SITE)
    shown = _served()
    killed = _main_pid(SITE)
    os.kill(killed, signal.SIGKILL)
    wait_for("another site", lambda: _main_pid(SITE) not in (0, killed))
    _served()
    return shown


def _served() -> str:
    """What the site runs as, once it answers."""
    wait_for("the site", lambda: _fetch(f"{SITE_URL}/api/site").startswith("{"))
    expect("<title>" in (page := _fetch(SITE_URL)), page)
    pid, user = _main_pid(SITE), pwd.getpwnam("utsuwa-try")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    expect(status["Uid"].split() == [str(user.pw_uid)] * 4, status)
    expect(int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0, status)
    expect(status["NoNewPrivs"] == "1", status)
    written = {path.name: path.stat().st_uid for path in SITE_DATA.iterdir()}
    expect(written == dict.fromkeys(("feedback.jsonl", "statistics.jsonl"), user.pw_uid), written)
    refused = run("nsenter", f"--mount=/proc/{pid}/ns/mnt", "touch", f"{SITE_SETTINGS}/new")
    expect("Read-only file system" in refused.err, refused)
    return f"{user.pw_name}, {status['CapBnd']}"


# ---- the daemon


def _main_pid(unit: str) -> int:
    return int(must("systemctl", "show", unit, "--property=MainPID", "--value"))


def _daemon() -> int:
    return _main_pid("utsuwa.service")


def _untouched(disturb: Callable[[int], object]) -> str:
    """The containers' inits stay the same processes, and the new daemon rules over them."""
    before, daemon = [init_of(box) for box in BOXES], _daemon()
    disturb(daemon)
    wait_for("a new daemon", lambda: _daemon() not in (0, daemon))
    must("utsuwad", "waitready", "--timeout", f"{TIMEOUT:.0f}")
    after = [init_of(box) for box in BOXES]
    expect(before == after, f"before {before}, after {after}")
    for box in BOXES:
        ended = inside(box, "echo here")
        expect(ended.out == "here\n", ended)
    utsuwa("config", "set", "limited", "limits.processes=21")
    processes_low()
    return f"daemon {daemon}, now {_daemon()}; inits {before}"


@check("daemon: restarted by systemd, it leaves the containers alone")
def restarted() -> str:
    return _untouched(lambda _: must("systemctl", "restart", "utsuwa.service"))


@check("daemon: killed, it comes back and leaves the containers alone", long=True)
def killed() -> str:
    return _untouched(lambda daemon: os.kill(daemon, signal.SIGKILL))


# ---- the machine


@check("reboot: the machine shuts the containers down and boots again", AFTER_REBOOT)
def rebooted() -> str:
    before = json.loads((STATE / "rebooted").read_text())
    now = Path("/proc/sys/kernel/random/boot_id").read_text()
    expect(before["boot"] != now, "it is the same boot as before")
    expect(must("systemctl", "--failed", "--no-legend") == "", must("systemctl", "--failed"))
    return f"{now}; {time.time() - before['at']:.0f} s"


@check("reboot: the container with boot.autostart is back, its systemd running", AFTER_REBOOT)
def back() -> str:
    wait_for("first", lambda: state_of("first")["status"] == "Running")
    ended = _systemd_of("first")
    expect(ended.out.split() == ["running"], ended)
    expect(inside("first", "cat /root/secret").out == "secret\n", "what was written in it is gone")
    shut_down = inside("first", "journalctl --boot=-1 --no-pager --grep='Stopped target .*Multi-User'")
    expect("target" in shut_down.out, f"it was cut off, not shut down: {shut_down}")
    return shut_down.out


@check("reboot: one that ran is back with its limits, one without autostart rests", AFTER_REBOOT)
def others() -> str:
    wait_for("limited", lambda: state_of("limited")["status"] == "Running")
    expect(state_of("resting")["status"] == "Stopped", state_of("resting"))
    return _no_memory(_memory())


@check("reboot: the kernel's limits are as the quick start has raised them", AFTER_REBOOT)
def limits_still_raised() -> str:
    now = must("sysctl", *LIMITS)
    expect(now == (STATE / "limits").read_text(), now)
    return now


@check("reboot: the profile and the ids are as before", AFTER_REBOOT)
def confined_again() -> str:
    profile_enforced()
    expect(not re.search("(?m)^utsuwa-.*_(walled|ruled) ", _profiles()), _profiles())
    return unprivileged() or ""


@check("reboot: the public site is served again, and can be removed", AFTER_REBOOT, long=True)
def site_again() -> str:
    shown = _served()
    must("systemctl", "disable", "--now", SITE)
    ended = must("systemctl", "show", SITE, "--property=Result,ExecMainStatus")
    expect("Result=success" in ended and "ExecMainStatus=0" in ended, ended)
    trusted = utsuwa("config", "trust", "list", "--format", "csv").splitlines()
    (fingerprint,) = [line.split(",")[3] for line in trusted if "utsuwa-try" in line]
    utsuwa("config", "trust", "remove", fingerprint)
    utsuwa("project", "delete", "try")
    shutil.rmtree(SITE_SETTINGS)
    shutil.rmtree(SITE_DATA)
    SITE_UNIT.unlink()
    must("userdel", "utsuwa-try")
    return shown


def _profiles() -> str:
    return Path("/sys/kernel/security/apparmor/profiles").read_text()


# ---- all of it


def _report(record: dict[str, Any]) -> None:
    OUTCOMES.write_text(json.dumps(record) + "\n", encoding="ascii")


def _try(check: Check) -> bool:
    begin = time.monotonic()
    try:
        passed, words = True, str(check.run())
    except Exception as error:
        passed, words = False, f"{type(error).__name__}: {error}"
    seconds = round(time.monotonic() - begin, 1)
    _report({"name": check.name, "passed": passed, "seconds": seconds, "words": words[-6000:]})
    return passed


def chosen(checks: list[Check]) -> list[Check]:
    return [one for one in checks if LONG or not one.long]


def before_reboot(marker: Path) -> None:
    if not _try(BEFORE_REBOOT[0]):
        return _report({"journal": _journal(), "done": True})
    busybox = CHECKOUT / "busybox"
    files = [str(busybox / name) for name in ("meta.tar.xz", "rootfs.squashfs")]
    utsuwa("image", "import", *files, "--alias", "busybox")
    utsuwa("config", "set", "first", "boot.autostart=true")
    if not all([_try(one) for one in chosen(BEFORE_REBOOT)[1:]]):
        _report({"journal": _journal()})
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    marker.write_text(json.dumps({"boot": boot, "at": time.time()}))
    must("systemctl", "reboot")
    return None


def after_reboot() -> None:
    if not all([_try(one) for one in chosen(AFTER_REBOOT)]):
        _report({"journal": _journal()})
    _report({"done": True})


def main() -> None:
    marker = STATE / "rebooted"
    try:
        if marker.exists():
            after_reboot()
        else:
            before_reboot(marker)
    except Exception as error:
        _report({"journal": f"{type(error).__name__}: {error}\n{_journal()}", "done": True})


def _journal() -> str:
    kernel = run("journalctl", "--no-pager", "--dmesg", "--lines=30").out
    return run("journalctl", "--no-pager", "--lines=120", "--unit=utsuwa*").out[-12000:] + kernel[-4000:]


if __name__ == "__main__":
    main()
