"""Typical mistakes, and the complete messages about them in docs/errors.md."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import error_table
from tests.support.api import Reply
from tests.support.daemon import Daemon
from utsuwa.security import idmap

pytestmark = pytest.mark.root

INSTANCES = "/1.0/instances"
IMAGE = {"type": "image", "alias": "busybox"}
ROOT = {"type": "disk", "path": "/", "pool": "default"}
NIC = {"type": "nic", "nictype": "p2p"}
MISSING = "No such file or directory"
MAC, ADDRESS = "00:16:3e:00:00:01", "10.77.0.50"


class Case(NamedTuple):
    """A request that fails, and the values in the message of its row."""

    method: str
    url: str
    body: object
    values: dict[str, str]


def new(project: str = "default", /, *, values: dict[str, str] | None = None, **body: Any) -> Case:
    """The creation of the instance `new`."""
    return Case(
        "POST", f"{INSTANCES}?project={project}", {"name": "new", "source": IMAGE, **body}, values or {}
    )


def key(key: str, value: str, **values: str) -> Case:
    return new(config={key: value}, values={"key": key, "value": value, **values})


def device(values: dict[str, str] | None = None, /, **config: str) -> Case:
    return new(devices={"x": config}, values={"device": "x", **(values or {})})


def start(name: str, **values: str) -> Case:
    return Case("PUT", f"{INSTANCES}/{name}/state", {"action": "start"}, {"name": name, **values})


def push(path: str) -> Case:
    return Case("POST", f"{INSTANCES}/down/files?path={path}", b"content", {"path": path})


def execute(instance: str, command: list[str], values: dict[str, str], **more: object) -> Case:
    body = {"command": command, "wait-for-websocket": False, "record-output": True, **more}
    return Case("POST", f"{INSTANCES}/{instance}/exec", body, {"name": instance, **values})


def pool(config: dict[str, str], driver: str = "dir") -> Case:
    values = {"path": config.get("source", ""), "driver": driver}
    return Case("POST", "/1.0/storage-pools", {"name": "p", "driver": driver, "config": config}, values)


def network(config: dict[str, str], **values: str) -> Case:
    body = {"name": "other", "type": "bridge", "config": {"ipv6.address": "none", **config}}
    return Case("POST", "/1.0/networks", body, values)


CPUS = sorted(os.sched_getaffinity(0))
ROOTFS = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/lxc/rootfs/mnt"
"""Where Debian's liblxc assembles the root file system."""

CASES: dict[str, Case] = {
    "a key that is spelled wrongly": key("limits.memroy", "1GiB", near="limits.memory"),
    "a key that does not exist": key("colour", "red"),
    "a size that is not one": key("limits.memory", "much"),
    "a share of CPU time without unit": key("limits.cpu.allowance", "50"),
    "an image that does not exist": new(source={"type": "image", "alias": "none"}, values={"name": "none"}),
    "a profile that does not exist": new(profiles=["none"], values={"name": "none"}),
    "a name that is taken": new(name="up", values={"name": "up"}),
    "a name with invalid characters": new(name="we_b", values={"name": "we_b"}),
    "a schedule that cannot be parsed": key("snapshots.schedule", "often"),
    "a snapshot that does not exist": Case(
        "PUT", f"{INSTANCES}/down", {"restore": "none"}, {"snapshot": "none", "name": "down"}
    ),
    "deleting a running instance": Case("DELETE", f"{INSTANCES}/up", None, {"name": "up"}),
    "moving the root disk to another pool": Case(
        "PATCH",
        f"{INSTANCES}/down",
        {"devices": {"root": {**ROOT, "pool": "second"}}},
        {"name": "down", "pool": "default", "other": "second"},
    ),
    "deleting a profile that is in use": Case("DELETE", "/1.0/profiles/used", None, {"name": "used"}),
    "an isolated id map that is too large": new(
        config={"security.idmap.isolated": "true", "security.idmap.size": "4000000000"},
        values={"size": "4000000000"},
    ),
    "a line of raw.idmap that cannot be parsed": key("raw.idmap", "both 1000"),
    "a line of raw.lxc that liblxc does not know": new(
        config={"raw.lxc": "lxc.no.such = 1"},
        values={
            "reason": 'Invalid argument - Unsupported config key "lxc.no.such"; '
            'Failed to parse line "lxc.no.such = 1"'
        },
    ),
    "a key in raw.lxc that the daemon sets": new(
        config={"raw.lxc": "lxc.rootfs.path = /"}, values={"key": "lxc.rootfs.path"}
    ),
    "two keys for system calls that exclude each other": new(
        config={"security.syscalls.allow": "read", "security.syscalls.deny": "write"}
    ),
    "no root disk": new(profiles=[]),
    "a root disk on a pool that does not exist": new(
        devices={"root": {**ROOT, "pool": "none"}}, values={"device": "root", "pool": "none"}
    ),
    "a type of device that does not exist": device({"type": "toaster"}, type="toaster"),
    "a type of device that is not supported": device({"type": "tpm"}, type="tpm", path="/dev/tpm0"),
    "a key of a device that does not exist": device({"key": "colour"}, **NIC, colour="red"),
    "a disk whose source does not exist": device(
        {"path": "/no/such", "reason": MISSING}, type="disk", source="/no/such", path="/mnt"
    ),
    "a device node that does not exist": device(
        {"path": "/dev/no-such", "reason": MISSING}, type="unix-char", source="/dev/no-such", path="/dev/x"
    ),
    "a network that does not exist": device({"network": "none"}, type="nic", network="none"),
    "a MAC address that is taken": device(
        {"mac": MAC, "other device": "eth1", "other": "up"}, type="nic", network="lan", hwaddr=MAC
    ),
    "an IP address that is taken": device(
        {"address": ADDRESS, "other device": "eth1", "other": "up"},
        **{"type": "nic", "network": "lan", "ipv4.address": ADDRESS},
    ),
    "an IP address outside of the subnet": device(
        {"address": "10.78.0.50", "subnet": "10.77.0.0/24"},
        **{"type": "nic", "network": "lan", "ipv4.address": "10.78.0.50"},
    ),
    "a parent of a nic that does not exist": start("no-parent", device="x", parent="none"),
    "an image without init": start(
        "no-init", init="/sbin/init", reason=f'{MISSING} - Failed to exec "/sbin/init"'
    ),
    "a hook in raw.lxc that fails": start(
        "bad-hook",
        hook="lxc.hook.pre-start",
        reason='Script exited with status 127; Failed to run lxc.hook.pre-start for container "bad-hook"; '
        f"{MISSING} - Failed to receive the container state",
    ),
    "a mount in raw.lxc whose source is missing": start(
        "bad-mount",
        source="/no/such",
        reason=f'{MISSING} - Failed to mount "/no/such" onto "{ROOTFS}"; '
        f'{MISSING} - Failed to mount "/no/such" on "{ROOTFS}"; Failed to setup mount entries',
    ),
    "a sysctl that the kernel does not have": start(
        "bad-sysctl",
        sysctl="net.no.such",
        reason=f"{MISSING} - Failed to setup sysctl parameters net.no.such to 1; "
        "Failed to setup sysctl parameters",
    ),
    "a resource limit above the kernel's": start(
        "bad-limit",
        limit="nofile",
        reason="Operation not permitted - Failed to set limit nofile; Failed to setup resource limits",
    ),
    "another failure of liblxc": start(
        "bad-proc",
        reason=f"{MISSING} - Failed to setup proc filesystem no_such to 1; Failed to setup procfs limits",
    ),
    "an instance that does not stop": Case(
        "PUT", f"{INSTANCES}/up/state", {"action": "stop", "timeout": 1}, {"name": "up"}
    ),
    "a command that does not exist": execute("up", ["no-such"], {"command": "no-such"}),
    "a command in a stopped instance": execute("down", ["true"], {}),
    "a user that is not mapped": execute("up", ["true"], {"id": "4294967294"}, user=4294967294),
    "a file pushed to a directory": push("/etc"),
    "a file pushed into a directory that is missing": push("/no/such"),
    "a project that does not exist": Case("GET", f"{INSTANCES}?project=none", None, {"project": "none"}),
    "a limit of the project that is exceeded": new(
        "small", values={"project": "small", "key": "limits.instances", "limit": "0", "amount": "1"}
    ),
    "an instance without the limit that its project adds up": new(
        "summed",
        values={"project": "summed", "key": "limits.memory", "limit": "1GiB", "name": "new"},
    ),
    "a privileged container in a restricted project": new(
        "strict", config={"security.privileged": "true"}, values={"project": "strict"}
    ),
    "a low-level key in a restricted project": new(
        "strict", config={"raw.lxc": "lxc.environment = A=1"}, values={"project": "strict", "key": "raw.lxc"}
    ),
    "a driver that does not exist": pool({}, "floppy"),
    "a source of a pool that does not exist": pool({"source": "/no/such"}),
    "a source of a pool that is not empty": pool({"source": "/etc"}),
    "a pool that is in use": Case("DELETE", "/1.0/storage-pools/default", None, {"pool": "default"}),
    "a subnet that overlaps": network(
        {"ipv4.address": "10.77.0.129/25"}, subnet="10.77.0.128/25", other="10.77.0.0/24", network="lan"
    ),
    "an option that dnsmasq refuses": network(
        {"ipv4.address": "10.79.0.1/24", "raw.dnsmasq": "no-such-option"},
        reason="bad option at line 1 of dnsmasq.raw",
    ),
    "an address for HTTPS that the host does not have": Case(
        "PATCH",
        "/1.0",
        {"config": {"core.https_address": "192.0.2.1:8443"}},
        {"address": "192.0.2.1:8443", "reason": "Cannot assign requested address"},
    ),
}

ELSEWHERE = frozenset(
    {
        "CPUs that the host does not have",
        "an isolated id map outside of root's range",
        "ids in raw.idmap that root may not map",
        "a size on a pool without quotas",
    }
)
"""Rows that have a test function of their own below."""


@pytest.fixture(scope="module")
def d(module_daemon: Daemon, busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The module's daemon, with a running instance, a stopped one, and some that cannot be started."""
    make = module_daemon.do
    lan = {"ipv4.address": "10.77.0.1/24", "ipv6.address": "none"}
    make("POST", "/1.0/networks", {"name": "lan", "type": "bridge", "config": lan})
    make("POST", "/1.0/storage-pools", {"name": "second", "driver": "dir", "config": {}})
    make("POST", "/1.0/profiles", {"name": "used"})

    def instance(name: str, **body: object) -> None:
        make("POST", INSTANCES, {"name": name, "source": {**IMAGE, "alias": busybox}, **body})

    nic = {"type": "nic", "network": "lan", "hwaddr": MAC, "ipv4.address": ADDRESS}
    # Its init ignores the request to stop, so that it runs for all tests.
    instance("up", devices={"eth1": nic}, config={"raw.lxc": "lxc.signal.halt = SIGURG"})
    make("PUT", f"{INSTANCES}/up/state", {"action": "start"})
    instance("down", profiles=["default", "used"])
    instance("no-parent", devices={"x": {"type": "nic", "nictype": "bridged", "parent": "none"}})
    instance("no-init")
    make("DELETE", f"{INSTANCES}/no-init/files?path=/sbin/init")
    instance("bad-hook", config={"raw.lxc": "lxc.hook.pre-start = /no/such"})
    instance("bad-mount", config={"raw.lxc": "lxc.mount.entry = /no/such mnt none bind 0 0"})
    instance("bad-sysctl", config={"linux.sysctl.net.no.such": "1"})
    instance("bad-limit", config={"limits.kernel.nofile": "9999999999"})
    instance("bad-proc", config={"raw.lxc": "lxc.proc.no_such = 1"})
    shared = {"features.profiles": "false", "features.images": "false"}
    for name, config in (
        ("small", {"limits.instances": "0"}),
        ("summed", {"limits.memory": "1GiB"}),
        ("strict", {"restricted": "true", "restricted.devices.nic": "allow"}),
    ):
        make("POST", "/1.0/projects", {"name": name, "config": {**shared, **config}})
    return module_daemon


@pytest.fixture
def clean(d: Daemon) -> Iterator[Daemon]:
    """As `d`, without the instance `new` afterwards."""
    yield d
    if d.api("GET", f"{INSTANCES}/new").status == 200:
        d.do("DELETE", f"{INSTANCES}/new")


def message_of(daemon: Daemon, reply: Reply) -> str:
    """Return the message of a failed request, or of its operation."""
    if reply.status != 202:
        return reply.error
    ended = daemon.wait(reply)
    return str(ended["err"] or f"no error: {ended}")


def send(daemon: Daemon, case: Case) -> str:
    headers = None
    if isinstance(case.body, bytes):
        headers = {"X-LXD-type": "file", "Content-Type": "application/octet-stream"}
    return message_of(daemon, daemon.api(case.method, case.url, case.body, headers=headers))


@pytest.mark.parametrize("cause", CASES)
def test_message_is_as_documented(d: Daemon, cause: str) -> None:
    assert send(d, CASES[cause]) == error_table.message(cause, CASES[cause].values)


def test_cpus_that_the_host_lacks(d: Daemon) -> None:
    lacking = CPUS[-1] + 1
    (shown,) = {Path("/sys/devices/system/cpu/online").read_text().strip()}
    case = key("limits.cpu", f"{CPUS[0]},{lacking}", lacking=str(lacking), cpus=shown)
    assert send(d, case) == error_table.message("CPUs that the host does not have", case.values)


def test_isolated_id_map_outside_of_roots_range(d: Daemon) -> None:
    ids = idmap.read_host_ids()
    uids, gids = ids.default_uids(), ids.default_gids()
    values = {
        "first": str(max(uids.start, gids.start)),
        "last": str(min(uids.end, gids.end) - 1),
        "base": "5",
    }
    config = {"security.idmap.isolated": "true", "security.idmap.base": "5"}
    cause = "an isolated id map outside of root's range"
    assert send(d, new(config=config)) == error_table.message(cause, values)


def test_raw_idmap_with_ids_that_root_may_not_map(clean: Daemon) -> None:
    """The instance can be created, as the line may be added to the file until it starts."""
    clean.do("POST", INSTANCES, {"name": "new", "source": IMAGE, "config": {"raw.idmap": "both 77 1000"}})
    expected = error_table.message("ids in raw.idmap that root may not map", {"id": "77"})
    assert send(clean, start("new")) == expected


def test_size_on_a_pool_without_quotas(clean: Daemon) -> None:
    """The instance is created; a warning has the message."""
    devices = {"root": {**ROOT, "size": "10GiB"}}
    clean.do("POST", INSTANCES, {"name": "new", "source": IMAGE, "devices": devices})
    messages = [warning["last_message"] for warning in clean.get("/1.0/warnings?recursion=1")]
    values = {"name": "containers/new", "driver": "overlay"}
    assert error_table.message("a size on a pool without quotas", values) in messages
