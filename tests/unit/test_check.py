"""What `utsuwad check` makes of a host's facts: each verdict, and how they are shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from utsuwa.core.errors import HostError
from utsuwa.daemon import check
from utsuwa.daemon.check import as_json, as_table, evaluate
from utsuwa.daemon.checks.verdicts import Source, Status, Subject, Verdict
from utsuwa.host.system.kernel_limits import WANTED
from utsuwa.host.system.probes import Facts, Mounting
from utsuwa.security.apparmor import Mode
from utsuwa.security.idmap import HostIds, HostRange

PROGRAMS = {
    "lxc-start": "5.0.2",
    "nft": "1.0.6",
    "dnsmasq": "2.90",
    "criu": "4.2.1",
    "unsquashfs": "4.5.1",
    "mksquashfs": "4.5.1",
    "apparmor_parser": "3.0.8",
    "ip": "6.1",
}
GOOD = Facts(
    kernel="6.12",
    namespaces=frozenset(("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")),
    mounting=Mounting(fstype="ext4"),
    controllers={"cpu": 2, "cpuset": 2, "memory": 2, "pids": 2, "io": 2},
    seccomp_actions=frozenset(("allow", "errno", "user_notif")),
    liblxc="5.0.2",
    programs=PROGRAMS,
    links={"veth": True, "bridge": True},
    limits=WANTED,
)
IDS = HostIds((HostRange(1000000, 1000000000),), (HostRange(1000000, 65536),))
USUAL = Subject(GOOD, IDS, Mode.OWN)


def verdicts(subject: Subject) -> dict[str, Verdict]:
    found = evaluate(subject)
    assert len({verdict.name for verdict in found}) == len(found)
    return {verdict.name: verdict for verdict in found}


def lacking(subject: Subject) -> dict[str, Verdict]:
    """What is not found, where everything else is; each says what it costs and what to do."""
    found = {name: v for name, v in verdicts(subject).items() if v.status is not Status.FOUND}
    for verdict in found.values():
        assert verdict.detail, verdict
        assert verdict.cost, verdict
        assert verdict.remedy, verdict
    return found


def with_facts(**changed: Any) -> Subject:
    return replace(USUAL, facts=replace(GOOD, **changed))


def with_mounting(**changed: Any) -> Subject:
    return with_facts(mounting=replace(GOOD.mounting, **changed))


def without(*programs: str) -> Subject:
    return with_facts(programs={name: v for name, v in PROGRAMS.items() if name not in programs})


def test_a_host_that_lacks_nothing() -> None:
    found = verdicts(USUAL)
    assert lacking(USUAL) == {}
    assert all(verdict.cost == verdict.remedy == "" for verdict in found.values())
    assert found["cgroups"].detail == "v2"
    assert found["cgroup controllers"].detail == "cpu, cpuset, memory, pids, io"
    assert found["/etc/subuid"].detail == "1000000000 ids for root"
    assert found["CRIU"].detail == "version 4.2.1, works"


CASES = [
    # what is changed, the requirement, its status, whether no container runs, words of the reason
    (with_facts(namespaces=GOOD.namespaces - {"pid"}), "namespaces", "missing", True, "no pid namespaces"),
    (with_facts(user_namespace_error="ENOSPC"), "user namespaces", "missing", True, "ENOSPC"),
    (with_facts(cgroups_writable=False), "cgroups", "missing", True, "read-only"),
    (with_facts(controllers={}, cgroup2=False), "cgroups", "missing", True, "no hierarchy"),
    (
        with_facts(controllers={"cpu": 2, "cpuset": 2, "io": 2, "pids": 2}),
        "cgroup controllers",
        "degraded",
        False,
        "no memory",
    ),
    (with_facts(liblxc=""), "liblxc", "missing", True, "not installed"),
    (
        with_facts(liblxc="4.0.12", programs=PROGRAMS | {"lxc-start": "4.0.12"}),
        "liblxc",
        "degraded",
        False,
        "4.",
    ),
    (without("lxc-start"), "lxc-start", "missing", True, "not installed"),
    (with_facts(liblxc="6.0.0"), "lxc-start", "degraded", False, "version 5.0.2, and liblxc is 6.0.0"),
    (replace(USUAL, ids=replace(IDS, uids=())), "/etc/subuid", "missing", True, "no range"),
    (
        replace(USUAL, ids=replace(IDS, gids=(HostRange(5, 1), HostRange(10, 65535)))),
        "/etc/subgid",
        "missing",
        True,
        "only 65535",
    ),
    (
        with_mounting(folder_idmapped=False),
        "idmapped mounts of the state folder",
        "degraded",
        False,
        r"\(ext4\) cannot be mapped",
    ),
    (with_mounting(overlay=False, overlay_idmapped=False), "overlay", "degraded", False, "cannot hold"),
    (with_mounting(overlay_idmapped=False), "overlay of idmapped layers", "degraded", False, "kernel 6.12"),
    (
        with_mounting(squashfs_idmapped=False),
        "idmapped mounts of squashfs",
        "degraded",
        False,
        "6.12 cannot map ids on squashfs",
    ),
    (
        with_mounting(squashfs=False, squashfs_idmapped=False),
        "squashfs on loop devices",
        "missing",
        False,
        "cannot mount squashfs",
    ),
    (
        with_mounting(loop=False, squashfs=False, squashfs_idmapped=False),
        "squashfs on loop devices",
        "missing",
        False,
        "no loop devices",
    ),
    (with_facts(seccomp_actions=frozenset()), "seccomp", "missing", False, "no system call filters"),
    (
        with_facts(seccomp_actions=frozenset(("allow",))),
        "seccomp",
        "degraded",
        False,
        "without notifications",
    ),
    (replace(USUAL, apparmor=Mode.OFF), "AppArmor", "missing", False, "not enabled"),
    (replace(USUAL, apparmor=Mode.INHERIT), "AppArmor", "degraded", False, "no policy can be loaded"),
    (without("apparmor_parser"), "AppArmor", "missing", True, "not installed"),
    (with_facts(lxcfs=False), "lxcfs", "missing", False, "not mounted"),
    (with_facts(links={"veth": False, "bridge": True}), "veth", "missing", False, "cannot be created"),
    (with_facts(links={"veth": True, "bridge": False}), "bridge", "missing", False, "cannot be created"),
    (
        with_facts(links={}, programs={k: v for k, v in PROGRAMS.items() if k != "ip"}),
        "veth and bridge",
        "missing",
        False,
        "not installed",
    ),
    (
        with_facts(ipv6_lack="the kernel of this host has no IPv6"),
        "IPv6",
        "degraded",
        False,
        "kernel of this host has no IPv6",
    ),
    *(
        (
            with_facts(limits={**WANTED, key: 1}),
            group,
            "degraded",
            False,
            f"^{key} is 1, should be {WANTED[key]}$",
        )
        for group, key in (
            ("inotify limits", "fs.inotify.max_user_instances"),
            ("inotify limits", "fs.inotify.max_user_watches"),
            ("inotify limits", "fs.inotify.max_queued_events"),
            ("key limits", "kernel.keys.maxkeys"),
            ("key limits", "kernel.keys.maxbytes"),
            ("memory maps", "vm.max_map_count"),
            ("neighbour tables", "net.ipv4.neigh.default.gc_thresh3"),
            ("neighbour tables", "net.ipv6.neigh.default.gc_thresh1"),
            ("asynchronous I/O", "fs.aio-max-nr"),
            ("process ids", "kernel.pid_max"),
        )
    ),
    (without("nft"), "nftables", "missing", False, "not installed"),
    (
        with_facts(nft_error="not supported"),
        "nftables",
        "missing",
        False,
        "not supported",
    ),
    (without("dnsmasq"), "dnsmasq", "missing", False, "not installed"),
    (without("unsquashfs"), "unsquashfs", "missing", False, "not installed"),
    (without("mksquashfs"), "mksquashfs", "missing", False, "not installed"),
    (without("criu"), "CRIU", "missing", False, "not installed"),
    (with_facts(programs=PROGRAMS | {"criu": "4.1.1"}), "CRIU", "degraded", False, "version 4.1.1, and 4.2"),
    (with_facts(programs=PROGRAMS | {"criu": "?"}), "CRIU", "degraded", False, "version ?"),
    (with_facts(criu_failure="no sockets"), "CRIU", "degraded", False, "no sockets"),
]


@pytest.mark.parametrize(("subject", "name", "status", "fatal", "detail"), CASES, ids=lambda v: str(v)[:40])
def test_each_lack_has_its_verdict(
    subject: Subject, name: str, status: str, fatal: bool, detail: str
) -> None:
    found = lacking(subject)
    assert set(found) == {name}
    assert found[name].status == status
    assert found[name].fatal is fatal
    assert re.search(detail, found[name].detail)


def test_who_may_not_mount_hears_it_once() -> None:
    nothing = Mounting(False, "", False, False, False, False, False, False, False)
    found = lacking(with_facts(mounting=nothing))
    assert set(found) == {"mounting"}
    assert found["mounting"].fatal


@pytest.mark.parametrize(
    ("controllers", "cgroup2", "kind"),
    [
        ({"cpu": 1, "cpuset": 1, "memory": 1, "pids": 1, "blkio": 1}, False, "v1"),
        ({"cpu": 1, "cpuset": 1, "memory": 1, "pids": 1, "blkio": 1}, True, "v1 and v2 (hybrid)"),
        ({"cpu": 1, "cpuset": 1, "memory": 2, "pids": 1, "blkio": 1}, True, "v1 and v2 (hybrid)"),
    ],
)
def test_both_versions_of_cgroups_are_good(controllers: dict[str, int], cgroup2: bool, kind: str) -> None:
    subject = with_facts(controllers=controllers, cgroup2=cgroup2)
    assert lacking(subject) == {}
    assert verdicts(subject)["cgroups"].detail == kind


def test_the_cost_of_each_lacking_controller() -> None:
    found = lacking(with_facts(controllers={"cpu": 2}))["cgroup controllers"]
    assert found.detail == "no cpuset, memory, pids, io"
    for key in ("limits.cpu ", "limits.memory", "limits.processes", "limits.disk.priority"):
        assert key in found.cost


def test_the_switch_that_forbids_idmapping_is_named() -> None:
    disabled = with_mounting(
        idmapping_disabled=True, folder_idmapped=False, overlay_idmapped=False, squashfs_idmapped=False
    )
    found = lacking(disabled)
    assert len(found) == 3
    assert {verdict.remedy for verdict in found.values()} == {"unset UTSUWA_IDMAPPED_MOUNTS_DISABLE"}


def test_limits_are_raised_where_they_can_be() -> None:
    low = {**WANTED, "kernel.keys.maxkeys": 200, "kernel.keys.maxbytes": 20000}
    found = lacking(with_facts(limits=low))["key limits"]
    assert found.detail == (
        "kernel.keys.maxkeys is 200, should be 20000; kernel.keys.maxbytes is 20000, should be 2000000"
    )
    assert found.remedy == "utsuwad check --raise-limits"
    assert found.source is Source.SETUP
    found = lacking(with_facts(limits=low, limits_writable=False))["key limits"]
    assert found.remedy == (
        "on the machine that this system runs on: "
        "sysctl -w kernel.keys.maxkeys=20000 kernel.keys.maxbytes=2000000"
    )


def test_limits_that_the_kernel_does_not_have_are_not_judged() -> None:
    assert lacking(with_facts(limits={})) == {}


def test_json_and_table_say_the_same() -> None:
    found = evaluate(without("lxc-start", "criu"))
    shown = json.loads(as_json(found))
    assert shown["usable"] is False
    assert len(shown["requirements"]) == len(found)
    assert shown["requirements"][0] == {
        "name": "namespaces",
        "status": "found",
        "detail": "mnt, pid, net, ipc, uts, user",
        "cost": "",
        "remedy": "",
        "source": "host",
        "essential": True,
    }
    table = as_table(found)
    assert table.count("cost: ") == table.count("remedy: ") == 2
    assert table.endswith("Containers cannot run on this host: lxc-start missing.\n")
    assert as_table(evaluate(without("criu"))).endswith(
        f"Containers can run on this host; 1 of {len(found)} requirements are not met in full.\n"
    )


@pytest.mark.parametrize(
    ("subject", "before_install", "code"),
    [
        (USUAL, False, 0),
        (without("criu"), False, 0),
        (without("lxc-start"), False, 1),
        (without("lxc-start"), True, 0),
        (with_facts(cgroups_writable=False), True, 1),
    ],
)
def test_the_exit_status(
    subject: Subject,
    before_install: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "probe", lambda paths: subject)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert check.run(json_format=True, before_install=before_install) == code
    shown = json.loads(capsys.readouterr().out)
    assert shown["usable"] is (code == 0)
    sources = {requirement["source"] for requirement in shown["requirements"]}
    assert sources == ({Source.HOST} if before_install else {Source.HOST, Source.SETUP})


def test_only_root_can_try_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match="run this as root"):
        check.run(json_format=False, before_install=False)
