"""Profiles under an instance: who wins, and that nothing is changed on the way."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from utsuwa.db.instance_data import InstanceData
from utsuwa.db.profiles import ProfileRow
from utsuwa.profiles.expand import Expanded, expand

_NAMES = st.sampled_from(["a", "b", "c"])
_CONFIGS = st.dictionaries(_NAMES, st.text(max_size=3))
_DEVICES = st.dictionaries(_NAMES, st.dictionaries(_NAMES, st.text(max_size=3)))
_PROFILES = st.lists(
    st.builds(lambda config, devices: ProfileRow(1, "default", "p", "", config, devices), _CONFIGS, _DEVICES),
    max_size=4,
)


def profile(config: dict[str, str], devices: dict[str, dict[str, str]]) -> ProfileRow:
    return ProfileRow(1, "default", "p", "", config, devices)


def data(config: dict[str, str], devices: dict[str, dict[str, str]]) -> InstanceData:
    return InstanceData("x86_64", config=config, devices=devices)


def test_later_profiles_and_the_instance_override() -> None:
    found = expand(
        [
            profile({"x": "1", "y": "1", "z": "1"}, {"eth0": {"type": "nic", "mtu": "9000"}}),
            profile({"y": "2", "z": "2"}, {"eth0": {"type": "nic", "name": "lan"}, "d": {"type": "disk"}}),
        ],
        data({"z": "3"}, {"d": {"type": "none"}}),
    )
    assert found.config == {"x": "1", "y": "2", "z": "3"}
    assert found.devices == {"eth0": {"type": "nic", "name": "lan"}, "d": {"type": "none"}}


def test_expansion_of_empty_config() -> None:
    assert expand([], data({}, {})) == Expanded({}, {})


@given(_PROFILES, _CONFIGS, _DEVICES)
def test_every_value_comes_from_the_last_layer_that_has_it(
    profiles: list[ProfileRow], config: dict[str, str], devices: dict[str, dict[str, str]]
) -> None:
    found = expand(profiles, data(config, devices))
    configs = [p.config for p in profiles] + [config]
    sets = [p.devices for p in profiles] + [devices]
    assert found.config.keys() == {key for layer in configs for key in layer}
    assert found.devices.keys() == {name for layer in sets for name in layer}
    for key, value in found.config.items():
        assert value == [layer[key] for layer in configs if key in layer][-1]
    for name, device in found.devices.items():
        assert device == [layer[name] for layer in sets if name in layer][-1]


@given(_PROFILES, _CONFIGS, _DEVICES)
def test_the_arguments_are_not_modified(
    profiles: list[ProfileRow], config: dict[str, str], devices: dict[str, dict[str, str]]
) -> None:
    before = copy.deepcopy((profiles, config, devices))
    found = expand(profiles, data(config, devices))
    found.config["new"] = "x"
    for device in found.devices.values():
        device["new"] = "x"
    assert (profiles, config, devices) == before


@given(_PROFILES, _PROFILES, _CONFIGS, _DEVICES)
def test_expansion_in_two_steps_is_equivalent(
    first: list[ProfileRow],
    second: list[ProfileRow],
    config: dict[str, str],
    devices: dict[str, dict[str, str]],
) -> None:
    below = expand(first, data({}, {}))
    own = data(config, devices)
    merged = expand([profile(below.config, below.devices), *second], own)
    assert merged == expand([*first, *second], own)
