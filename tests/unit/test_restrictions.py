"""What the restrictions of a project allow, key by key; an absent key counts as its default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from utsuwa.core.errors import Forbidden, InvalidConfig
from utsuwa.core.project_keys import PROJECT_KEYS
from utsuwa.projects.restrictions import Restrictions, restrictions_of

ROOT = {"type": "disk", "path": "/", "pool": "p"}
VOLUME = {"type": "disk", "path": "/mnt", "pool": "p", "source": "v"}
FOLDER = {"type": "disk", "path": "/mnt", "source": "/srv/data"}
OWN_FOLDER = {"type": "disk", "path": "/mnt", "source": "instance:data"}
MANAGED = {"type": "nic", "network": "br"}
UNMANAGED = {"type": "nic", "nictype": "bridged", "parent": "br"}
P2P = {"type": "nic", "nictype": "p2p"}


def restrictions(**values: str) -> Restrictions:
    """Those of a restricted project; in names, `__` stands for a dash and `_` for a dot."""
    config = {
        "restricted." + name.replace("__", "-").replace("_", "."): value for name, value in values.items()
    }
    PROJECT_KEYS.check(config)
    return restrictions_of("web", {**config, "restricted": "true", "features.images": "true"})


def allowed(right: bool) -> AbstractContextManager[object]:
    return nullcontext() if right else pytest.raises(Forbidden, match="Project 'web' does not allow")


def test_unrestricted_project_allows_everything() -> None:
    free = restrictions_of("web", {"restricted": "false", "restricted.devices.nic": "block"})
    free.check({"security.privileged": "true"}, {"d": FOLDER, "n": P2P, "u": {"type": "usb"}}, profile=False)
    free.check_volatile({}, {"volatile.uuid": "x"})
    assert free.allows_network("br", managed=False)
    assert free == Restrictions("web")
    assert restrictions_of("web", {"network.hwaddr_pattern": "02:xx:xx:xx:xx:xx"}).mac_pattern[:2] == "02"


@pytest.mark.parametrize(
    ("values", "config", "right"),
    [
        ({}, {}, True),
        ({}, {"limits.cpu": "2", "user.a": "1", "boot.autostart": "true"}, True),
        ({}, {"limits.memory.oom_priority": "500"}, True),
        ({}, {"limits.memory.oom_priority": "-1"}, False),
        ({"containers_lowlevel": "allow"}, {"limits.memory.oom_priority": "-1"}, True),
        ({}, {"security.nesting": "true"}, False),
        ({}, {"security.nesting": "false"}, True),
        ({"containers_nesting": "allow"}, {"security.nesting": "true"}, True),
        ({}, {"security.privileged": "true"}, False),
        ({}, {"security.privileged": "false"}, True),
        ({"containers_privilege": "allow"}, {"security.privileged": "true"}, True),
        ({"containers_privilege": "isolated"}, {}, False),
        ({"containers_privilege": "isolated"}, {"security.idmap.isolated": "true"}, True),
        (
            {"containers_privilege": "isolated"},
            {"security.idmap.isolated": "true", "security.privileged": "true"},
            False,
        ),
        ({}, {"raw.lxc": "lxc.environment = A=B"}, False),
        ({}, {"raw.lxc": ""}, True),
        ({}, {"raw.seccomp": "2"}, False),
        ({}, {"raw.apparmor": "deny /x r,"}, False),
        ({}, {"linux.kernel_modules": "loop"}, False),
        ({}, {"linux.sysctl.net.ipv4.ip_forward": "1"}, False),
        ({}, {"nvidia.runtime": "true"}, False),
        ({}, {"security.idmap.base": "100000"}, False),
        ({}, {"security.syscalls.deny": "mount"}, False),
        ({}, {"security.syscalls.deny_default": "false"}, False),
        ({}, {"security.devlxd.images": "true"}, False),
        ({}, {"boot.host_shutdown_timeout": "600"}, False),
        ({"containers_lowlevel": "allow"}, {"raw.lxc": "x", "security.syscalls.deny": "mount"}, True),
        ({}, {"raw.idmap": "both 1000 0"}, False),
        ({"containers_lowlevel": "allow"}, {"raw.idmap": "both 0 0"}, True),
        ({"idmap_uid": "1000-1999", "idmap_gid": "1000"}, {"raw.idmap": "both 1000 0"}, True),
        ({"idmap_uid": "1000-1999", "idmap_gid": "1000"}, {"raw.idmap": "both 1001 0"}, False),
        ({"idmap_uid": "1000-1999"}, {"raw.idmap": "uid 1000-1999 0-999"}, True),
        ({"idmap_uid": "1000-1999"}, {"raw.idmap": "uid 1000-2000 0-1000"}, False),
        ({"idmap_uid": "5,1000-1999"}, {"raw.idmap": "uid 5-1000 5-1000"}, False),
        ({}, {"security.syscalls.intercept.mknod": "true"}, False),
        ({}, {"security.syscalls.intercept.mknod": "false"}, True),
        ({"containers_interception": "allow"}, {"security.syscalls.intercept.mknod": "true"}, True),
        ({"containers_interception": "allow"}, {"security.syscalls.intercept.mount": "true"}, True),
        (
            {"containers_interception": "allow"},
            {"security.syscalls.intercept.mount.fuse": "ext4=fuse2fs"},
            True,
        ),
        ({}, {"security.syscalls.intercept.mount.fuse": "ext4=fuse2fs"}, False),
        ({"containers_interception": "allow"}, {"security.syscalls.intercept.mount.allowed": "ext4"}, False),
        ({"containers_interception": "full"}, {"security.syscalls.intercept.mount.allowed": "ext4"}, True),
    ],
)
def test_config(values: dict[str, str], config: dict[str, str], right: bool) -> None:
    with allowed(right):
        restrictions(**values).check(config, {"root": ROOT}, profile=False)


@pytest.mark.parametrize(
    ("values", "device", "right"),
    [
        ({}, ROOT, True),
        ({"devices_disk": "block"}, ROOT, True),
        ({"devices_disk": "block"}, {**ROOT, "source": "/"}, False),
        ({}, VOLUME, True),
        ({"devices_disk": "block"}, VOLUME, False),
        ({}, OWN_FOLDER, True),
        ({"devices_disk": "block"}, OWN_FOLDER, False),
        ({}, FOLDER, False),
        ({"devices_disk": "allow"}, FOLDER, True),
        ({"devices_disk_paths": "/srv"}, FOLDER, False),
        ({"devices_disk": "allow", "devices_disk_paths": "/mnt, /srv"}, FOLDER, True),
        ({"devices_disk": "allow", "devices_disk_paths": "/srv/data"}, FOLDER, True),
        ({"devices_disk": "allow", "devices_disk_paths": "/"}, FOLDER, True),
        ({"devices_disk": "allow", "devices_disk_paths": "/srv/dat"}, FOLDER, False),
        ({"devices_disk": "allow", "devices_disk_paths": "/srv/data/x"}, FOLDER, False),
        ({"devices_disk": "allow", "devices_disk_paths": "/srv"}, {**FOLDER, "source": "/srv/../etc"}, False),
        ({"devices_disk": "allow", "devices_disk_paths": "/srv"}, {**FOLDER, "source": "//srv/./x"}, True),
        ({"storage__pools_access": "other"}, ROOT, False),
        ({"storage__pools_access": "other,p"}, ROOT, True),
        ({}, MANAGED, True),
        ({}, UNMANAGED, False),
        ({}, P2P, False),
        ({"devices_nic": "block"}, MANAGED, False),
        ({"devices_nic": "allow"}, UNMANAGED, True),
        ({"devices_nic": "allow"}, P2P, True),
        ({"networks_access": "other"}, MANAGED, False),
        ({"networks_access": "other, br"}, MANAGED, True),
        ({"devices_nic": "allow", "networks_access": "other"}, UNMANAGED, False),
        ({}, {**MANAGED, "ipv4.routes": "10.9.1.0/24"}, False),
        ({"networks_subnets": "br:10.9.0.0/16"}, {**MANAGED, "ipv4.routes": "10.9.1.0/24"}, True),
        (
            {"networks_subnets": "br:10.9.0.0/16"},
            {**MANAGED, "ipv4.routes": "10.9.1.0/24,10.8.0.0/24"},
            False,
        ),
        ({"networks_subnets": "b:10.9.0.0/16"}, {**MANAGED, "ipv4.routes": "10.9.1.0/24"}, False),
        ({"networks_subnets": "br:10.9.0.0/16"}, {**MANAGED, "ipv6.routes": "fd00::/64"}, False),
        ({"networks_subnets": "x:10.0.0.0/8,br:fd00::/56"}, {**MANAGED, "ipv6.routes": "fd00::/64"}, True),
        ({}, {"type": "unix-char", "path": "/dev/ttyS0"}, False),
        ({"devices_unix__char": "allow"}, {"type": "unix-char", "path": "/dev/ttyS0"}, True),
        ({"devices_unix__char": "allow"}, {"type": "unix-block", "path": "/dev/sda"}, False),
        ({}, {"type": "gpu"}, False),
        ({}, {"type": "proxy"}, False),
        ({"devices_proxy": "allow"}, {"type": "proxy"}, True),
        ({}, {"type": "none"}, True),
    ],
)
def test_devices(values: dict[str, str], device: dict[str, str], right: bool) -> None:
    for profile in (False, True):
        with allowed(right):
            restrictions(**values).check({}, {"d": device}, profile=profile)


def test_a_profile_need_not_isolate_what_its_instances_may_isolate_themselves() -> None:
    isolated = restrictions(containers_privilege="isolated")
    isolated.check({}, {}, profile=True)
    with pytest.raises(Forbidden, match="isolated=true"):
        isolated.check({"security.idmap.isolated": "false"}, {}, profile=True)


def test_volatile_keys_are_not_chosen_by_callers() -> None:
    own = {"volatile.uuid": "a", "volatile.eth0.hwaddr": "b"}
    kept = {**own, "user.x": "1", "volatile.base_image": "c", "volatile.last_state.power": "RUNNING"}
    restrictions().check_volatile(own, kept)
    restrictions().check_volatile(own, {})
    for changed in ({"volatile.uuid": "b"}, {"volatile.eth0.hwaddr": "x"}, {"volatile.eth1.hwaddr": "b"}):
        with pytest.raises(Forbidden, match=r"'volatile\."):
            restrictions().check_volatile(own, {**own, **changed})
        restrictions(containers_lowlevel="allow").check_volatile(own, {**own, **changed})
    assert restrictions().without_volatile(kept) == {k: v for k, v in kept.items() if k not in own}
    assert restrictions(containers_lowlevel="allow").without_volatile(kept) == kept


@pytest.mark.parametrize(
    ("values", "managed", "unmanaged"),
    [
        ({}, True, False),
        ({"devices_nic": "block"}, False, False),
        ({"devices_nic": "allow"}, True, True),
        ({"devices_nic": "allow", "networks_access": "other"}, False, False),
        ({"networks_access": "br"}, True, False),
    ],
)
def test_networks_that_are_visible(values: dict[str, str], managed: bool, unmanaged: bool) -> None:
    found = restrictions(**values)
    assert found.allows_network("br", managed=True) is managed
    assert found.allows_network("br", managed=False) is unmanaged


@pytest.mark.parametrize(
    ("values", "config", "right"),
    [
        ({}, {"ipv4.address": "10.9.0.1/24", "ipv4.nat": "true"}, True),
        ({}, {"raw.dnsmasq": "dhcp-script=/bin/true"}, False),
        ({}, {"bridge.external_interfaces": "eth1"}, False),
        ({"networks_uplinks": "eth1, eth2"}, {"bridge.external_interfaces": "eth2,eth1"}, True),
        ({"networks_uplinks": "eth1"}, {"bridge.external_interfaces": "eth1, eth2"}, False),
        ({}, {"ipv4.routes": "0.0.0.0/1"}, False),
        ({"networks_subnets": "br:10.9.0.0/16"}, {"ipv4.routes": "10.9.8.0/24"}, True),
    ],
)
def test_networks(values: dict[str, str], config: dict[str, str], right: bool) -> None:
    with allowed(right):
        restrictions(**values).check_network("br", config)
    restrictions_of("web", {}).check_network("br", config)


@pytest.mark.parametrize(
    ("servers", "host", "port", "right"),
    [
        ("", "images.example", 443, True),
        ("images.example", "images.example", 8443, True),
        ("other.example, Images.example", "images.example", 443, True),
        ("images.example:8443", "images.example", 8443, True),
        ("images.example:8443", "images.example", 443, False),
        ("example", "images.example", 443, False),
        ("images.example", "images.example.net", 443, False),
        ("[2001:db8::1]", "2001:db8::1", 443, True),
        ("[2001:db8::1]:443", "2001:db8::1", 443, True),
        ("192.0.2.1", "192.0.2.10", 443, False),
    ],
)
def test_image_servers(servers: str, host: str, port: int, right: bool) -> None:
    with allowed(right):
        restrictions(images_servers=servers).check_image_server(host, port)
    restrictions_of("web", {"restricted.images.servers": "x"}).check_image_server(host, port)


@pytest.mark.parametrize(
    "servers", ["https://images.example", "images.example/x", "a b", "a,,b", "2001:db8::1"]
)
def test_image_servers_are_hosts(servers: str) -> None:
    with pytest.raises(InvalidConfig, match="must be hosts such as"):
        restrictions(images_servers=servers)
