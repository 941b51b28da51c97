"""What an instance can see of itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from utsuwa.core.layering import Devices
from utsuwa.instances.model import Loaded
from utsuwa.wire.guest import ConfigChange, DeviceChange

VISIBLE = ("cloud-init.", "user.")
"""How the keys begin that an instance can read."""
_REPORTED = "user."
"""How the keys begin whose changes are reported to it."""


def visible(config: Mapping[str, str]) -> list[str]:
    """Return the keys that an instance can read, in order."""
    return sorted(key for key in config if key.startswith(VISIBLE))


def meta_data(name: str, config: Mapping[str, str]) -> str:
    """Return cloud-init's meta-data of an instance with this expanded config."""
    instance_id = config.get("volatile.cloud-init.instance-id") or name
    own = config.get("user.meta-data", "")
    return f"#cloud-config\ninstance-id: {instance_id}\nlocal-hostname: {name}\n{own}"


def devices(instance: Loaded) -> Devices:
    """Return the expanded devices; network interfaces with the addresses that were chosen for them."""
    shown = {}
    for name, device in instance.expanded.devices.items():
        shown[name] = dict(device)
        chosen = instance.data.config.get(f"volatile.{name}.hwaddr", "")
        if device.get("type") == "nic" and not device.get("hwaddr") and chosen:
            shown[name]["hwaddr"] = chosen
    return shown


def config_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[ConfigChange]:
    """The changes of an expanded config that are reported to the instance."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, ""), new.get(key, "")
        if before != after and key.startswith(_REPORTED):
            yield ConfigChange(key=key, old_value=before, value=after)


def device_changes(
    old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> Iterator[DeviceChange]:
    """The changes of expanded devices: first what was removed, then changed, then added."""
    for name in sorted(old.keys() - new.keys()):
        yield DeviceChange(action="removed", name=name, config=dict(old[name]))
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield DeviceChange(action="updated", name=name, config=dict(new[name]))
    for name in sorted(new.keys() - old.keys()):
        yield DeviceChange(action="added", name=name, config=dict(new[name]))
