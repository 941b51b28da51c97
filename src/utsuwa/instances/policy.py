"""The one judgement of an instance's configuration: of the final one, with its profiles merged in."""

from __future__ import annotations

from utsuwa import devices as device_types
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.core.scope import Policy
from utsuwa.instances.confinement import lxcconf
from utsuwa.instances.model import Loaded
from utsuwa.security import apparmor, seccomp


def judge(instance: Loaded, policy: Policy) -> Loaded:
    """Refuse an instance that is not valid, or that `policy` does not allow; returns it.

    Whatever makes or changes instances comes here. Raises InvalidConfig, InvalidRequest, Forbidden.
    """
    if len(set(instance.row.profiles)) != len(instance.row.profiles):
        raise InvalidRequest("A profile is named twice: an instance can have each profile once")
    config = instance.expanded_config
    INSTANCE_KEYS.check(instance.row.config)
    device_types.check_devices(instance.row.devices, profile=False)
    INSTANCE_KEYS.check(config)
    lxcconf.check_raw_lxc(config.get("raw.lxc", ""), policy)
    if policy.unprivileged_only and parse_bool(config.get("security.privileged", "")):
        raise Forbidden("This server allows unprivileged instances only: unset security.privileged")
    seccomp.check(config)
    apparmor.check_raw(config.get("raw.apparmor", ""))
    device_types.check_devices(instance.expanded_devices, profile=False)
    instance.root_disk()
    return instance
