"""The config keys of instances, profiles, server and projects: what is taken, and what is refused and why."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core import key_checks
from utsuwa.core.config_keys import ConfigKey, KeyTable, Validator
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.instance_keys import INSTANCE_KEY_GROUPS, INSTANCE_KEYS, PROFILE_KEYS
from utsuwa.core.project_keys import PROJECT_KEYS
from utsuwa.core.server_keys import LOCAL_KEYS, SERVER_KEY_GROUPS, SERVER_KEYS

UUID = "1c6bd3f0-95ab-4d3a-8a43-2f9f1d1f5a7b"

GOOD = [
    ("boot.autostart", "true"),
    ("boot.autostart.delay", "30"),
    ("boot.autostart.priority", "-3"),
    ("boot.host_shutdown_action", "force-stop"),
    ("boot.host_shutdown_timeout", "0"),
    ("cloud-init.user-data", "#cloud-config\npackages: []\n"),
    ("cluster.evacuate", "live-migrate"),
    ("environment.PATH", "/usr/bin:/bin"),
    ("image.os", "Debian\nGNU"),
    ("limits.cpu", "2"),
    ("limits.cpu", "0-3,7"),
    ("limits.cpu", "0-0"),
    ("limits.cpu.allowance", "50%"),
    ("limits.cpu.allowance", "25ms/100ms"),
    ("limits.cpu.nodes", "balanced"),
    ("limits.cpu.nodes", "0,1"),
    ("limits.cpu.priority", "10"),
    ("limits.disk.priority", "0"),
    ("limits.hugepages.2MB", "8MiB"),
    ("limits.kernel.nofile", "3000"),
    ("limits.kernel.nofile", "1000:unlimited"),
    ("limits.kernel.core", "unlimited"),
    ("limits.memory", "512MiB"),
    ("limits.memory", "50%"),
    ("limits.memory.enforce", "soft"),
    ("limits.memory.oom_priority", "-1000"),
    ("limits.memory.swap", "false"),
    ("limits.memory.swap", "1GiB"),
    ("limits.network.priority", "5"),
    ("limits.processes", "500"),
    ("linux.kernel_modules", "br_netfilter, nf_nat"),
    ("security.syscalls.intercept.mount.fuse", "ext4=fuse2fs, ntfs=ntfs-3g"),
    ("linux.sysctl.net.ipv4.ip_forward", "1"),
    ("migration.incremental.memory.goal", "70"),
    ("nvidia.driver.capabilities", "compute,utility"),
    ("oci.cwd", "/srv"),
    ("raw.apparmor", "mount,\nremount,"),
    ("raw.idmap", "both 1000 1000\nuid 50-60 500-510\n\ngid 100000-110000 10000-20000"),
    ("raw.lxc", "# a comment\nlxc.cap.drop = sys_time\nlxc.net.0.mtu=9000"),
    ("raw.seccomp", "2\ndenylist\nreject_force_umount\n"),
    ("security.devlxd", "0"),
    ("security.devlxd.images", "yes"),
    ("security.idmap.base", "1000000"),
    ("security.idmap.size", "65536"),
    ("security.nesting", "TRUE"),
    ("security.syscalls.deny", "keyctl errno 38\nmount\n[x86_64]\n# why"),
    ("snapshots.expiry", "1w 2d 12H"),
    ("snapshots.pattern", "{{ creation_date }}"),
    ("snapshots.schedule", "0 6 * * *"),
    ("snapshots.schedule", "*/15 0-6,12 1 jan mon-fri"),
    ("snapshots.schedule", "@daily, @startup"),
    ("snapshots.schedule", "0 6 * * *, 30 7 1,15 * *"),
    ("snapshots.schedule", "0 6 * * *, @weekly"),
    ("systemd.credential.ssh.authorized_keys.root", "ssh-ed25519 AAAA\nssh-rsa BBBB"),
    ("systemd.credential-binary.key", "AAEC\n/w==\n"),
    ("security.guestapi", "false"),
    ("security.guestapi.images", "yes"),
    ("user.anything at all", "any\nthing"),
    ("volatile.eth0.hwaddr", "00:16:3e:00:00:01"),
    ("volatile.my.nic.host_name", "veth1"),
    ("volatile.eth0.last_state.created", "false"),
    ("volatile.uuid", UUID),
    ("volatile.cloud-init.instance-id", UUID),
    ("volatile.idmap.next", '[{"Isuid":true}]'),
    ("volatile.last_state.power", "RUNNING"),
]

BAD = [
    ("boot.autostart", "maybe", "true or false"),
    ("boot.autostart.delay", "-1", "0 or more"),
    ("boot.autostart.priority", "1.5", "whole number"),
    ("boot.host_shutdown_action", "explode", "one of stop, force-stop"),
    ("cluster.evacuate", "run", "one of auto"),
    ("environment.", "x", "Unknown configuration key"),
    ("environment.A=B", "x", "Unknown configuration key"),
    ("environment.A", "one\ntwo", "line break"),
    ("limits.cpu", "0", "between 1 and"),
    ("limits.cpu", "x", "a set such as"),
    ("limits.cpu", "3-1", "runs backwards"),
    ("limits.cpu", "1-", "a set such as"),
    ("limits.cpu", "0-3,2", "2 appears more than once"),
    ("limits.cpu", "0-99999", "a set such as"),
    ("limits.cpu", "٣", "a set such as"),
    ("limits.cpu.allowance", "0%", "between 1% and 100%"),
    ("limits.cpu.allowance", "101%", "between 1% and 100%"),
    ("limits.cpu.allowance", "50", "a percentage such as"),
    ("limits.cpu.allowance", "0ms/100ms", "at least 1ms"),
    ("limits.cpu.allowance", "10ms/2000ms", "1ms to 1000ms"),
    ("limits.cpu.priority", "11", "between 0 and 10"),
    ("limits.hugepages.2MB", "lots", "Invalid size"),
    ("limits.hugepages.3MB", "1MB", "Unknown configuration key"),
    ("limits.kernel.nofile", "-1", "a number, unlimited"),
    ("limits.kernel.nofile", "10:5", "exceeds the hard limit"),
    ("limits.kernel.nofile", "unlimited:5", "exceeds the hard limit"),
    ("limits.kernel.nothing", "1", "Unknown configuration key"),
    ("limits.memory", "0%", "between 1% and 100%"),
    ("limits.memory", "1e9", "Invalid size"),
    ("limits.memory", "5%%", "between 1% and 100%"),
    ("limits.memory.swap", "sometimes", "Invalid size"),
    ("limits.memory.oom_priority", "1001", "between -1000 and 1000"),
    ("limits.processes", "0", "1 or more"),
    ("linux.kernel_modules", "ok,../../evil", "not a module name"),
    ("security.syscalls.intercept.mount.fuse", "ext4=/bin/fuse2fs", "is not a file system and the name"),
    ("security.syscalls.intercept.mount.fuse", "fuse2fs", "is not a file system and the name"),
    ("linux.sysctl.a b", "1", "Unknown configuration key"),
    ("nvidia.driver.capabilities", "compute,magic", "'magic' is not one of"),
    ("oci.cwd", "relative", "absolute path"),
    ("oci.uid", "4294967295", "between 0 and"),
    ("raw.idmap", "both 1000", "not of the form"),
    ("raw.idmap", "all 1 1", "not of the form"),
    ("raw.idmap", "uid 1-5 1-6", "differ in length"),
    ("raw.idmap", "uid 5-1 5-1", "run backwards"),
    ("raw.idmap", "uid 4294967295 1", "above"),
    ("raw.lxc", "a", "not of the form"),
    ("raw.lxc", "lxc.a = 1\nnot lxc", "not of the form"),
    ("raw.seccomp", "a\0b", "NUL"),
    ("security.idmap.base", "-1", "between 0 and"),
    ("security.idmap.size", "0", "between 1 and"),
    ("security.secureboot", "true", "is for virtual machines only"),
    ("raw.qemu", "-snapshot", "is for virtual machines only"),
    ("volatile.vsock_id", "3", "is for virtual machines only"),
    ("systemd.credential-binary.key", "AAE", "must be in base64"),
    ("systemd.credential-binary.key", "ä", "must be in base64"),
    ("systemd.credential...", "x", "Unknown configuration key"),
    ("systemd.credential.", "x", "Unknown configuration key"),
    ("systemd.credential.a/b", "x", "Unknown configuration key"),
    ("security.guestapi", "maybe", "true or false"),
    ("security.syscalls.deny", "Mount", "does not begin with a system call"),
    ("snapshots.expiry", "soon", "a time span"),
    ("snapshots.schedule", "every day", "cron expression"),
    ("snapshots.schedule", "@daily,@sometimes", "cron expression"),
    ("snapshots.schedule", "0 6 * *", "cron expression"),
    ("user.x", "a\0b", "NUL"),
    ("user.x\ny", "1", "control characters"),
    ("volatile.nothing", "1", "Unknown configuration key"),
    ("volatile.eth0.nothing", "1", "Unknown configuration key"),
    ("volatile.uuid", "me", "must be a UUID"),
    ("nothing", "1", "Unknown configuration key 'nothing' for instances"),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_valid_values_are_accepted(name: str, value: str) -> None:
    INSTANCE_KEYS.check({name: value})


@pytest.mark.parametrize(("name", "value", "why"), BAD)
def test_bad_values_are_refused_with_a_reason(name: str, value: str, why: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        INSTANCE_KEYS.check({name: value})
    assert why in str(caught.value)


def test_every_problem_is_named() -> None:
    with pytest.raises(InvalidConfig) as caught:
        INSTANCE_KEYS.check({"limits.cpu": "x", "user.a": "fine", "nothing": "1"})
    assert "limits.cpu" in str(caught.value)
    assert "nothing" in str(caught.value)


def test_an_empty_value_unsets_a_known_key_only() -> None:
    INSTANCE_KEYS.check({"limits.cpu": "", "volatile.uuid": ""})
    with pytest.raises(InvalidConfig):
        INSTANCE_KEYS.check({"nothing": ""})


def test_profiles_hold_no_volatile_keys() -> None:
    with pytest.raises(InvalidConfig, match="Unknown configuration key 'volatile.uuid' for profiles"):
        PROFILE_KEYS.check({"volatile.uuid": UUID})


def test_profiles_may_hold_keys_of_virtual_machines() -> None:
    """A profile may come from a server that has them; what uses it here is judged as a whole."""
    PROFILE_KEYS.check({"security.secureboot": "false", "limits.cpu": "2", "user.x": "1"})


def test_keys_that_are_live() -> None:
    def in_force(name: str) -> bool:
        key = INSTANCE_KEYS.find(name)
        assert key is not None
        return key.in_force

    assert all(
        in_force(name)
        for name in (
            "boot.autostart",
            "cloud-init.user-data",
            "environment.A",
            "limits.cpu",
            "limits.cpu.nodes",
            "limits.hugepages.2MB",
            "limits.kernel.nofile",
            "limits.memory",
            "limits.memory.oom_priority",
            "linux.sysctl.net.ipv4.ip_forward",
            "raw.lxc",
            "security.bpffs.delegate_cmds",
            "security.devlxd",
            "security.idmap.isolated",
            "security.nesting",
            "security.privileged",
            "security.protection.delete",
            "security.syscalls.deny",
            "security.syscalls.intercept.bpf",
            "security.syscalls.intercept.bpf.devices",
            "security.syscalls.intercept.mknod",
            "security.syscalls.intercept.mount",
            "security.syscalls.intercept.mount.shift",
            "snapshots.schedule",
        )
    )
    assert not in_force("oci.entrypoint")


@pytest.mark.parametrize("groups", [INSTANCE_KEY_GROUPS, SERVER_KEY_GROUPS])
def test_tables_are_complete(groups: dict[str, tuple[ConfigKey, ...]]) -> None:
    keys = [key for group in groups.values() for key in group]
    assert len({key.name for key in keys}) == len(keys)
    for key in keys:
        assert key.help.endswith((".", ":")), f"{key.name} has no sentence of help"
        if key.default:
            KeyTable("test", keys=(key,)).check({key.name.replace("*", "x"): key.default})


# ---- the server's and the projects' keys


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("core.https_address", ":8443"),
        ("core.https_address", "[::]:8443"),
        ("core.https_address", "[fe80::1%eth0]:8443"),
        ("core.https_address", "10.0.0.1"),
        ("core.https_address", "10.0.0.1:8443"),
        ("core.https_address", "host.example:1"),
        ("core.https_address", "::1"),
        ("core.trust_password", "so secret"),
        ("core.shutdown_timeout", "0"),
        ("core.shutdown_action", "shutdown"),
        ("core.remote_token_expiry", "1H"),
        ("images.compression_algorithm", "zstd -19 --rsyncable"),
        ("images.compression_algorithm", "none"),
        ("backups.compression_algorithm", "xz -9"),
        ("loki.types", "lifecycle,logging"),
        ("logging.mine.target.type", "syslog"),
        ("network.ovn.ca_cert", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        ("user.note", "x"),
    ],
)
def test_server_keys_take(name: str, value: str) -> None:
    SERVER_KEYS.check({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("core.https_address", "10.0.0.1:0"),
        ("core.https_address", "10.0.0.1:99999"),
        ("core.https_address", "a b"),
        ("core.https_address", "http://x"),
        ("core.https_address", ":8443\n:8444"),
        ("core.shutdown_timeout", "-1"),
        ("core.shutdown_action", "panic"),
        ("core.shutdown_action", "evacuate"),
        ("images.compression_algorithm", "gzip -c /etc/shadow"),
        ("images.compression_algorithm", "sh"),
        ("images.compression_algorithm", "xz --rsyncable"),
        ("images.auto_update_interval", "often"),
        ("cluster.offline_threshold", "1"),
        ("loki.types", "gossip"),
        ("logging.mine.nothing", "x"),
        ("limits.cpu", "1"),
    ],
)
def test_server_keys_refuse(name: str, value: str) -> None:
    with pytest.raises(InvalidConfig):
        SERVER_KEYS.check({name: value})


def test_keys_of_one_server_are_known() -> None:
    assert all(SERVER_KEYS.find(name) for name in LOCAL_KEYS)


def test_secrets_are_marked() -> None:
    marked = {key.name for key in SERVER_KEYS.keys if key.secret}
    assert {"core.trust_password", "loki.auth.password", "openfga.api.token"} <= marked


def test_projects_know_their_features() -> None:
    PROJECT_KEYS.check({"features.images": "true", "user.x": "1"})
    with pytest.raises(InvalidConfig):
        PROJECT_KEYS.check({"features.images": "perhaps"})


# ---- anything at all


_CHECKS = [
    key_checks.cpus,
    key_checks.numa_nodes,
    key_checks.cpu_allowance,
    key_checks.size_or_percent,
    key_checks.swap,
    key_checks.kernel_limit,
    key_checks.user_id,
    key_checks.idmap_size,
    key_checks.raw_idmap,
    key_checks.syscalls,
    key_checks.raw_lxc,
    key_checks.kernel_modules,
    key_checks.expiry,
    key_checks.schedule,
    key_checks.compression,
    key_checks.listen_address,
    key_checks.absolute_path,
    key_checks.is_uuid,
]

_TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="0123456789-,:%/ms unlimitedbothugd@*\n[].", max_size=60),
)


@given(st.sampled_from(_CHECKS), _TEXTS)
def test_checks_take_or_refuse_and_never_fall_over(check: Validator, value: str) -> None:
    with suppress(InvalidConfig):
        check(value)


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=5))
def test_any_config_is_accepted_or_rejected_with_a_reason(config: dict[str, str]) -> None:
    for table in (INSTANCE_KEYS, PROFILE_KEYS, SERVER_KEYS, PROJECT_KEYS):
        try:
            table.check(config)
        except InvalidConfig:
            continue
        assert all("\n" not in name and "\0" not in name for name in config)


@pytest.mark.parametrize("table", [INSTANCE_KEYS, PROFILE_KEYS, SERVER_KEYS, PROJECT_KEYS])
def test_every_key_is_found_by_its_names(table: KeyTable) -> None:
    for key in table.keys:
        found = table.find(key.name.replace("*", "some"))
        assert found is not None
        # A wildcard may also match more of the name: `volatile.*.hwaddr` that of a `last_state`.
        assert found is key or found.name.rpartition("*")[2] in key.name
        if "*" in key.name:
            assert table.find(key.name.replace("*", "")) is not key


@given(st.sets(st.integers(0, 200), min_size=1))
def test_cpu_sets_are_accepted_in_any_notation(numbers: set[int]) -> None:
    key_checks.number_set(",".join(str(n) for n in numbers))
    key_checks.number_set(f"{min(numbers)}-{max(numbers)}")


@given(st.integers(0, 2**32 - 1000), st.integers(0, 2**32 - 1000), st.integers(1, 900))
def test_id_ranges_of_equal_length_are_accepted(host: int, inside: int, count: int) -> None:
    line = f"both {host}-{host + count - 1} {inside}-{inside + count - 1}"
    key_checks.raw_idmap(line)
    with pytest.raises(InvalidConfig):
        key_checks.raw_idmap(f"both {host}-{host + count} {inside}-{inside + count - 1}")


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_soft_limit_is_never_above_the_hard_one(soft: int, hard: int) -> None:
    text = f"{soft}:{hard}"
    if soft <= hard:
        key_checks.kernel_limit(text)
    else:
        with pytest.raises(InvalidConfig):
            key_checks.kernel_limit(text)


def test_empty_values_unset_known_keys() -> None:
    given = {"limits.memory": "", "user.x": "", "limits.cpu": "2"}
    assert INSTANCE_KEYS.set_only(given) == {"limits.cpu": "2"}
    with pytest.raises(InvalidConfig, match="Unknown configuration key 'limits.memry'.*'limits.memory'"):
        INSTANCE_KEYS.set_only({"limits.memry": ""})
    assert INSTANCE_KEYS.set_only({"limits.later": ""}, {"limits.later": "1"}) == {}  # of another version
