"""Laying config and devices over each other: profiles in their order, the instance's own on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Config = dict[str, str]
Devices = dict[str, dict[str, str]]
Layer = tuple[Mapping[str, str], Mapping[str, Mapping[str, str]]]
"""Config and devices of one profile or instance."""


def lay_over(layers: Iterable[Layer]) -> tuple[Config, Devices]:
    """What holds in the end, later layers winning. Config is merged key by key, a device replaces one of
    the same name as a whole. The layers are left as they are, and share nothing with the result."""
    config: Config = {}
    devices: Devices = {}
    for layer_config, layer_devices in layers:
        config.update(layer_config)
        devices.update({name: dict(device) for name, device in layer_devices.items()})
    return config, devices
