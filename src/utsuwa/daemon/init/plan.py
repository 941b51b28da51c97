"""The plan of `init --auto`, computed from the options and the daemon's state."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.daemon.init.options import DEFAULT_PORT, Options
from utsuwa.daemon.init.preseed import NetworkSeed, PoolSeed, Preseed, ProfileSeed
from utsuwa.daemon.init.state import ServerState
from utsuwa.storage.drivers import DEFAULT_DRIVER

POOL = "default"
PROFILE = "default"
_KNOWN_DRIVERS = frozenset(("btrfs", "ceph", "cephfs", "cephobject", "lvm", "zfs"))
"""LXD's drivers, which a server may not support."""


def automatic(options: Options, state: ServerState) -> Preseed:
    """Return defaults for missing objects, and what other members of the database have.

    Raises InvalidRequest, NotSupportedYet.
    """
    preseed = Preseed(config=_server_config(options))
    profile = ProfileSeed(name=PROFILE)
    if options.storage_backend:
        check_backend(options.storage_backend, state.drivers)
        if pools := {*state.pools, *state.pending_pools}:
            there = ", ".join(sorted(pools))
            raise InvalidRequest(f"A storage pool already exists ({there}): omit --storage-backend")
    _refuse_storage_details(options, state.drivers)
    preseed.storage_pools += [PoolSeed(name=name, driver=kind) for name, kind in state.pending_pools.items()]
    preseed.networks += [NetworkSeed(name=name, type=kind) for name, kind in state.pending_networks.items()]
    if not state.pools and not state.pending_pools:
        driver = options.storage_backend or default_driver(state.drivers)
        preseed.storage_pools.append(PoolSeed(name=POOL, driver=driver))
        profile.devices["root"] = root_disk(POOL)
    # A nic in the profile also means that the network has been decided.
    has_networks = state.networks or state.pending_networks
    if state.makes_networks and not has_networks and "eth0" not in state.devices:
        bridge = state.free_bridge()
        preseed.networks.append(NetworkSeed(name=bridge, type="bridge"))
        profile.devices["eth0"] = {"type": "nic", "network": bridge, "name": "eth0"}
    if profile.devices:
        preseed.profiles.append(profile)
    return preseed


def default_driver(drivers: Iterable[str]) -> str:
    """Return the default driver."""
    return DEFAULT_DRIVER if DEFAULT_DRIVER in drivers else min(drivers)


def check_backend(name: str, drivers: Iterable[str]) -> None:
    """Raise NotSupportedYet for a driver that only LXD has, InvalidRequest for an unknown one."""
    if name in drivers:
        return
    choice = ", ".join(sorted(drivers))
    if name in _KNOWN_DRIVERS:
        raise NotSupportedYet(f"The storage driver {name!r} is not supported yet: use one of {choice}")
    raise InvalidRequest(f"Unknown storage backend {name[:40]!r}: use one of {choice}")


def root_disk(pool: str) -> dict[str, str]:
    """Return the root disk device for a pool."""
    return {"type": "disk", "path": "/", "pool": pool}


def listen_address(address: str, port: int | None) -> str:
    """Return `core.https_address` for an address (`all` for the wildcard) and a port."""
    port = DEFAULT_PORT if port is None else port
    if address == "all":
        address = "::"
    bare = address.removeprefix("[").removesuffix("]")
    try:
        ipv6 = ipaddress.ip_address(bare).version == 6
    except ValueError:
        return f"{address}:{port}"
    return f"[{bare}]:{port}" if ipv6 else f"{bare}:{port}"


def _server_config(options: Options) -> dict[str, str]:
    if not options.network_address:
        return {}
    config = {"core.https_address": listen_address(options.network_address, options.network_port)}
    if options.trust_password:
        config["core.trust_password"] = options.trust_password
    return config


def _refuse_storage_details(options: Options, drivers: Iterable[str]) -> None:
    given = [name for name, value in options.storage_details.items() if value not in (None, "")]
    if given:
        raise InvalidRequest(
            f"{given[0]} is for storage backends with a file system of their own; a pool of "
            f"{' or '.join(sorted(drivers))} is a directory: omit it"
        )
