"""Profiles under an instance: who wins, and that nothing is changed on the way."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from utsuwa.db.profiles import ProfileRow
from utsuwa.profiles.expand import expand

_NAMES = st.sampled_from(["a", "b", "c"])
_CONFIGS = st.dictionaries(_NAMES, st.text(max_size=3))
_DEVICES = st.dictionaries(_NAMES, st.dictionaries(_NAMES, st.text(max_size=3)))
_PROFILES = st.lists(
    st.builds(lambda config, devices: ProfileRow(1, "default", "p", "", config, devices), _CONFIGS, _DEVICES),
    max_size=4,
)


def profile(config: dict[str, str], devices: dict[str, dict[str, str]]) -> ProfileRow:
    return ProfileRow(1, "default", "p", "", config, devices)


def test_later_profiles_win_and_the_instance_over_all() -> None:
    config, devices = expand(
        [
            profile({"x": "1", "y": "1", "z": "1"}, {"eth0": {"type": "nic", "mtu": "9000"}}),
            profile({"y": "2", "z": "2"}, {"eth0": {"type": "nic", "name": "lan"}, "d": {"type": "disk"}}),
        ],
        {"z": "3"},
        {"d": {"type": "none"}},
    )
    assert config == {"x": "1", "y": "2", "z": "3"}
    assert devices == {"eth0": {"type": "nic", "name": "lan"}, "d": {"type": "none"}}


def test_nothing_gives_nothing() -> None:
    assert expand([], {}, {}) == ({}, {})


@given(_PROFILES, _CONFIGS, _DEVICES)
def test_every_value_comes_from_the_last_layer_that_has_it(
    profiles: list[ProfileRow], config: dict[str, str], devices: dict[str, dict[str, str]]
) -> None:
    merged, placed = expand(profiles, config, devices)
    configs = [p.config for p in profiles] + [config]
    sets = [p.devices for p in profiles] + [devices]
    assert merged.keys() == {key for layer in configs for key in layer}
    assert placed.keys() == {name for layer in sets for name in layer}
    for key, value in merged.items():
        assert value == [layer[key] for layer in configs if key in layer][-1]
    for name, device in placed.items():
        assert device == [layer[name] for layer in sets if name in layer][-1]


@given(_PROFILES, _CONFIGS, _DEVICES)
def test_the_arguments_stay_as_they_are(
    profiles: list[ProfileRow], config: dict[str, str], devices: dict[str, dict[str, str]]
) -> None:
    before = copy.deepcopy((profiles, config, devices))
    merged, placed = expand(profiles, config, devices)
    merged["new"] = "x"
    for device in placed.values():
        device["new"] = "x"
    assert (profiles, config, devices) == before


@given(_PROFILES, _PROFILES, _CONFIGS, _DEVICES)
def test_merging_in_two_steps_is_the_same(
    first: list[ProfileRow],
    second: list[ProfileRow],
    config: dict[str, str],
    devices: dict[str, dict[str, str]],
) -> None:
    below = profile(*expand(first, {}, {}))
    assert expand([below, *second], config, devices) == expand([*first, *second], config, devices)
