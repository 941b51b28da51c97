"""What `init --auto` sets up: decided from the options and what the daemon has, without touching it."""

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
"""LXD's, which a server may lack."""


def automatic(options: Options, state: ServerState) -> Preseed:
    """Defaults for what is missing; what is there stays. Raises InvalidRequest, NotSupportedYet."""
    preseed = Preseed(config=_server_config(options))
    profile = ProfileSeed(name=PROFILE)
    if options.storage_backend:
        check_backend(options.storage_backend, state.drivers)
        if state.pools:
            there = ", ".join(sorted(state.pools))
            raise InvalidRequest(f"There is a storage pool already ({there}): leave --storage-backend out")
    _refuse_storage_details(options, state.drivers)
    if not state.pools:
        driver = options.storage_backend or default_driver(state.drivers)
        preseed.storage_pools.append(PoolSeed(name=POOL, driver=driver))
        profile.devices["root"] = root_disk(POOL)
    # A nic that somebody gave the profile is an answer to the question of the network, too.
    if state.makes_networks and not state.networks and "eth0" not in state.devices:
        bridge = state.free_bridge()
        preseed.networks.append(NetworkSeed(name=bridge, type="bridge"))
        profile.devices["eth0"] = {"type": "nic", "network": bridge, "name": "eth0"}
    if profile.devices:
        preseed.profiles.append(profile)
    return preseed


def default_driver(drivers: Iterable[str]) -> str:
    """The driver for who does not care."""
    return DEFAULT_DRIVER if DEFAULT_DRIVER in drivers else min(drivers)


def check_backend(name: str, drivers: Iterable[str]) -> None:
    """Raises NotSupportedYet for a driver that is LXD's, not this server's, InvalidRequest for others."""
    if name in drivers:
        return
    choice = ", ".join(sorted(drivers))
    if name in _KNOWN_DRIVERS:
        raise NotSupportedYet(f"This version has no storage driver {name!r}: use one of {choice}")
    raise InvalidRequest(f"Unknown storage backend {name[:40]!r}: use one of {choice}")


def root_disk(pool: str) -> dict[str, str]:
    """The device that puts an instance's root on a pool."""
    return {"type": "disk", "path": "/", "pool": pool}


def listen_address(address: str, port: int | None) -> str:
    """`core.https_address` of an address (`all` for every one) and a port."""
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
            f"{' or '.join(sorted(drivers))} lies in a folder: leave it out"
        )
