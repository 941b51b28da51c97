"""Expansion of an instance's config by its profiles, as a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from utsuwa.core.layering import Config, Devices, lay_over
from utsuwa.db.profiles import ProfileRow


def expand(
    profiles: Iterable[ProfileRow],
    config: Mapping[str, str],
    devices: Mapping[str, Mapping[str, str]],
) -> tuple[Config, Devices]:
    """Return the expanded config and devices of an instance: later profiles override earlier ones, and the
    instance's own values override all.

    A device of type `none` masks one of the same name and is kept in the result. Arguments are not modified.
    """
    return lay_over([*((profile.config, profile.devices) for profile in profiles), (config, devices)])
