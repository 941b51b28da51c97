"""Merging profiles under an instance: pure, so that every verb gets the same result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from utsuwa.core.layering import Config, Devices, lay_over
from utsuwa.db.profiles import ProfileRow


def expand(
    profiles: Iterable[ProfileRow],
    config: Mapping[str, str],
    devices: Mapping[str, Mapping[str, str]],
) -> tuple[Config, Devices]:
    """The config and devices that hold for an instance with these profiles, the last one winning over
    those before it, and the instance's own values over all.

    A device of the type `none` hides one of the same name and stays, so that what is hidden can be
    seen. The arguments are left as they are.
    """
    return lay_over([*((profile.config, profile.devices) for profile in profiles), (config, devices)])
