"""The parts of the instances package that are decided without a host."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.devices import FakeContainer, FakePorts, FakeVolume, FakeVolumes
from tests.support.instances import C1, running_container
from utsuwa import devices
from utsuwa.core.config_keys import KeyTable
from utsuwa.core.errors import InvalidConfig, InvalidName, InvalidRequest, NotSupportedYet
from utsuwa.core.idmap import IdMap
from utsuwa.core.names import check_instance_name
from utsuwa.core.rollback import Rollback
from utsuwa.devices import Device, DeviceHost, RunConfig
from utsuwa.host.mounts.device_folder import DeviceFolder
from utsuwa.host.network.veth import Pair
from utsuwa.instances.lifecycle import create, device_steps, device_updates, end, signals, update
from utsuwa.instances.model import RuntimePaths, RuntimeTable, Status
from utsuwa.wire.instances import InstanceSource, InstancesPost

Devices = dict[str, dict[str, str]]


class Recorder(Device):
    """A device that notes what is asked of it; `fail` names the step that does not work."""

    keys = KeyTable("recorder", ())
    live = True
    live_keys = frozenset({"speed"})
    log: list[str] = []
    fail = ""

    def _note(self, step: str) -> RunConfig:
        if self.fail == f"{step} {self.name}":
            raise InvalidConfig(f"{step} {self.name} failed")
        self.log.append(f"{step} {self.name}")
        return RunConfig(nics=[Pair("h", self.name, "")], volatile={"seen": step})

    def validate(self) -> None:
        return None

    async def start(self, host: DeviceHost) -> RunConfig:
        return self._note("start")

    async def attach(self, host: DeviceHost) -> RunConfig:
        return self._note("attach")

    async def detach(self, host: DeviceHost) -> RunConfig:
        return self._note("detach")

    async def update(self, host: DeviceHost, old: Mapping[str, str]) -> RunConfig:
        return self._note("update")

    async def stop(self, host: DeviceHost) -> RunConfig:
        return self._note("stop")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(
        devices, "load", lambda name, config, instance=True: Recorder(name, config, instance=instance)
    )
    Recorder.log, Recorder.fail = [], ""
    yield Recorder.log
    Recorder.fail = ""


def host(of: Devices) -> DeviceHost:
    nowhere = Path("/nowhere")
    ports, volume, container = FakePorts(), FakeVolume(nowhere), FakeContainer()
    own = (IdMap(), DeviceFolder(nowhere), 1, of)
    return DeviceHost(C1, {}, *own, ports=ports, volume=volume, volumes=FakeVolumes(), container=container)


def with_speed(speed: str, **more: str) -> dict[str, str]:
    return {"type": "recorder", "speed": speed, **more}


async def test_devices_start_in_order_and_number_their_interfaces(log: list[str]) -> None:
    async with Rollback() as undo:
        steps = await device_steps.start_all(host({"b": with_speed("1"), "a": with_speed("1")}), undo)
        undo.keep()
    assert log == ["start a", "start b"]
    assert [nic.name for nic in steps.nics] == ["a", "b"]
    assert steps.volatile == {"volatile.a.seen": "start", "volatile.b.seen": "start"}


async def test_started_devices_are_stopped_if_a_later_one_fails(log: list[str]) -> None:
    Recorder.fail = "start b"
    with pytest.raises(InvalidConfig):
        async with Rollback() as undo:
            await device_steps.start_all(host({"a": with_speed("1"), "b": with_speed("1")}), undo)
    assert log == ["start a", "stop a"]


async def test_a_device_that_fails_to_stop_does_not_affect_others(log: list[str]) -> None:
    Recorder.fail = "stop b"
    volatile = await device_steps.stop_all(host({name: with_speed("1") for name in "abc"}))
    assert log == ["stop c", "stop a"]
    assert volatile == {"volatile.c.seen": "stop", "volatile.a.seen": "stop"}


async def change(old: Devices, new: Devices) -> None:
    async with Rollback() as undo:
        changes = await device_updates.plan_change(host(new), old, new, running=True)
        await device_updates.change_running(host(new), old, new, changes, undo, old_config={})
        undo.keep()


async def test_live_changes_detach_update_and_attach(log: list[str]) -> None:
    old = {
        "gone": with_speed("1"),
        "kept": with_speed("1"),
        "moved": with_speed("1"),
        "tuned": with_speed("1"),
    }
    new = {
        "kept": with_speed("1"),
        "moved": with_speed("1", place="x"),
        "new": with_speed("1"),
        "tuned": with_speed("2"),
    }
    await change(old, new)
    assert log == ["detach moved", "detach gone", "attach moved", "attach new", "update tuned"]


@pytest.mark.parametrize("failing", ["attach new", "update tuned"])
async def test_a_failed_live_change_is_undone_completely(log: list[str], failing: str) -> None:
    Recorder.fail = failing
    old = {"gone": with_speed("1"), "tuned": with_speed("1")}
    new = {"new": with_speed("1"), "tuned": with_speed("2")}
    changes = await device_updates.plan_change(host(new), old, new, running=True)
    with pytest.raises(InvalidConfig):
        async with Rollback() as undo:
            await device_updates.change_running(host(new), old, new, changes, undo, old_config={})
    assert log[0] == "detach gone"
    assert log[-1] == "attach gone"
    assert log.count("attach new") == log.count("detach new")


def test_clients_cannot_change_internal_volatile_keys() -> None:
    old = {
        "volatile.uuid": "u",
        "volatile.last_state.power": "RUNNING",
        "volatile.eth0.hwaddr": "a",
        "volatile.eth0.host_name": "veth1",
        "user.x": "1",
    }
    new = {"volatile.uuid": "forged", "volatile.idmap.next": "[]", "volatile.eth0.hwaddr": "b", "user.y": ""}
    new |= {"volatile.eth0.host_name": "veth-of-another", "volatile.eth1.host_name": "eth0"}
    assert update.with_own_volatile(old, new) == {
        "volatile.uuid": "u",
        "volatile.last_state.power": "RUNNING",
        "volatile.eth0.hwaddr": "b",
        "volatile.eth0.host_name": "veth1",
    }


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ({}, {"volatile.uuid": "u", "volatile.eth0.hwaddr": "a", "volatile.apply_template": "create"}),
        (
            {"user.y": "2"},
            {
                "volatile.uuid": "u",
                "volatile.eth0.hwaddr": "a",
                "volatile.apply_template": "create",
                "user.y": "2",
            },
        ),
        ({"volatile.uuid": "u"}, {"volatile.uuid": "u"}),
        ({"volatile.eth0.hwaddr": "b"}, {"volatile.uuid": "u", "volatile.eth0.hwaddr": "b"}),
    ],
    ids=str,
)
def test_a_config_without_volatile_keys_keeps_them(sent: dict[str, str], stored: dict[str, str]) -> None:
    """`"config": null` in a PUT is no wish for another MAC address; `lxc config unset` sends all others."""
    old = {
        "volatile.uuid": "u",
        "volatile.eth0.hwaddr": "a",
        "volatile.apply_template": "create",
        "user.x": "1",
    }
    assert update.with_own_volatile(old, update.with_volatile(old, sent)) == stored


def test_volatile_keys_of_another_instance_are_ignored() -> None:
    """`lxc copy --refresh` sends those of the source; snapshots that were copied have them as well."""
    old = {"volatile.uuid": "u", "volatile.eth0.hwaddr": "a", "user.x": "1"}
    sent = {"volatile.uuid": "other", "volatile.eth0.hwaddr": "b", "volatile.eth1.hwaddr": "c", "user.x": "2"}
    assert update.with_volatile(old, sent) == {**old, "user.x": "2"}
    assert update.with_volatile(old, {**sent, "volatile.uuid": "u"})["volatile.eth0.hwaddr"] == "b"


def test_random_names_are_valid() -> None:
    for _ in range(50):
        check_instance_name(create.random_name())


@pytest.mark.parametrize(
    "name", ["", "1abc", "a_b", "a.b", "-a", "a-", "ä", "a" * 64, "a/b", "a b", "..", "a\n"]
)
def test_invalid_instance_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_instance_name(name)


@pytest.mark.parametrize("name", ["a", "A1", "web-01", "a" * 63])
def test_valid_instance_names(name: str) -> None:
    assert check_instance_name(name) == name


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (InstancesPost(type="virtual-machine"), InvalidRequest),
        (InstancesPost(stateful=True), InvalidRequest),
        (InstancesPost(), InvalidRequest),
        (InstancesPost(source=InstanceSource(type="backup")), NotSupportedYet),
        (InstancesPost(source=InstanceSource(type="wish")), InvalidRequest),
    ],
)
def test_unsupported_requests_are_rejected_immediately(
    request_: InstancesPost, error: type[Exception]
) -> None:
    with pytest.raises(error):
        create.reject_unsupported(request_)


def test_internal_volatile_keys_of_requests_are_ignored() -> None:
    own = {"volatile.idmap.current": "[]", "volatile.last_state.power": "RUNNING", "volatile.uuid": "x"}
    request = InstancesPost(config={"user.a": "1", "volatile.eth0.name": "eth0", **own})
    config = create._new_row(C1, request, None).data.config
    assert {"user.a": "1", "volatile.eth0.name": "eth0"}.items() <= config.items()
    assert not any(config.get(key) == value for key, value in own.items())


async def test_the_runtime_table_removes_only_the_given_run() -> None:
    table = RuntimeTable()
    first, second = running_container(), running_container()
    table.add(first)
    table.add(second)
    table.remove(first)
    assert table.get(C1) is second
    second.frozen = True
    assert table.status(C1) is Status.FROZEN
    table.remove(second)
    assert table.status(C1) is Status.STOPPED
    assert not second.ended.is_set()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"reboot\n", "reboot"), (b"stop\n", "stop"), (b"", ""), (b"\xff" * 500, "\ufffd" * 64)],
)
def test_the_recorded_target(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "lxc.target").write_bytes(content)
    assert end.read_target(RuntimePaths(tmp_path)) == expected


def test_no_recorded_target(tmp_path: Path) -> None:
    assert end.read_target(RuntimePaths(tmp_path)) == ""


LISTEN = """
import signal, sys
{}
print("set", flush=True)
sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("setting", "heard"),
    [
        ("", None),
        ("signal.signal(signal.SIGPWR, print)", signal.SIGPWR),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPWR])", signal.SIGPWR),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 3])", signal.SIGRTMIN + 3),
    ],
)
def test_the_stop_signal_that_an_init_handles(setting: str, heard: int | None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN.format(setting)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"set\n"
        assert signals.handled_signal(process.pid) == heard
        wanted = signals.handled_signal(process.pid, signal.SIGPWR)
        assert wanted == (heard if heard == signal.SIGPWR else None)
        assert signals.handled_signal(process.pid, signal.SIGKILL) == signal.SIGKILL


async def test_locks_of_different_instances_are_independent() -> None:
    from utsuwa.core.locks import NamedLocks

    locks = NamedLocks()
    async with locks.hold("instance", "default", "a"):
        async with asyncio.timeout(30), locks.hold("instance", "default", "b"):
            assert locks.held("instance", "default", "b")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), locks.hold("instance", "default", "a"):
                pass
    assert not locks.held("instance", "default", "a")
