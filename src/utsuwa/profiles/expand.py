"""Expansion of an instance's or a snapshot's config and devices by its profiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from utsuwa import devices as device_types
from utsuwa.core.layering import Config, Devices, lay_over
from utsuwa.db.instance_data import InstanceData
from utsuwa.db.profiles import ProfileRow


@dataclass(frozen=True)
class Expanded:
    """The expanded config and devices."""

    config: Config
    devices: Devices

    def root_disk(self) -> tuple[str, Mapping[str, str]]:
        """Return the name and the config of the root disk device. Raises InvalidConfig if there is none."""
        return device_types.root_disk(self.devices)

    @property
    def pool(self) -> str:
        """The storage pool of the root disk. Raises InvalidConfig as `root_disk`."""
        return self.root_disk()[1]["pool"]

    @property
    def root_size(self) -> str:
        """The configured size of the root disk, or an empty string. Raises InvalidConfig as `root_disk`."""
        return self.root_disk()[1].get("size", "")


def expand(profiles: Iterable[ProfileRow], data: InstanceData) -> Expanded:
    """Return the expansion of `data`: later profiles override earlier ones, and its own values override all.

    A device of type `none` masks one of the same name and is kept in the result. Arguments are not modified.
    """
    layers = ((profile.config, profile.devices) for profile in profiles)
    return Expanded(*lay_over([*layers, (data.config, data.devices)]))
