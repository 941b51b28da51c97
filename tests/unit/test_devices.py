"""Devices: what is refused, what is merged, and the lines that they give to liblxc."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.devices import FakeContainer, FakePorts, FakeVolume, FakeVolumes
from tests.support.instances import C1
from utsuwa import devices
from utsuwa.core.errors import HostError, InvalidConfig, InvalidName, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.devices import io_limits, nic
from utsuwa.devices.base import BindMount, DeviceHost, RunConfig
from utsuwa.devices.names import entry_name
from utsuwa.host.cgroups.io_limits import IoLimit
from utsuwa.host.mounts.device_folder import DeviceFolder
from utsuwa.host.network import traffic, veth

FOLDER = {"type": "disk", "source": "instance:docker", "path": "/var/lib/docker"}
ROOT = {"type": "disk", "path": "/", "pool": "default"}
VOLUME = {"type": "disk", "pool": "p", "source": "v1", "path": "/mnt"}
HOST = {"type": "disk", "source": "/srv/data", "path": "/mnt"}
CHAR = {"type": "unix-char", "source": "/dev/null"}
P2P = {"type": "nic", "nictype": "p2p"}
NET = {"type": "nic", "network": "br0"}


def host(
    config: dict[str, str] | None = None,
    all_devices: dict[str, dict[str, str]] | None = None,
    pid: int | None = None,
) -> DeviceHost:
    return DeviceHost(
        instance=C1,
        config=config or {},
        idmap=IdMap(),
        folder=DeviceFolder(Path("/nowhere")),
        init_pid=pid,
        devices=all_devices or {},
        ports=FakePorts(),
        volume=FakeVolume(Path("/nowhere")),
        volumes=FakeVolumes(),
        container=FakeContainer(),
    )


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of interfaces that the host has; pairs that are made or removed change it."""
    names = {"eth0", "taken"}
    monkeypatch.setattr(veth, "exists", names.__contains__)
    monkeypatch.setattr(veth, "create", lambda pair, pid: names.add(pair.host_name))

    async def delete(name: str) -> None:
        names.discard(name)

    async def nothing(name: str) -> None:
        return

    monkeypatch.setattr(veth, "delete", delete)
    monkeypatch.setattr(traffic, "remove_helper", nothing)
    monkeypatch.setattr(traffic, "clear", nothing)
    return names


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None, int | None]]:
    """What interfaces were limited to: name, bits a second to the instance, from it."""
    found: list[tuple[str, int | None, int | None]] = []

    async def limit(name: str, *, to_guest: int | None, from_guest: int | None) -> None:
        found.append((name, to_guest, from_guest))
        if to_guest == 666:
            raise HostError("no")

    monkeypatch.setattr(traffic, "limit", limit)
    return found


def test_valid_devices() -> None:
    for profile in (False, True):
        devices.check_devices(
            {
                "root": ROOT | {"size": "10GiB", "size.state": "1GB", "readonly": "true", "user.why": "x"},
                "eth0": P2P
                | {
                    "name": "eth0",
                    "hwaddr": "00:16:3e:01:02:03",
                    "mtu": "1400",
                    "host_name": "h0",
                    "limits.max": "",
                },
                "eth1": P2P,
                "null": CHAR | {"mode": "666", "uid": "1000", "path": "dev/own", "required": "no"},
                "disk": {"type": "unix-block", "path": "/dev/sdx", "major": "8", "minor": "1"},
                "data": HOST | {"propagation": "rslave", "shift": "yes", "recursive": "1"},
                "relative": HOST | {"path": "srv/x", "required": "false", "raw.mount.options": "noexec"},
                "gone": {"type": "none"},
            },
            profile=profile,
        )


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({}, InvalidConfig, "'type' is required"),
        ({"type": "floppy"}, InvalidConfig, "'type' is 'floppy'"),
        ({"type": "none", "path": "/"}, InvalidConfig, "Unknown configuration key 'path'"),
        ({"type": "proxy"}, NotSupportedYet, "type 'proxy'"),
        ({"type": "usb"}, NotSupportedYet, "type 'usb'"),
        (CHAR | {"source": ""}, InvalidConfig, "'source' or 'path' is required"),
        (CHAR | {"source": "dev/x"}, InvalidConfig, "'source' must be an absolute path"),
        (CHAR | {"path": "/dev/../x"}, InvalidConfig, "'path'"),
        (CHAR | {"path": "/"}, InvalidConfig, "'path'"),
        (CHAR | {"major": "5"}, InvalidConfig, "'major' and 'minor' must be set together"),
        (CHAR | {"minor": "5"}, InvalidConfig, "'major' and 'minor' must be set together"),
        (CHAR | {"major": "4096", "minor": "1"}, InvalidConfig, "'major': must be between"),
        (CHAR | {"major": "1", "minor": "-1"}, InvalidConfig, "'minor': must be between"),
        (CHAR | {"mode": "0980"}, InvalidConfig, "'mode': must be an octal mode"),
        (CHAR | {"mode": "4755"}, InvalidConfig, "'mode': must be an octal mode"),
        (CHAR | {"uid": "x"}, InvalidConfig, "'uid'"),
        (CHAR | {"gid": "4294967295"}, InvalidConfig, "'gid': must be between"),
        (CHAR | {"required": "x"}, InvalidConfig, "'required'"),
        (CHAR | {"source": "/srv/x", "required": "false"}, InvalidConfig, "'source' must be below /dev"),
        (CHAR | {"source": "/dev/../x", "required": "false"}, InvalidConfig, "'source' must be below /dev"),
        (CHAR | {"recursive": "true"}, InvalidConfig, "'recursive'"),
        (ROOT | {"pool": ""}, InvalidConfig, "'pool' is required"),
        ({"type": "disk", "path": "/"}, InvalidConfig, "'pool' is required"),
        (ROOT | {"pool": "a/b"}, InvalidConfig, "pool"),
        (ROOT | {"size": "big"}, InvalidConfig, "'size'"),
        (ROOT | {"sizes": "1GB"}, InvalidConfig, "'sizes'"),
        (ROOT | {"readonly": "perhaps"}, InvalidConfig, "'readonly'"),
        (ROOT | {"limits.read": "fast"}, InvalidConfig, "'limits.read': Invalid size"),
        (ROOT | {"limits.write": "0iops"}, InvalidConfig, "'limits.write': must be greater"),
        (ROOT | {"limits.max": "0"}, InvalidConfig, "'limits.max': must be greater"),
        (HOST | {"limits.max": "-1"}, InvalidConfig, "'limits.max'"),
        ({"type": "disk", "source": "/tmp"}, InvalidConfig, "'path' is required"),
        ({"type": "disk", "path": "/mnt"}, InvalidConfig, "'source' is required"),
        (HOST | {"source": "tmp"}, InvalidConfig, "'source' must be an absolute path"),
        (VOLUME | {"source": ""}, InvalidConfig, "'source' is required: set it to the name of a custom"),
        (VOLUME | {"source": "/srv"}, InvalidConfig, "'source' must be the name of a custom volume"),
        (VOLUME | {"source": "v1/snap0"}, InvalidConfig, "'v1/snap0': snapshots cannot be attached"),
        (VOLUME | {"source": "v~new"}, InvalidConfig, "no tildes"),
        (VOLUME | {"path": ""}, InvalidConfig, "'path' is required"),
        (VOLUME | {"path": "/"}, InvalidConfig, "not the root"),
        (VOLUME | {"pool": "a/b"}, InvalidConfig, "pool"),
        (VOLUME | {"shift": "true"}, InvalidConfig, "set security.shifted=true on the volume"),
        (VOLUME | {"size": "1GB"}, InvalidConfig, "'size'"),
        (VOLUME | {"required": "false", "optional": "true"}, InvalidConfig, "'optional' is the deprecated"),
        (HOST | {"source": "ceph:pool/vol"}, NotSupportedYet, "'ceph'"),
        (HOST | {"propagation": "both"}, InvalidConfig, "'propagation': must be one of private"),
        (HOST | {"shift": "maybe"}, InvalidConfig, "'shift'"),
        (HOST | {"recursive": "maybe"}, InvalidConfig, "'recursive'"),
        (HOST | {"required": "maybe"}, InvalidConfig, "'required'"),
        (
            HOST | {"required": "false", "optional": "true"},
            InvalidConfig,
            "'optional' is the deprecated opposite",
        ),
        (HOST | {"raw.mount.options": "ro\nx"}, InvalidConfig, "'raw.mount.options': contains a line break"),
        (HOST | {"size": "1GB"}, InvalidConfig, "'size'"),
        (HOST | {"path": ""}, InvalidConfig, "'path' is required"),
        (HOST | {"path": "/"}, InvalidConfig, "not the root"),
        (HOST | {"path": "mnt//x"}, InvalidConfig, "'path'"),
        (FOLDER | {"source": "instance:"}, InvalidConfig, "'source' must be 'instance:' and a name"),
        (FOLDER | {"source": "instance:../x"}, InvalidConfig, "'source'"),
        (FOLDER | {"source": "instance:.new"}, InvalidConfig, "'source'"),
        (FOLDER | {"source": "instance:a\nb"}, InvalidConfig, "'source'"),
        (FOLDER | {"path": "/"}, InvalidConfig, "'path'.*not the root"),
        (FOLDER | {"path": "/srv/../etc"}, InvalidConfig, "'path'"),
        (FOLDER | {"path": "/srv\nlxc.hook=x"}, InvalidConfig, "line break"),
        (FOLDER | {"path": ""}, InvalidConfig, "'path' is required"),
        (FOLDER | {"pool": "default"}, InvalidConfig, "'pool'"),
        (FOLDER | {"shift": "true"}, InvalidConfig, "'shift'"),
        ({"type": "disk", "path": "/mnt", "source": "/tmp", "nonsense": "1"}, InvalidConfig, "'nonsense'"),
        ({"type": "nic"}, InvalidConfig, "'nictype' is required"),
        ({"type": "nic", "nictype": "token-ring"}, InvalidConfig, "'token-ring'"),
        ({"type": "nic", "nictype": "macvlan", "parent": "br0"}, NotSupportedYet, "nictype=macvlan"),
        ({"type": "nic", "nictype": "bridged"}, InvalidConfig, "'parent' is required"),
        ({"type": "nic", "nictype": "bridged", "parent": "a" * 16}, InvalidConfig, "'parent'"),
        (NET | {"nictype": "bridged"}, InvalidConfig, "'nictype' cannot be combined with 'network'"),
        (NET | {"parent": "br0"}, InvalidConfig, "'parent' cannot be combined with 'network'"),
        (NET | {"network": "a/b"}, InvalidConfig, "'network'"),
        (NET | {"ipv4.address": "fd42::1"}, InvalidConfig, "'ipv4.address'.*IPv4"),
        (NET | {"ipv6.address": "10.0.0.1"}, InvalidConfig, "'ipv6.address'.*IPv6"),
        (NET | {"ipv4.address": "10.0.0.1\nx"}, InvalidConfig, "line break"),
        (NET | {"limits.egress": "10MB"}, InvalidConfig, "'limits.egress'.*10Mbit"),
        (NET | {"limits.ingress": "0"}, InvalidConfig, "out of range"),
        (NET | {"limits.max": "1Mbit", "limits.egress": "1Mbit"}, InvalidConfig, "'limits.max' is for both"),
        (NET | {"security.mac_filtering": "true"}, NotSupportedYet, "'security.mac_filtering'"),
        (P2P | {"hwaddr": "00:16:3e"}, InvalidConfig, "'hwaddr'"),
        (P2P | {"hwaddr": "01:16:3e:00:00:00"}, InvalidConfig, "multicast"),
        (P2P | {"name": "much-too-long-name"}, InvalidConfig, "'name'"),
        (P2P | {"name": "a/b"}, InvalidConfig, "'name'"),
        (P2P | {"name": "e"}, InvalidConfig, "'name'.*at least 2 characters"),
        (P2P | {"host_name": "h"}, InvalidConfig, "'host_name'.*at least 2 characters"),
        *(
            (P2P | {key: name}, InvalidConfig, f"'{name}'.*it is reserved by the kernel")
            for key in ("name", "host_name")
            for name in ("all", "default")
        ),
        (P2P | {"name": "lo"}, InvalidConfig, "'lo': every instance has its own"),
        (P2P | {"host_name": "a\nb"}, InvalidConfig, "'host_name'"),
        (P2P | {"mtu": "67"}, InvalidConfig, "'mtu'"),
        (P2P | {"mtu": "x"}, InvalidConfig, "'mtu'"),
        (P2P | {"ipv4.routes": "192.0.2.1/24"}, InvalidConfig, "ipv4.routes.*192.0.2.1/24"),
        (P2P | {"ipv6.routes": "10.0.0.0/8"}, InvalidConfig, "not an IPv6 subnet"),
        (P2P | {"limits.priority": "4294967296"}, InvalidConfig, "limits.priority"),
        (P2P | {"queue.tx.length": "3"}, NotSupportedYet, "queue.tx.length"),
        (P2P | {"parent": "br0"}, InvalidConfig, "'parent'"),
    ],
)
def test_invalid_devices(config: dict[str, str], error: type[Exception], message: str) -> None:
    for profile in (False, True):
        with pytest.raises(error, match=message) as caught:
            devices.check_devices({"dev0": config}, profile=profile)
        assert "'dev0'" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "/", "a//b", "a/", "../b", "a/..", "..", "x" * 65, "a/" + "x" * 63, "a\nb"]
)
def test_device_names_are_checked(name: str) -> None:
    with pytest.raises(InvalidName):
        devices.check_devices({name: P2P}, profile=True)


def test_names_of_interfaces_are_unique() -> None:
    for key in ("name", "host_name"):
        with pytest.raises(InvalidConfig, match=f"'b': '{key}' 'same' is taken by device 'a'"):
            devices.check_devices({"a": P2P | {key: "same"}, "b": P2P | {key: "same"}}, profile=False)


def test_the_root_disk_is_found() -> None:
    other = {"type": "disk", "path": "/data", "source": "/srv"}
    assert devices.root_disk({"eth0": P2P, "data": other, "root": ROOT}) == ("root", ROOT)
    for lacking in ({"eth0": P2P}, {"root": ROOT | {"source": "/srv"}}, {}):
        with pytest.raises(InvalidConfig, match="No root device could be found"):
            devices.root_disk(lacking)
    with pytest.raises(InvalidConfig, match="'root' has no storage pool"):
        devices.root_disk({"root": {"type": "disk", "path": "/"}})
    two = {"root": ROOT, "also": ROOT}
    with pytest.raises(InvalidConfig, match="'root' and 'also' are both"):
        devices.root_disk(two)
    with pytest.raises(InvalidConfig, match="'root' and 'also' are both"):
        devices.check_devices(two, profile=False)


async def test_the_root_disk_is_not_live() -> None:
    disk = devices.load("root", ROOT)
    assert not disk.live
    with pytest.raises(InvalidConfig, match="cannot be added while"):
        await disk.attach(host(pid=1))
    with pytest.raises(InvalidConfig, match="cannot be removed while"):
        await disk.detach(host(pid=1))
    assert (await disk.start(host())).read_only_root is False
    readonly = devices.load("root", ROOT | {"readonly": "yes"})
    assert (await readonly.start(host())).read_only_root is True
    assert (await disk.stop(host())).volatile == {}


def test_changes_in_place() -> None:
    disk = devices.load("root", ROOT | {"size": "2GB", "user.a": "b"})
    assert disk.changes_in_place(ROOT)
    assert disk.changes_in_place(ROOT | {"user.a": "c", "size": ""})
    assert not disk.changes_in_place(ROOT | {"pool": "other"})
    assert not devices.load("eth0", P2P).changes_in_place(P2P | {"mtu": "1400"})


def test_keys_that_prevent_a_change_in_place() -> None:
    disk = devices.load("root", ROOT | {"size": "2GB", "readonly": "true", "pool": "other"})
    assert disk.fixed_while_running(ROOT) == ["pool", "readonly"]
    assert disk.fixed_while_running(ROOT | {"readonly": "true", "pool": "other"}) == []
    assert disk.fixed_while_running({"type": "nic"}) == ["path", "pool", "readonly", "type"]


def test_a_device_that_can_be_detached_is_live() -> None:
    live = {"root": False, "eth0": True, "off": True, "data": True, "docker": True, "null": True}
    given = {"root": ROOT, "eth0": P2P, "off": {"type": "none"}, "data": HOST}
    given |= {"docker": FOLDER, "null": CHAR}
    assert {name: devices.load(name, config).live for name, config in given.items()} == live


def test_two_disks_at_one_path() -> None:
    """However the path is written."""
    for path in ("/mnt", "mnt", "/mnt/"):
        with pytest.raises(InvalidConfig, match="'b': 'path' .* is taken by device 'a'"):
            devices.check_devices({"a": HOST, "b": HOST | {"path": path}}, profile=False)


def test_watched_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that are not required and have no numbers."""
    optional = CHAR | {"required": "false"}
    given = {"a": optional, "b": optional | {"source": "", "path": "dev/x"}, "c": CHAR, "disk": HOST}
    given["d"] = optional | {"major": "1", "minor": "3"}
    assert devices.watched(given) == {Path("/dev/null"), Path("/dev/x")}
    monkeypatch.setenv("UTSUWA_DEVMONITOR_DIR", "/srv/dev")
    devices.load("a", optional | {"source": "/srv/dev/a"}).validate()
    with pytest.raises(InvalidConfig, match="must be below /srv/dev"):
        devices.load("a", optional).validate()


def test_entries_of_devices_differ() -> None:
    given = [
        ("unix", "a.b", "/c"),
        ("unix", "a", "/b.c"),
        ("unix", "a-b", "/c"),
        ("unix", "a", "/b-c"),
        ("unix", "a", "/b/c"),
        ("unix", "/a", "/b/c"),
        ("unix", "/a/b", "/c"),
        ("unix", "a-.b", "/c"),
        ("unix", "a", "/" + "x" * 300),
        ("unix", "a", "/" + "x" * 301),
    ]
    found = {entry_name(*parts) for parts in given}
    assert len(found) == len(given)
    assert "unix.a--b.c" in found
    assert max(map(len, found)) < 200


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, None),
        ({"limits.read": "1MB"}, IoLimit(read_bytes=1000000)),
        ({"limits.read": "20iops", "limits.write": "1kB"}, IoLimit(read_requests=20, write_bytes=1000)),
        ({"limits.max": "5 iops", "limits.write": "1kB"}, IoLimit(read_requests=5, write_requests=5)),
    ],
)
def test_limits_of_disks(config: dict[str, str], limit: IoLimit | None) -> None:
    assert io_limits.limit_of(config) == limit


def test_devices_at_parent_paths_come_first() -> None:
    """Interfaces keep the order of their names, which gives them their numbers."""
    given = {
        "a": FOLDER | {"path": "/srv/a/b"},
        "b": FOLDER | {"path": "/srv/a"},
        "c": FOLDER | {"path": "/srv/"},
        "d": FOLDER | {"path": "/srv-1"},
        "eth1": P2P,
        "eth0": P2P,
        "root": ROOT,
    }
    assert [device.name for device in devices.ordered(given)] == ["eth0", "eth1", "root", "c", "b", "a", "d"]


async def test_an_instance_directory_is_mounted_inside(tmp_path: Path) -> None:
    volume = FakeVolume(tmp_path)
    volume.rootfs.mkdir()
    here = replace(host(), volume=volume)
    run = await devices.load("docker", FOLDER).start(here)
    assert run.mounts == [BindMount(tmp_path / "folders" / "docker", "/var/lib/docker")]
    assert (volume.rootfs / "var/lib/docker").is_dir()
    run = await devices.load("docker", FOLDER | {"readonly": "true"}).start(here)
    assert run.mounts[0].read_only


async def test_device_of_type_none_has_no_effect() -> None:
    device = devices.load("x", {"type": "none"})
    device.validate()
    for run in (await device.start(host()), await device.attach(host()), await device.detach(host())):
        assert run == RunConfig()
    assert device.live


def test_a_new_interface_has_an_address_and_a_name() -> None:
    all_devices = {"eth0": P2P | {"name": "eth0"}, "b": P2P, "c": P2P, "disk": ROOT | {"name": "eth2"}}
    run = devices.load("b", P2P).add(host({"volatile.c.name": "eth1"}, all_devices))
    assert re.fullmatch(r"00:16:3e(:[0-9a-f]{2}){3}", run.volatile["hwaddr"])
    assert run.volatile["name"] == "eth2"
    again = devices.load("b", P2P).add(
        host({"volatile.b.hwaddr": "x", "volatile.b.name": "eth2"}, all_devices)
    )
    assert again.volatile == {}
    assert devices.load("b", P2P | {"name": "e", "hwaddr": "00:16:3e:00:00:01"}).add(host()).volatile == {}


def test_a_configured_name_takes_precedence_over_an_assigned_one() -> None:
    """Two interfaces of one name inside kept the instance from starting (lxd#6185, lxd#4446)."""

    def moved(device: str, all_devices: dict[str, dict[str, str]], **names: str) -> str:
        given = {f"volatile.{name}.name": value for name, value in names.items()}
        run = devices.load(device, all_devices[device]).add(host(given, all_devices))
        return run.volatile.get("name", "")

    explicit = {"eth0": P2P, "lan": P2P | {"name": "eth0"}}
    assert moved("eth0", explicit, eth0="eth0") == "eth1"
    assert moved("eth0", explicit, eth0="eth1") == ""
    assert moved("lan", explicit, eth0="eth0") == ""
    # Of two that were given the same one, by whoever wrote these keys, the first keeps it.
    same = {"a": P2P, "b": P2P}
    assert moved("a", same, a="eth5", b="eth5") == ""
    assert moved("b", same, a="eth5", b="eth5") == "eth0"


def test_a_running_interface_keeps_its_name() -> None:
    old = {"eth0": P2P}
    given = {"volatile.eth0.name": "eth0"}
    wanted = {"eth0": P2P, "lan": P2P | {"name": "eth0"}}
    for before in (old, {"eth0": P2P | {"limits.max": "1Mbit"}}):
        with pytest.raises(InvalidConfig, match="'lan': 'name' 'eth0' is taken by device 'eth0' while"):
            devices.check_free_inside(host(given, wanted), before)
    # One that is taken out and put in again gets another name then.
    devices.check_free_inside(host(given, wanted), {"eth0": P2P | {"mtu": "1400"}})
    devices.check_free_inside(host(given, {**wanted, "lan": P2P | {"name": "eth1"}}), old)
    devices.check_free_inside(host(given, {"eth0": {"type": "none"}, "lan": P2P | {"name": "eth0"}}), old)


async def test_start_returns_the_pair_for_liblxc(interfaces: set[str]) -> None:
    config = P2P | {"name": "lan", "hwaddr": "00:16:3e:00:00:01", "host_name": "h0", "mtu": "1400"}
    run = await devices.load("eth0", config).start(host())
    assert run.nics == [veth.Pair("h0", "lan", "00:16:3e:00:00:01", 1400)]
    assert run.volatile == {"host_name": "h0"}


async def test_start_uses_volatile_keys(interfaces: set[str]) -> None:
    kept = {"volatile.eth0.hwaddr": "00:16:3e:00:00:02", "volatile.eth0.name": "eth7"}
    run = await devices.load("eth0", P2P).start(host(kept))
    (pair,) = run.nics
    assert (pair.mac, pair.name, pair.mtu) == ("00:16:3e:00:00:02", "eth7", None)
    assert re.fullmatch("veth[0-9a-f]{8}", run.volatile["host_name"])


async def test_a_host_name_in_use(interfaces: set[str]) -> None:
    with pytest.raises(InvalidConfig, match="already has an interface 'taken'"):
        await devices.load("eth0", P2P | {"host_name": "taken"}).start(host())


async def test_no_free_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(veth, "exists", lambda name: True)
    with pytest.raises(HostError, match="cannot find a free name"):
        await devices.load("eth0", P2P).start(host())


async def test_attach_and_detach_change_the_host(interfaces: set[str]) -> None:
    device = devices.load("eth0", P2P | {"host_name": "h1"})
    with pytest.raises(HostError, match="is not running"):
        await device.attach(host())
    run = await device.attach(host(pid=1))
    assert "h1" in interfaces
    assert run.volatile["host_name"] == "h1"
    gone = await device.detach(host({"volatile.eth0.host_name": "h1"}, pid=1))
    assert "h1" not in interfaces
    assert gone.volatile == {"host_name": ""}
    assert (await device.stop(host())).volatile == {}


async def test_the_interface_of_a_killed_container_is_removed_early(interfaces: set[str]) -> None:
    device = devices.load("eth0", P2P)
    interfaces.add("h1")
    await device.killed(host({"volatile.eth0.host_name": "h1"}, pid=1))
    assert "h1" not in interfaces
    await device.killed(host(pid=1))
    assert (await device.stop(host({"volatile.eth0.host_name": "h1"}))).volatile == {"host_name": ""}


async def test_a_port_of_a_network(interfaces: set[str]) -> None:
    networks = FakePorts()
    here = replace(host(pid=1), ports=networks)
    config = NET | {"hwaddr": "00:16:3e:00:00:01", "ipv4.address": "10.0.0.9", "name": "lan"}
    run = await devices.load("eth0", config).start(here)
    assert [pair.bridge for pair in run.nics] == ["br0"]
    assert networks.asked == [("00:16:3e:00:00:01", "10.0.0.9")]
    with pytest.raises(InvalidConfig, match="does not exist"):
        await devices.load("eth0", NET | {"network": "br9"}).start(here)
    parent = {"type": "nic", "nictype": "bridged", "parent": "host0"}
    run = await devices.load("eth0", parent).start(here)
    assert [pair.bridge for pair in run.nics] == ["host0"]
    assert len(networks.asked) == 1
    # A new static address of a running instance is settled as at a start; that of a stopped one is not.
    moved = devices.load("eth0", config | {"ipv4.address": "10.0.0.10"})
    await moved.update(here, config)
    await moved.update(here, config | {"ipv4.address": "10.0.0.10"})
    await moved.update(replace(here, init_pid=None), config)
    assert networks.asked[1:] == [("00:16:3e:00:00:01", "10.0.0.10")]


@pytest.mark.parametrize(("mtu", "expected"), [({}, 1300), ({"mtu": "1280"}, 1280)])
async def test_an_attached_port_has_the_bridge_and_its_mtu(
    interfaces: set[str], monkeypatch: pytest.MonkeyPatch, mtu: dict[str, str], expected: int
) -> None:
    pairs: list[veth.Pair] = []
    monkeypatch.setattr(veth, "create", lambda pair, pid: pairs.append(pair))
    await devices.load("eth0", NET | mtu).attach(host(pid=1))
    assert [(pair.bridge, pair.mtu) for pair in pairs] == [("br0", expected)]


async def test_limits_of_traffic(
    interfaces: set[str], limits: list[tuple[str, int | None, int | None]]
) -> None:
    started = host({"volatile.eth0.host_name": "h1"}, pid=1)
    await devices.load("eth0", P2P).started(started)
    assert limits == []
    await devices.load("eth0", P2P | {"limits.ingress": "1Mbit"}).started(started)
    await devices.load("eth0", P2P | {"limits.max": "2Mbit"}).started(started)
    device = devices.load("eth0", P2P | {"limits.egress": "3Mbit"})
    await device.update(started, P2P | {"limits.egress": "3Mbit"})
    await device.update(started, P2P)
    await device.update(replace(started, init_pid=None), P2P)
    await devices.load("eth0", P2P).update(started, P2P | {"limits.max": "1Mbit"})
    assert limits == [("h1", 10**6, None), ("h1", 2 * 10**6, 2 * 10**6), ("h1", None, 3 * 10**6)]
    assert device.changes_in_place(P2P)
    assert devices.load("eth0", NET | {"ipv4.address": "10.0.0.9"}).changes_in_place(NET)
    assert not devices.load("eth0", NET).changes_in_place(NET | {"network": "br1"})


async def test_an_attached_interface_is_removed_if_it_cannot_be_limited(
    interfaces: set[str], limits: list[tuple[str, int | None, int | None]]
) -> None:
    before = set(interfaces)
    with pytest.raises(HostError):
        await devices.load("eth0", P2P | {"limits.ingress": "666"}).attach(host(pid=1))
    assert interfaces == before


def test_random_addresses_differ() -> None:
    assert len({nic.random_mac("00:16:3e:xx:xx:xx") for _ in range(50)}) == 50
    found = {nic.random_mac("xx:AB:0x:00:00:00") for _ in range(50)}
    assert all(re.fullmatch("[0-9a-f][02468ace]:ab:0[0-9a-f]:00:00:00", mac) for mac in found), found


async def test_names_and_addresses_as_the_server_chooses(interfaces: set[str]) -> None:
    naming = devices.NicNaming("02:00:00:00:0x:xx", by_mac=True)
    device = devices.load("eth0", P2P)
    reserved = await device.reserve(replace(host(pid=1), naming=naming))
    assert re.fullmatch(r"02(:00){3}:0[0-9a-f]:[0-9a-f]{2}", reserved["hwaddr"])
    assert reserved["host_name"] == "lxd" + reserved["hwaddr"].replace(":", "")[2:]
    run = await device.attach(replace(host(pid=1), naming=naming, reserved={"eth0": reserved}))
    assert {**run.volatile, "name": ""} == {**reserved, "name": ""}
    with pytest.raises(InvalidConfig, match="already has an interface 'lxd"):
        await device.attach(replace(host(pid=1), naming=naming, reserved={"eth0": reserved}))
    own = P2P | {"hwaddr": "00:16:3E:00:0A:01", "name": "e"}
    started = await devices.load("eth0", own).start(replace(host(), naming=naming))
    assert started.volatile == {"host_name": "lxd163e000a01"}
    named = await devices.load("eth0", own | {"host_name": "h7"}).start(replace(host(), naming=naming))
    assert named.volatile == {"host_name": "h7"}


def test_devices_that_were_validated_before_are_compared_with_the_others_only() -> None:
    valid = {"a": HOST | {"path": "/a"}}
    with pytest.raises(InvalidConfig, match="'b'.*'source'"):
        devices.check_devices({**valid, "b": HOST | {"path": "/b", "source": ""}}, profile=False, valid=valid)
    with pytest.raises(InvalidConfig, match="is taken by device"):
        devices.check_devices({**valid, "b": HOST | {"path": "/a"}}, profile=False, valid=valid)
    with pytest.raises(InvalidConfig, match="'a'.*'source'"):
        devices.check_devices({"a": valid["a"] | {"source": ""}}, profile=False, valid=valid)
