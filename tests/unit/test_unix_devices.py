"""Devices of types unix-char and unix-block, with what they do to a running container."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.devices import FakeContainer, FakePorts, FakeVolume, FakeVolumes
from utsuwa import devices
from utsuwa.core.errors import InvalidConfig
from utsuwa.core.idmap import IdMap
from utsuwa.core.refs import InstanceRef
from utsuwa.devices.base import DeviceHost
from utsuwa.host.mounts.device_folder import DeviceFolder, DeviceNumber

pytestmark = pytest.mark.root

ZERO, FULL = DeviceNumber("char", 1, 5), DeviceNumber("char", 1, 7)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a device that does not exist yet, which is awaited."""
    monkeypatch.setenv("UTSUWA_DEVMONITOR_DIR", str(tmp_path / "dev"))
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev/node"


@pytest.fixture
def container() -> FakeContainer:
    return FakeContainer()


@pytest.fixture
def host(tmp_path: Path, container: FakeContainer) -> DeviceHost:
    folder = DeviceFolder(tmp_path / "devices")
    folder.make(IdMap())
    volume = FakeVolume(tmp_path)
    own = (IdMap(), folder, 1)
    ref = InstanceRef("default", "c1")
    return DeviceHost(
        ref, {}, *own, ports=FakePorts(), volume=volume, volumes=FakeVolumes(), container=container
    )


def entries(host: DeviceHost) -> set[str]:
    return {path.name for path in host.folder.path.iterdir()}


def make(path: Path, number: DeviceNumber) -> None:
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(number.major, number.minor))


async def test_it_follows_its_source(host: DeviceHost, container: FakeContainer, source: Path) -> None:
    config = {"type": "unix-char", "source": str(source), "path": "/dev/x", "required": "false"}
    device = devices.load("d", config)
    await device.attach(host)
    await device.follow(host)
    assert (container.paths, container.devices, entries(host)) == ([], set(), set())
    for number in (ZERO, FULL):
        make(source, number)
        for _ in range(2):
            await device.follow(host)
            assert (container.paths, container.devices) == (["/dev/x"], {number})
            assert host.folder.number("unix.d.dev-x") == number
    source.unlink()
    await device.follow(host)
    assert (container.paths, container.devices, entries(host)) == ([], set(), set())


async def test_mount_of_the_container_is_not_removed(
    host: DeviceHost, container: FakeContainer, source: Path
) -> None:
    """A mount that the container has made by itself at the same path stays."""
    config = {"type": "unix-char", "source": str(source), "path": "/dev/x", "required": "false"}
    device = devices.load("d", config)
    container.paths = ["/dev/x"]
    await device.follow(host)
    await device.detach(host)
    assert container.paths == ["/dev/x"]
    make(source, ZERO)
    container.refused = {"/dev/x"}
    with pytest.raises(InvalidConfig, match="'d': 'path' /dev/x cannot be mounted: Not a directory"):
        await device.attach(host)
    assert (container.paths, container.devices, entries(host)) == (["/dev/x"], set(), set())


async def test_a_half_removed_device_is_removed(
    host: DeviceHost, container: FakeContainer, source: Path
) -> None:
    """As the daemon's death may leave it: its node without its mount."""
    config = {"type": "unix-char", "source": str(source), "path": "/dev/x", "required": "false"}
    device = devices.load("d", config)
    make(source, ZERO)
    await device.attach(host)
    container.paths.clear()
    assert not await device.attached(host)
    source.unlink()
    await device.follow(host)
    assert (container.devices, entries(host)) == (set(), set())


async def test_a_device_that_two_have(host: DeviceHost, container: FakeContainer, source: Path) -> None:
    """It may be used as long as one of them is there."""
    make(source, ZERO)
    config = {"type": "unix-char", "source": str(source)}
    both = {"a": config | {"path": "/dev/a"}, "b": config | {"path": "/dev/b"}}
    host = replace(host, devices=both)
    first, second = (devices.load(name, of) for name, of in both.items())
    await first.attach(host)
    await second.attach(host)
    await first.detach(host)
    assert (container.paths, container.devices) == (["/dev/b"], {ZERO})
    await second.detach(host)
    assert (container.paths, container.devices) == ([], set())
