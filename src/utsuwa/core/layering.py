"""Expansion of config and devices: profiles in order, then the instance's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Config = dict[str, str]
Devices = dict[str, dict[str, str]]
Layer = tuple[Mapping[str, str], Mapping[str, Mapping[str, str]]]
"""Config and devices of one profile or instance."""


def lay_over(layers: Iterable[Layer]) -> tuple[Config, Devices]:
    """Return the expanded config and devices; later layers take precedence. Config is merged by key, a device
    replaces the one of the same name completely. The layers are not modified or shared with the result."""
    config: Config = {}
    devices: Devices = {}
    for layer_config, layer_devices in layers:
        config.update(layer_config)
        devices.update({name: dict(device) for name, device in layer_devices.items()})
    return config, devices
