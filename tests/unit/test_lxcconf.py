"""lxc.conf: what a container's description becomes, and that no value brings a line of its own."""

from __future__ import annotations

import stat
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.scope import Policy
from utsuwa.devices import BindMount
from utsuwa.host.lxcentries import mount_entry
from utsuwa.host.network import veth
from utsuwa.instances.confinement import conf_lines, lxcconf
from utsuwa.instances.confinement.host_facts import HostFacts, read_host_facts
from utsuwa.instances.confinement.lxcconf import ContainerSpec, SeccompPolicy
from utsuwa.instances.confinement.raw_lxc import check_raw_lxc

MAP = IdMap((IdRange(0, 1000000, 65536),), (IdRange(0, 2000000, 65536),))
SPEC = ContainerSpec(
    name="c1",
    architecture="x86_64",
    rootfs=Path("/pool/c1/rootfs"),
    idmap=MAP,
    config={},
    cgroup="utsuwa-1",
    console_log=Path("/logs/console.log"),
    post_stop=Path("/state/post-stop"),
    target=Path("/logs/lxc.target"),
    host=HostFacts(),
)


def lines(**changes: object) -> list[str]:
    text = lxcconf.build(replace(SPEC, **changes))  # type: ignore[arg-type]
    assert text.endswith("\n")
    return text.splitlines()


def test_an_unprivileged_container() -> None:
    found = lines()
    for expected in (
        "lxc.uts.name = c1",
        "lxc.arch = linux64",
        "lxc.rootfs.path = dir:/pool/c1/rootfs",
        "lxc.idmap = u 0 1000000 65536",
        "lxc.idmap = g 0 2000000 65536",
        "lxc.cgroup.dir = utsuwa-1",
        "lxc.mount.auto = proc:rw sys:rw cgroup:rw:force",
        "lxc.cap.drop = sys_time sys_module sys_rawio mac_admin mac_override",
        "lxc.net.0.type = empty",
        "lxc.hook.version = 1",
        "lxc.hook.post-stop = /bin/sh /state/post-stop /logs/lxc.target",
    ):
        assert found.count(expected) == 1
    assert not any("devices.allow" in line or "seccomp" in line for line in found)


def test_devices_of_a_privileged_container_are_limited() -> None:
    found = lines(idmap=IdMap(), host=HostFacts(cgroup_namespaces=False))
    assert "lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed" in found
    assert "lxc.cgroup.devices.deny = a" in found
    assert "lxc.cgroup2.devices.deny = a" in found
    assert "lxc.mount.entry = mqueue dev/mqueue mqueue rw,relatime,create=dir,optional 0 0" in found
    assert not any(line.startswith(("lxc.idmap", "lxc.cgroup.devices.allow = b")) for line in found)


def test_devices_are_limited_if_nodes_can_be_created() -> None:
    found = lines(config={"security.syscalls.intercept.mknod": "true"}, device_rules=["c 10:232 rwm"])
    assert found.index("lxc.cgroup.devices.deny = a") < found.index("lxc.cgroup.devices.allow = c 10:232 rwm")


def test_what_may_be_mounted_is_passed_on() -> None:
    policy = SeccompPolicy(Path("/s"), Path("/socket"), Path("/settings"))
    found = lines(config={"security.syscalls.intercept.mount": "true"}, seccomp=policy)
    assert "lxc.cgroup.devices.deny = a" in found
    assert found.index("lxc.seccomp.notify.proxy = unix:/socket") < found.index(
        "lxc.seccomp.notify.cookie = /settings"
    )


def test_architectures() -> None:
    assert "lxc.arch = linux32" in lines(architecture="armv7l")
    assert not any(line.startswith("lxc.arch") for line in lines(architecture="unheard-of"))


def test_settings_become_lines() -> None:
    config = {
        "environment.LANG": "C.UTF-8",
        "environment.EDGE": " x ",
        "environment.EMPTY": "",
        "limits.kernel.nofile": "1000:2000",
        "limits.kernel.core": "unlimited",
        "limits.kernel.nproc": "",
        "linux.sysctl.net.ipv4.ip_forward": "1",
        "user.other": "no",
    }
    found = lines(config=config)
    for expected in (
        "lxc.environment = LANG=C.UTF-8",
        'lxc.environment = "EDGE= x "',
        "lxc.environment = EMPTY=",
        "lxc.prlimit.nofile = 1000:2000",
        "lxc.prlimit.core = unlimited",
        "lxc.sysctl.net.ipv4.ip_forward = 1",
    ):
        assert expected in found
    assert not any("nproc" in line or "user.other" in line for line in found)


def test_init_is_told_of_credentials() -> None:
    """Unless its environment says otherwise."""
    told, key = "lxc.environment = CREDENTIALS_DIRECTORY=/dev/.lxc/credentials", {"systemd.credential.a": "1"}
    assert told in lines(config=key)
    assert told not in lines(config={"systemd.credential.a": ""})
    own = lines(config={**key, "environment.CREDENTIALS_DIRECTORY": "/x"})
    assert told not in own
    assert "lxc.environment = CREDENTIALS_DIRECTORY=/x" in own


@pytest.mark.parametrize(
    "config",
    [
        {"limits.kernel.nonsense": "1"},
        {"limits.kernel.nofile": "many"},
        {"limits.kernel.nofile": "1:2:3"},
        {"linux.sysctl.a b": "1"},
        {"linux.sysctl.": "1"},
        {"linux.sysctl.kernel.x": "1\n2"},
        {"environment.": "1"},
        {"environment.A=B": "1"},
        {"environment.A": "1\nlxc.hook.pre-start = /bin/evil"},
        {"environment.A\nB": "1"},
        {"environment.A": "\ud800"},
    ],
)
def test_invalid_settings(config: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig):
        lines(config=config)


@pytest.mark.parametrize(
    ("idmap", "nesting", "dropped"),
    [(MAP, "true", False), (MAP, "false", True), (IdMap(), "true", True)],
    ids=["nested", "usual", "privileged"],
)
def test_dropped_capabilities(idmap: IdMap, nesting: str, dropped: bool) -> None:
    found = lines(idmap=idmap, config={"security.nesting": nesting})
    assert any(line.startswith("lxc.cap.drop") for line in found) is dropped


def test_devices_and_confinement() -> None:
    found = lines(
        nics=[veth.Pair("h0", "eth0", "00:16:3e:00:00:01", 1400), veth.Pair("h1", "lan", "x", bridge="br0")],
        mounts=[BindMount(Path("/srv/a b"), "/data/"), BindMount(Path("/srv"), "/ro", read_only=True)],
        read_only_root=True,
        apparmor=[("lxc.apparmor.profile", "p//&:p:")],
        seccomp=lxcconf.SeccompPolicy(Path("/state/security/seccomp/c1"), Path("/state/seccomp.socket")),
    )
    assert "lxc.net.0.type = empty" not in found
    assert [line for line in found if line.startswith("lxc.net.")] == [
        "lxc.net.0.type = veth",
        "lxc.net.0.flags = up",
        "lxc.net.0.name = eth0",
        "lxc.net.0.hwaddr = 00:16:3e:00:00:01",
        "lxc.net.0.veth.pair = h0",
        "lxc.net.0.mtu = 1400",
        "lxc.net.1.type = veth",
        "lxc.net.1.flags = up",
        "lxc.net.1.name = lan",
        "lxc.net.1.hwaddr = x",
        "lxc.net.1.veth.pair = h1",
        "lxc.net.1.link = br0",
    ]
    assert r"lxc.mount.entry = /srv/a\040b data none bind 0 0" in found
    assert "lxc.mount.entry = /srv ro none bind,ro 0 0" in found
    assert "lxc.rootfs.options = ro" in found
    assert "lxc.apparmor.profile = p//&:p:" in found
    assert "lxc.seccomp.profile = /state/security/seccomp/c1" in found
    assert "lxc.seccomp.notify.proxy = unix:/state/seccomp.socket" in found
    # its own policy namespace is administered from inside
    assert "lxc.cap.drop = sys_time sys_module sys_rawio" in found


def test_directories_of_the_host_are_shared() -> None:
    host = HostFacts(
        folders=(Path("/sys/kernel/security"),),
        lxcfs=Path("/var/lib/lxcfs"),
        lxcfs_files=("proc/uptime",),
    )
    found = lines(host=host, nodes=[(Path("/state/devices/c1/dev-fuse"), "dev/fuse")])
    uptime = "lxc.mount.entry = /var/lib/lxcfs/proc/uptime proc/uptime none bind,optional 0 0"
    security = "/sys/kernel/security sys/kernel/security none rbind,create=dir,optional 0 0"
    assert uptime in found
    assert "lxc.mount.entry = /state/devices/c1/dev-fuse dev/fuse none bind,create=file,optional 0 0" in found
    assert f"lxc.mount.entry = {security}" in found
    assert not any("dev/.lxc" in line or " var/lib/lxcfs " in line for line in found)
    nested = lines(host=host, config={"security.nesting": "true"})
    assert "lxc.mount.entry = proc dev/.lxc/proc proc create=dir,optional 0 0" in nested
    assert "lxc.mount.entry = /var/lib/lxcfs var/lib/lxcfs none rbind,optional 0 0" in nested


def test_paths_with_spaces() -> None:
    found = lines(post_stop=Path("/a b/hook"), target=Path("/it's/target"))
    assert "lxc.hook.post-stop = /bin/sh '/a b/hook' '/it'\"'\"'s/target'" in found
    assert mount_entry("/a b\t\\", "c d", "none", "bind")[1] == (r"/a\040b\011\134 c\040d none bind 0 0")


def test_init_of_prepared_guests_does_not_watch_the_memory_pressure() -> None:
    """Unless its environment says otherwise."""
    off, key = "lxc.environment = MEMORY_PRESSURE_WATCH=/dev/null", {"migration.stateful": "true"}
    assert off in lines(config=key)
    assert off not in lines(config={})
    own = lines(config={**key, "environment.MEMORY_PRESSURE_WATCH": "/x"})
    assert off not in own
    assert "lxc.environment = MEMORY_PRESSURE_WATCH=/x" in own


def test_raw_lxc_comes_last_and_unchanged() -> None:
    raw = '# a comment\n\n  lxc.environment="A=B"\nlxc.tty.max =  2 '
    assert lines(config={"raw.lxc": raw})[-2:] == ['lxc.environment = "A=B"', "lxc.tty.max = 2"]


@pytest.mark.parametrize(
    "raw", ["nonsense", "lxc.tty.max", "other = 1", "= 1", "lxc.a\x0b = 1", "lxc.a = 1\r\n"]
)
def test_raw_lxc_that_does_not_parse(raw: str) -> None:
    for restricted in (False, True):
        with pytest.raises(InvalidConfig):
            check_raw_lxc(raw, Policy(restricted=restricted))


@pytest.mark.parametrize(
    "raw",
    [
        "lxc.hook.pre-start = /bin/true",
        "lxc.idmap = u 0 0 1",
        "lxc.include = /etc/x",
        "lxc.apparmor.profile = unconfined",
        "lxc.seccomp.profile = /dev/null",
        "lxc.mount.entry = / mnt none bind 0 0",
        "lxc.cap.drop =",
        "lxc.net.0.type = none",
    ],
)
def test_raw_lxc_for_unrestricted_callers_only(raw: str) -> None:
    check_raw_lxc(raw, Policy())
    with pytest.raises(InvalidConfig, match="restricted callers"):
        check_raw_lxc(raw, Policy(restricted=True))


@pytest.mark.parametrize(
    "raw",
    [
        "lxc.log.file = /etc/passwd",
        "lxc.cgroup.dir = /",
        "lxc.cgroup.dir.container = x",
        "lxc.rootfs.path = dir:/",
        "lxc.prlimit.nofile = 1",
        "lxc.ephemeral = 1",
        "lxc.hook.version = 0",
        "lxc.hook.post-stop =",
        "lxc.hook =",
    ],
)
def test_raw_lxc_keys_that_nobody_may_set(raw: str) -> None:
    with pytest.raises(InvalidConfig):
        check_raw_lxc(raw, Policy())


def test_raw_lxc_if_all_instances_are_unprivileged() -> None:
    for raw in ("lxc.idmap =", "lxc.include = /x"):
        with pytest.raises(InvalidConfig, match="cannot be set"):
            check_raw_lxc(raw, Policy(unprivileged_only=True))
    check_raw_lxc("lxc.environment = A=B\n#x", Policy(restricted=True, unprivileged_only=True))


@given(
    st.text(max_size=30),
    st.text(max_size=30),
    st.text(alphabet=string.printable, max_size=60),
    st.text(alphabet="lxc.hook= \n\r\0a#'\"", max_size=40),
)
def test_no_value_adds_a_line(name: str, value: str, other: str, raw: str) -> None:
    config = {f"environment.n{name}": value, "environment.B": other, "raw.lxc": raw}
    try:
        text = lxcconf.build(replace(SPEC, config=config, nics=[veth.Pair("h", other, "x")]))
    except InvalidConfig:
        return
    assert all(c == "\n" or c == "\t" or (ord(c) >= 32 and ord(c) != 127) for c in text)
    raw_lines = sum(
        1 for part in raw.split("\n") if part.strip(" \t") and not part.strip(" \t").startswith("#")
    )
    plain = len(lxcconf.build(replace(SPEC, nics=[veth.Pair("h", "x", "x")])).split("\n"))
    assert len(text.split("\n")) == plain + 2 + raw_lines
    assert all(line.startswith("lxc.") for line in text.split("\n")[:-1])


@given(st.text())
def test_a_pair_is_one_line_or_rejected(value: str) -> None:
    refused = any(ord(c) < 32 and c != "\t" or ord(c) == 127 for c in value)
    if refused:
        with pytest.raises(InvalidConfig):
            conf_lines.line("lxc.environment", value)
        return
    text = conf_lines.line("lxc.environment", value)
    assert text.startswith("lxc.environment = ")
    assert text.index("\n") == len(text) - 1


@pytest.mark.parametrize(
    "key", ["", "lxc", "lxc.", "lxc.a b", "lxc.a=b", "lxc.a\n", "xlxc.a", "lxc." + "a" * 201]
)
def test_keys_are_checked(key: str) -> None:
    with pytest.raises(InvalidConfig):
        conf_lines.line(key, "1")


def test_facts_of_the_host(tmp_path: Path) -> None:
    lxcfs = tmp_path / "lxcfs"
    assert read_host_facts(tmp_path, lxcfs) == HostFacts(cgroup_namespaces=False)
    for folder in (
        "proc/self/ns",
        "dev/net",
        "sys/kernel/security",
        "lxcfs/proc",
        "lxcfs/sys/devices/system/cpu",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("proc/self/ns/cgroup", "dev/fuse", "lxcfs/proc/uptime", "lxcfs/proc/meminfo"):
        (tmp_path / file).touch()
    facts = read_host_facts(tmp_path, lxcfs)
    assert facts.cgroup_namespaces
    assert facts.folders == (Path("/sys/kernel/security"),)
    assert (facts.lxcfs, facts.lxcfs_files) == (lxcfs, ("proc/meminfo", "proc/uptime"))
    (lxcfs / "sys/devices/system/cpu/uevent").touch()
    assert read_host_facts(tmp_path, lxcfs).lxcfs_files[-1] == "sys/devices/system/cpu"


def test_files_have_their_final_modes(tmp_path: Path) -> None:
    lxcconf.write(tmp_path / "lxc.conf", "x\n")
    lxcconf.write(tmp_path / "lxc.conf", "y\n")
    lxcconf.write_post_stop(tmp_path / "post-stop")
    assert (tmp_path / "lxc.conf").read_text() == "y\n"
    assert stat.S_IMODE((tmp_path / "lxc.conf").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "post-stop").stat().st_mode) == 0o700
    assert len(list(tmp_path.iterdir())) == 2
