"""Options of `init`, and what `--auto` makes of them."""

from __future__ import annotations

import argparse
from dataclasses import replace

import msgspec
import pytest

from utsuwa.core.errors import InvalidRequest, NotSupportedYet
from utsuwa.daemon.init.options import Options, add_options, check, from_arguments
from utsuwa.daemon.init.plan import automatic, listen_address
from utsuwa.daemon.init.preseed import NetworkSeed, PoolSeed, Preseed
from utsuwa.daemon.init.state import ServerState

FRESH = ServerState(
    drivers=frozenset(("dir", "overlay")),
    pools=frozenset(),
    networks=frozenset(),
    interfaces=frozenset(("lo", "eth0")),
    bridges=frozenset(),
    devices=frozenset(),
    makes_networks=True,
)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options(auto=True, preseed=True), "--auto and --preseed cannot be used together"),
        (Options(auto=True, minimal=True), "--auto and --minimal cannot be used together"),
        (Options(minimal=True, dump=True), "--minimal and --dump cannot be used together"),
        (Options(storage_backend="dir"), "--storage-backend needs --auto"),
        (Options(preseed=True, network_address="::1"), "--network-address needs --auto"),
        (Options(minimal=True, storage_create_loop=0), "--storage-create-loop needs --auto"),
        (Options(auto=True, network_port=9), "--network-port needs --network-address"),
        (Options(auto=True, trust_password="x"), "--trust-password needs --network-address"),
        (Options(auto=True, network_address="::1", network_port=0), "between 1 and 65535"),
        (Options(auto=True, network_address="::1", network_port=65536), "between 1 and 65535"),
        (
            Options(auto=True, storage_create_device="/dev/x", storage_create_loop=3),
            "--storage-create-device and --storage-create-loop cannot be used together",
        ),
    ],
)
def test_conflicting_options_are_rejected(options: Options, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        check(options)


def test_the_command_line_as_lxd_takes_it() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    typed = ["--trust-password", "test", "--network-address", "127.0.0.1", "--network-port", "9443", "--auto"]
    assert from_arguments(parser.parse_args(typed)) == Options(
        auto=True, trust_password="test", network_address="127.0.0.1", network_port=9443
    )
    assert from_arguments(parser.parse_args([])) == Options()


def test_a_fresh_daemon_gets_a_pool_a_bridge_and_a_profile() -> None:
    assert msgspec.to_builtins(automatic(Options(auto=True), FRESH)) == {
        "config": {},
        "storage_pools": [{"name": "default", "driver": "overlay", "description": "", "config": {}}],
        "networks": [
            {"name": "utsuwabr0", "type": "bridge", "description": "", "config": {}, "project": "default"}
        ],
        "projects": [],
        "profiles": [
            {
                "name": "default",
                "description": "",
                "config": {},
                "devices": {
                    "root": {"type": "disk", "path": "/", "pool": "default"},
                    "eth0": {"type": "nic", "network": "utsuwabr0", "name": "eth0"},
                },
                "project": "default",
            }
        ],
    }


def test_existing_pools_and_networks_are_kept() -> None:
    there = replace(FRESH, pools=frozenset(("p",)), networks=frozenset(("n",)))
    assert automatic(Options(minimal=True), there) == Preseed()
    with pytest.raises(InvalidRequest, match=r"storage pool already exists \(p\): omit --storage-backend"):
        automatic(Options(auto=True, storage_backend="dir"), there)


def test_a_further_member_of_a_database_gets_what_the_others_have() -> None:
    shared = replace(FRESH, pending_pools={"fast": "dir"}, pending_networks={"br": "bridge"})
    assert automatic(Options(auto=True), shared) == Preseed(
        storage_pools=[PoolSeed(name="fast", driver="dir")],
        networks=[NetworkSeed(name="br", type="bridge")],
    )
    with pytest.raises(InvalidRequest, match="pool already"):
        automatic(Options(auto=True, storage_backend="dir"), shared)


def test_a_nic_of_the_profile_is_kept_and_no_bridge_made() -> None:
    planned = automatic(Options(auto=True), replace(FRESH, devices=frozenset(("eth0",))))
    assert planned.networks == []
    assert set(planned.profiles[0].devices) == {"root"}


def test_a_server_without_networks_gets_none() -> None:
    planned = automatic(Options(auto=True), replace(FRESH, makes_networks=False))
    assert planned.networks == []
    assert set(planned.profiles[0].devices) == {"root"}


def test_the_first_free_bridge_name() -> None:
    taken = replace(FRESH, interfaces=frozenset(("utsuwabr0", "utsuwabr1", "utsuwabr3")))
    assert taken.free_bridge() == "utsuwabr2"


def test_the_chosen_backend() -> None:
    assert automatic(Options(auto=True, storage_backend="dir"), FRESH).storage_pools[0].driver == "dir"
    without_overlay = replace(FRESH, drivers=frozenset(("dir",)))
    assert automatic(Options(auto=True), without_overlay).storage_pools[0].driver == "dir"
    with pytest.raises(
        NotSupportedYet, match="storage driver 'btrfs' is not supported yet: use one of dir, overlay"
    ):
        automatic(Options(auto=True, storage_backend="btrfs"), FRESH)
    with pytest.raises(InvalidRequest, match="Unknown storage backend 'nope': use one of dir, overlay"):
        automatic(Options(auto=True, storage_backend="nope"), FRESH)


@pytest.mark.parametrize(
    "options",
    [
        Options(auto=True, storage_pool="tank"),
        Options(auto=True, storage_backend="overlay", storage_create_device="/dev/x"),
        Options(auto=True, storage_backend="dir", storage_create_loop=3),
    ],
)
def test_directory_pools_reject_device_options(options: Options) -> None:
    with pytest.raises(InvalidRequest, match="a file system of their own"):
        automatic(options, FRESH)


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1:8443"),
        ("127.0.0.1", 1, "127.0.0.1:1"),
        ("::1", 9, "[::1]:9"),
        ("[::1]", None, "[::1]:8443"),
        ("all", None, "[::]:8443"),
        ("host.example", 5, "host.example:5"),
    ],
)
def test_listen_addresses(address: str, port: int | None, expected: str) -> None:
    assert listen_address(address, port) == expected


def test_address_and_password_become_config() -> None:
    planned = automatic(Options(auto=True, network_address="::1", trust_password="pw"), FRESH)
    assert planned.config == {"core.https_address": "[::1]:8443", "core.trust_password": "pw"}
