"""The check of every final instance configuration, expanded by its profiles."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa import devices as device_types
from utsuwa.core.config_keys import parse_bool
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.core.scope import Policy
from utsuwa.db.instance_data import InstanceData
from utsuwa.instances.confinement import bpf_tokens, credentials, nvidia
from utsuwa.instances.confinement.raw_lxc import check_raw_lxc
from utsuwa.profiles.expand import Expanded
from utsuwa.projects.restrictions import Restrictions
from utsuwa.security import apparmor, interception, seccomp


def judge(data: InstanceData, expanded: Expanded, restrictions: Restrictions, policy: Policy) -> None:
    """Refuse a configuration that is not valid, or that `policy` does not allow.

    Everything that creates or changes instances calls this, with `data` expanded by its profiles. Raises
    InvalidConfig, InvalidRequest, Forbidden.
    """
    if len(set(data.profiles)) != len(data.profiles):
        raise InvalidRequest("A profile is listed twice: an instance can have each profile only once")
    config = expanded.config
    INSTANCE_KEYS.check(data.config)
    device_types.check_devices(data.devices, profile=False)
    INSTANCE_KEYS.check({key: value for key, value in config.items() if data.config.get(key) != value})
    check_raw_lxc(config.get("raw.lxc", ""), policy)
    if policy.unprivileged_only:
        _check_unprivileged(config)
    restrictions.check(config, expanded.devices, profile=False)
    credentials.check(config)
    nvidia.check(config)
    bpf_tokens.check(config)
    seccomp.check(config)
    interception.check(config)
    apparmor.check_raw(config.get("raw.apparmor", ""))
    device_types.check_devices(expanded.devices, profile=False, valid=data.devices)
    expanded.root_disk()


def _check_unprivileged(config: Mapping[str, str]) -> None:
    """Refuse what gives root of an instance rights of the host's root. Raises Forbidden.

    Of `raw.idmap`, that may be any id: the host's root is among them.
    """
    only = "This server allows unprivileged instances only: unset"
    if parse_bool(config.get("security.privileged", "")):
        raise Forbidden(f"{only} security.privileged")
    if config.get("raw.idmap"):
        raise Forbidden(f"{only} raw.idmap")
    if bpf_tokens.options(config):
        raise Forbidden(f"{only} security.bpffs.delegate_*")
