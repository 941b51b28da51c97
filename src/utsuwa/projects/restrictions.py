"""Restrictions of a project: what the configuration of its instances and profiles must not contain.

They are in force where the project's `restricted` is true; then each absent key counts as its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from utsuwa.core.config_keys import VOLATILE, parse_bool
from utsuwa.core.errors import Forbidden
from utsuwa.core.key_checks import parse_id_ranges
from utsuwa.core.network_values import is_within
from utsuwa.core.project_keys import PROJECT_KEYS
from utsuwa.db import networks as network_rows
from utsuwa.db import profiles as profile_rows
from utsuwa.db import projects as rows
from utsuwa.db.transaction import Transaction
from utsuwa.projects.expanded import expanded
from utsuwa.projects.limits import limits_of
from utsuwa.security.idmap import parse_raw

Config = Mapping[str, str]
Devices = Mapping[str, Mapping[str, str]]

_LOW_LEVEL = frozenset(
    {
        "boot.host_shutdown_timeout",
        "linux.kernel_modules",
        "raw.apparmor",
        "raw.lxc",
        "raw.seccomp",
        "security.devlxd.images",
        "security.guestapi.images",
        "security.idmap.base",
        "security.idmap.size",
    }
)
_LOW_LEVEL_PREFIXES = ("linux.sysctl.", "nvidia.", "security.bpffs.", "security.syscalls.")
_INTERCEPT = "security.syscalls.intercept."
_MOUNTS = (f"{_INTERCEPT}mount.allowed", f"{_INTERCEPT}mount.shift")
"""Interception by which the host's kernel mounts file systems of the instance."""
_FREE_VOLATILE = frozenset(
    {
        "volatile.apply_template",
        "volatile.base_image",
        "volatile.cloud-init.instance-id",
        "volatile.last_state.idmap",
        "volatile.last_state.power",
    }
)
"""Volatile keys without influence on the host, which clients send back when they copy a configuration."""
_RESTRICTED_TYPES = frozenset(
    {"gpu", "infiniband", "pci", "proxy", "unix-block", "unix-char", "unix-hotplug", "usb"}
)


@dataclass(frozen=True)
class Restrictions:
    """The restrictions of one project; `config` contains its `restricted.*` keys, None if not restricted."""

    project: str
    config: Config | None = field(default=None)
    mac_pattern: str = ""
    """The project's pattern of new MAC addresses; empty for that of the server."""
    limited: bool = field(default=False, compare=False)
    """Whether the project has limits, which depend on its other objects as well (`projects.limits`).

    Whoever stores something checks these then, and says which one is exceeded.
    """

    def value(self, name: str) -> str:
        """Return the value of `restricted.<name>`, or its default."""
        key = f"restricted.{name}"
        if self.config is None:
            return ""
        if value := self.config.get(key, ""):
            return value
        known = PROJECT_KEYS.find(key)
        return known.default if known is not None else ""

    @property
    def disk_paths(self) -> list[str]:
        """The paths on the host at or below which the sources of disks must be; empty for no limitation."""
        return self._list("devices.disk.paths")

    def check(self, config: Config, devices: Devices, *, profile: bool) -> None:
        """Raise Forbidden unless an instance, or a profile by itself, may have this config and devices.

        Those of an instance are expanded: what they do not contain has its default.
        """
        if self.config is None:
            return
        for key, value in config.items():
            self._check_key(key, value)
        self._check_privilege(config, profile=profile)
        for name, device in devices.items():
            self._check_device(name, device)

    def check_volatile(self, old: Config, new: Config) -> None:
        """Raise Forbidden if a request changes volatile keys, which an instance's owner must not choose."""
        for key, value in new.items():
            if self._keeps(key) and value != old.get(key, ""):
                raise self._forbidden(f"changing {key!r}", "containers.lowlevel")

    def without_volatile(self, config: Config) -> dict[str, str]:
        """Return a config without the volatile keys that an instance's owner must not choose."""
        return {key: value for key, value in config.items() if not self._keeps(key)}

    def _keeps(self, key: str) -> bool:
        if self.config is None or self.value("containers.lowlevel") == "allow":
            return False
        return key.startswith(VOLATILE) and key not in _FREE_VOLATILE

    def check_snapshot(self) -> None:
        """Raise Forbidden if the project does not allow creating snapshots, by hand or by schedule."""
        if self.value("snapshots") == "block":
            raise self._forbidden("snapshots", "snapshots")

    def check_pool(self, pool: str) -> None:
        """Raise Forbidden if the project cannot have volumes on a storage pool."""
        if self.config is not None and not self._is_listed("storage-pools.access", pool):
            raise self._forbidden(f"the storage pool {pool!r}", "storage-pools.access")

    def check_image_server(self, host: str, port: int | None) -> None:
        """Raise Forbidden if the project may not fetch images from a server."""
        host = f"[{host}]" if ":" in host else host
        allowed = {entry.lower() for entry in self._list("images.servers")}
        if allowed and not allowed & {host.lower(), f"{host.lower()}:{port}"}:
            raise self._forbidden(f"images of the server {host!r}", "images.servers")

    def check_network(self, name: str, config: Config) -> None:
        """Raise Forbidden if a network of the project would reach further than its own bridge."""
        if self.config is None:
            return
        if config.get("raw.dnsmasq"):
            raise self._forbidden("'raw.dnsmasq' of networks", "")
        for interface in _entries(config.get("bridge.external_interfaces", "")):
            if interface not in self._list("networks.uplinks"):
                raise self._forbidden(f"the external interface {interface!r}", "networks.uplinks")
        self._check_routes(name, config)

    def allows_network(self, name: str, *, managed: bool) -> bool:
        """Whether the project can see and use a network, or a host's interface that is not managed."""
        if self.config is None:
            return True
        nics = self.value("devices.nic")
        if nics == "block" or (nics == "managed" and not managed):
            return False
        return self._is_listed("networks.access", name)

    def _check_key(self, key: str, value: str) -> None:
        if key == "security.nesting" and parse_bool(value) and self.value("containers.nesting") == "block":
            raise self._forbidden("nesting", "containers.nesting")
        if key.startswith(_INTERCEPT):
            self._check_interception(key, value)
        elif key == "raw.idmap":
            self._check_idmap(value)
        elif value and _is_low_level(key, value) and self.value("containers.lowlevel") == "block":
            raise self._forbidden(f"the low-level option {key!r}", "containers.lowlevel")

    def _check_interception(self, key: str, value: str) -> None:
        allowed = self.value("containers.interception")
        wanted = bool(value) if key in _MOUNTS or key.endswith(".fuse") else parse_bool(value)
        if wanted and (allowed == "block" or (allowed == "allow" and key in _MOUNTS)):
            raise self._forbidden(f"{key!r}", "containers.interception")

    def _check_idmap(self, value: str) -> None:
        """Host ids can be mapped if they are in the allowed ranges, or if low-level options are allowed."""
        if self.value("containers.lowlevel") == "allow":
            return
        for entries, key in zip(parse_raw(value), ("idmap.uid", "idmap.gid"), strict=True):
            listed = self.value(key)
            allowed = parse_id_ranges(listed) if listed else []
            for entry in entries:
                last = entry.host + entry.count - 1
                if not any(entry.host in ids and last in ids for ids in allowed):
                    raise self._forbidden(f"mapping the host's id {entry.host} by 'raw.idmap'", key)

    def _check_privilege(self, config: Config, *, profile: bool) -> None:
        allowed = self.value("containers.privilege")
        if allowed == "allow":
            return
        if parse_bool(config.get("security.privileged", "")):
            raise self._forbidden("privileged containers", "containers.privilege")
        isolated = config.get("security.idmap.isolated", "true" if profile else "")
        if allowed == "isolated" and not parse_bool(isolated):
            raise self._forbidden("containers without security.idmap.isolated=true", "containers.privilege")

    def _check_device(self, name: str, device: Mapping[str, str]) -> None:
        kind = device.get("type", "")
        if kind in _RESTRICTED_TYPES and self.value(f"devices.{kind}") == "block":
            raise self._forbidden(f"the device {name!r} of the type {kind!r}", f"devices.{kind}")
        checks: dict[str, Callable[[str, Mapping[str, str]], None]] = {
            "disk": self._check_disk,
            "nic": self._check_nic,
        }
        if kind in checks:
            checks[kind](name, device)

    def _check_disk(self, name: str, device: Mapping[str, str]) -> None:
        pool, source = device.get("pool", ""), device.get("source", "")
        if pool and not self._is_listed("storage-pools.access", pool):
            raise self._forbidden(f"the storage pool {pool!r} of the device {name!r}", "storage-pools.access")
        if device.get("path") == "/" and pool and not source:
            return
        allowed = self.value("devices.disk")
        inside = bool(pool) or source.startswith("instance:")
        if allowed == "block" or (allowed == "managed" and not inside):
            raise self._forbidden(f"the disk {name!r}", "devices.disk")
        if not inside and not self._has_path(source):
            raise self._forbidden(f"the source {source!r} of the disk {name!r}", "devices.disk.paths")
        if not inside and self.disk_paths and parse_bool(device.get("shift", "")):
            # Root inside would write there as root of the host.
            raise self._forbidden(f"'shift' of the disk {name!r}", "devices.disk.paths")

    def _check_nic(self, name: str, device: Mapping[str, str]) -> None:
        allowed = self.value("devices.nic")
        network = device.get("network", "")
        if allowed == "block" or (allowed == "managed" and not network):
            raise self._forbidden(f"the network device {name!r}", "devices.nic")
        used = network or device.get("parent", "")
        self._check_routes(used, device)
        if used and not self._is_listed("networks.access", used):
            raise self._forbidden(f"the network {used!r} of the device {name!r}", "networks.access")

    def _check_routes(self, network: str, config: Config) -> None:
        """Only traffic to subnets that the project has on a network can be routed to it by the host."""
        listed = [entry.partition(":") for entry in self._list("networks.subnets")]
        allowed = [subnet for name, _, subnet in listed if subnet and name == network]
        for key in ("ipv4.routes", "ipv6.routes"):
            for route in _entries(config.get(key, "")):
                if not any(is_within(route, subnet) for subnet in allowed):
                    raise self._forbidden(f"the route {route} to the network {network!r}", "networks.subnets")

    def _has_path(self, source: str) -> bool:
        """Whether a path on the host, which may not contain `..`, is one of the allowed ones or below it."""
        allowed = [_components(path) for path in self.disk_paths]
        parts = _components(source)
        return not allowed or (".." not in parts and any(parts[: len(above)] == above for above in allowed))

    def _list(self, name: str) -> list[str]:
        return _entries(self.value(name))

    def _is_listed(self, name: str, entry: str) -> bool:
        """Whether a list is empty, which means everything, or contains an entry."""
        allowed = self._list(name)
        return not allowed or entry in allowed

    def _forbidden(self, what: str, key: str) -> Forbidden:
        reason = f"restricted.{key}={self.value(key)}" if key else "restricted=true"
        return Forbidden(
            f"Project {self.project!r} does not allow {what} ({reason}): do without, or change the project"
        )


def _is_low_level(key: str, value: str) -> bool:
    if key == "limits.memory.oom_priority":
        return int(value) < 0  # the kernel would rather kill other processes of the host
    return key in _LOW_LEVEL or key.startswith(_LOW_LEVEL_PREFIXES)


def _entries(text: str) -> list[str]:
    return [entry for entry in map(str.strip, text.split(",")) if entry]


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def check_all(tx: Transaction, wanted: Restrictions) -> None:
    """Raise Forbidden, with its name, if an instance or a profile of the project violates restrictions."""
    for profile in profile_rows.get_all(tx, wanted.project):
        with _naming(f"Profile {profile.name!r}"):
            wanted.check(profile.config, profile.devices, profile=True)
    for network in network_rows.get_all(tx, wanted.project):
        with _naming(f"Network {network.name!r}"):
            wanted.check_network(network.name, network.config)
    for row, config, devices in expanded(tx, wanted.project):
        with _naming(f"Instance {row.ref.name!r}"):
            wanted.check(config, devices, profile=False)


@contextmanager
def _naming(owner: str) -> Iterator[None]:
    try:
        yield
    except Forbidden as error:
        raise error.concerning(owner) from None


def restrictions_of(project: str, config: Config) -> Restrictions:
    """Return the restrictions that a project's config specifies."""
    restricted = parse_bool(config.get("restricted", ""))
    own = {key: value for key, value in config.items() if key.startswith("restricted.")}
    return Restrictions(
        project,
        own if restricted else None,
        config.get("network.hwaddr_pattern", ""),
        limited=bool(limits_of(config)),
    )


def get(tx: Transaction, project: str) -> Restrictions:
    """Return the restrictions of a project. Raises NotFound."""
    return restrictions_of(project, rows.get_config(tx, project))


def get_all(tx: Transaction) -> dict[str, Restrictions]:
    """Return the restrictions of all projects by name."""
    return {name: restrictions_of(name, config) for name, config in rows.get_configs(tx).items()}
