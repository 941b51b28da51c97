"""The guest API's rules: what an instance sees, which changes it is told of, and how often it may ask."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.api.guest import allowance
from utsuwa.api.guest.allowance import Allowance, Limits, Rate
from utsuwa.core.errors import Unavailable
from utsuwa.instances import identity
from utsuwa.instances.guest import view
from utsuwa.instances.guest.sockets import is_enabled
from utsuwa.instances.model import Loaded
from utsuwa.wire.guest import ConfigChange, DeviceChange

NIC = {"type": "nic", "nictype": "p2p"}
CONFIGS = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "cloud-init.user-data", "limits.cpu"]), st.text(max_size=3)
)
DEVICES = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from([NIC, {"type": "none"}]))


def loaded(config: dict[str, str], devices: dict[str, dict[str, str]] | None = None) -> Loaded:
    expanded = SimpleNamespace(config=config, devices=devices or {})
    return cast(Loaded, SimpleNamespace(expanded=expanded, data=SimpleNamespace(config=config)))


def test_only_keys_for_the_instance_are_visible() -> None:
    config = {"user.b": "", "cloud-init.user-data": "", "limits.cpu": "1", "volatile.uuid": "", "userx": ""}
    assert view.visible(config) == ["cloud-init.user-data", "user.b"]


def test_meta_data_without_an_instance_id_has_the_name() -> None:
    assert view.meta_data("c1", {}) == "#cloud-config\ninstance-id: c1\nlocal-hostname: c1\n"


def test_chosen_addresses_are_shown_with_network_interfaces_alone() -> None:
    devices: dict[str, dict[str, str]] = {"a": NIC, "b": {**NIC, "hwaddr": "own"}, "c": {"type": "disk"}}
    chosen = {f"volatile.{name}.hwaddr": "chosen" for name in devices}
    shown = view.devices(loaded(chosen, devices))
    assert {name: device.get("hwaddr") for name, device in shown.items()} == {
        "a": "chosen",
        "b": "own",
        "c": None,
    }
    assert "hwaddr" not in devices["a"]


@given(CONFIGS, CONFIGS)
def test_reported_changes_of_config_lead_from_the_old_to_the_new_one(
    old: dict[str, str], new: dict[str, str]
) -> None:
    known = {key: value for key, value in old.items() if key.startswith("user.")}
    for change in view.config_changes(old, new):
        assert known.get(change.key, "") == change.old_value != change.value
        known[change.key] = change.value
    assert {key: value for key, value in known.items() if value} == {
        key: value for key, value in new.items() if value and key.startswith("user.")
    }


@given(DEVICES, DEVICES)
def test_reported_changes_of_devices_lead_from_the_old_to_the_new_ones(
    old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]
) -> None:
    known = dict(old)
    for change in view.device_changes(old, new):
        if change.action == "removed":
            assert known.pop(change.name) == change.config
        else:
            assert (change.name in known) == (change.action == "updated")
            known[change.name] = change.config
    assert known == new


def test_changes_are_told_apart() -> None:
    assert list(view.config_changes({"user.a": "1", "user.b": "2"}, {"user.a": "1", "limits.cpu": "2"})) == [
        ConfigChange(key="user.b", old_value="2", value="")
    ]
    assert list(view.device_changes({"a": NIC, "b": NIC}, {"b": {"type": "none"}, "c": NIC})) == [
        DeviceChange(action="removed", name="a", config=NIC),
        DeviceChange(action="updated", name="b", config={"type": "none"}),
        DeviceChange(action="added", name="c", config=NIC),
    ]


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("", True), ("true", True), ("false", False)])
def test_the_guest_api_is_there_unless_it_is_switched_off(value: str | None, expected: bool) -> None:
    assert is_enabled({} if value is None else {"security.devlxd": value}) is expected


@pytest.mark.parametrize(
    ("change", "renewed"),
    [
        ({"cloud-init.user-data": "x"}, True),
        ({"cloud-init.vendor-data": "x"}, True),
        ({"user.network-config": "x"}, True),
        ({"user.meta-data": "x"}, False),
        ({"cloud-init.user-data": ""}, False),
        ({"volatile.a.name": "eth1"}, True),
        ({"volatile.a.name": "a"}, False),
    ],
)
def test_changes_that_make_an_instance_new_for_cloud_init(change: dict[str, str], renewed: bool) -> None:
    devices = {"a": NIC}
    new = identity.renewed(loaded({}, devices), loaded(change, devices))
    assert bool(new) is renewed


@pytest.mark.parametrize(
    ("devices", "renewed"),
    [({}, True), ({"a": {**NIC, "name": "b"}}, True), ({"b": {**NIC, "name": "a"}}, False)],
)
def test_names_of_interfaces_count_for_cloud_init_and_not_those_of_devices(
    devices: dict[str, dict[str, str]], renewed: bool
) -> None:
    assert bool(identity.renewed(loaded({}, {"a": NIC}), loaded({}, devices))) is renewed


def test_a_rate_allows_a_burst_and_then_so_many_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(allowance, "time", SimpleNamespace(monotonic=lambda: now))
    rate = Rate(rate=10, burst=3)
    for _ in range(3):
        assert rate.delay() == 0
        rate.take()
    assert rate.delay() == pytest.approx(0.1)
    now += 0.1
    assert rate.delay() == pytest.approx(0, abs=1e-9)
    now += 1000
    rate.take()
    rate.take()
    assert rate.delay() == 0  # no more than a burst has been saved up


async def test_lasting_requests_are_limited_and_requests_wait_for_each_other() -> None:
    given = Allowance(Limits(lasting=1, at_once=1))
    with given.lasting(), pytest.raises(Unavailable, match="too many"), given.lasting():
        pass
    with given.lasting():
        pass
    order: list[Any] = []

    async def request(name: str) -> None:
        async with given.turn():
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(request("a"), request("b"))
    assert order == ["a", "a", "b", "b"]
