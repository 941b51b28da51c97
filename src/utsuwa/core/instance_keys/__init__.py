"""The config keys of instances and profiles.

Names are LXD's; keys that Incus added later have Incus' names. Groups are those of
`GET /1.0/metadata/configuration`. Keys of virtual machines are accepted in profiles, so that a profile
that is also used on other servers can be stored, and rejected on instances, which are containers.
"""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core.config_keys import ConfigKey, KeyTable
from utsuwa.core.instance_keys.limits import KERNEL, LIMITS
from utsuwa.core.instance_keys.options import (
    BOOT,
    CLOUD_INIT,
    MIGRATION,
    MISCELLANEOUS,
    NVIDIA,
    OCI,
    RAW,
    SNAPSHOTS,
)
from utsuwa.core.instance_keys.security import SECURITY
from utsuwa.core.instance_keys.volatile import VOLATILE

INSTANCE_KEY_GROUPS: Mapping[str, tuple[ConfigKey, ...]] = {
    "boot": BOOT,
    "cloud-init": CLOUD_INIT,
    "kernel-limits": KERNEL,
    "migration": MIGRATION,
    "miscellaneous": MISCELLANEOUS,
    "nvidia": NVIDIA,
    "oci": OCI,
    "raw": RAW,
    "resource-limits": LIMITS,
    "security": SECURITY,
    "snapshots": SNAPSHOTS,
    "volatile": VOLATILE,
}

_FREE = ("user.", "image.")

INSTANCE_KEYS = KeyTable(
    "instances",
    tuple(key for group in INSTANCE_KEY_GROUPS.values() for key in group),
    _FREE,
    refused_scope="virtual-machine",
)
"""For an instance's own and expanded config: with volatile keys, without those of virtual machines."""

PROFILE_KEYS = KeyTable(
    "profiles",
    tuple(key for key in INSTANCE_KEYS.keys if not key.name.startswith("volatile.")),
    _FREE,
)
