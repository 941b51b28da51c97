"""The environment in `GET /1.0`: constant facts are cached, others are read for each request."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable

from utsuwa.host.system.facts import HostFacts, host_addresses
from utsuwa.security.keypair import ServerCertificate
from utsuwa.storage.drivers import DRIVERS
from utsuwa.version import __version__
from utsuwa.wire.server import Environment, SupportedDriver

_SUPPORTED = [
    SupportedDriver(name=name, version=kind.version, remote=kind.remote)
    for name, kind in sorted(DRIVERS.items())
]


def environment(
    facts: HostFacts,
    certificate: ServerCertificate,
    listening: str,
    drivers_in_use: Iterable[str],
    *,
    criu: bool,
) -> Environment:
    """Return the environment. `listening` is the HTTPS listener's `host:port`, empty if there is none.

    `criu` tells whether CRIU works here, which is not a feature of the kernel alone.
    """
    used = sorted(drivers_in_use)
    return Environment(
        addresses=_addresses(listening),
        architectures=facts.architectures,
        certificate=certificate.pem,
        certificate_fingerprint=certificate.fingerprint,
        driver="lxc",
        driver_version=facts.lxc_version,
        firewall="nftables",
        kernel=facts.kernel,
        kernel_architecture=facts.architecture,
        kernel_features={**facts.kernel_features, "criu": "true" if criu else "false"},
        kernel_version=facts.kernel_version,
        lxc_features=facts.lxc_features,
        os_name=facts.os_name,
        os_version=facts.os_version,
        project="default",
        server="utsuwa",
        server_clustered=False,
        server_event_mode="full-mesh",
        server_name=socket.gethostname(),
        server_pid=os.getpid(),
        server_version=__version__,
        storage=" | ".join(used),
        storage_version=" | ".join(DRIVERS[name].version for name in used),
        storage_supported_drivers=_SUPPORTED,
    )


def _addresses(listening: str) -> list[str]:
    """Return the addresses for clients; a wildcard listener is expanded to all of them."""
    if not listening:
        return []
    host, _, port = listening.rpartition(":")
    try:
        everywhere = ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        everywhere = not host
    if not everywhere:
        return [listening]
    return [f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in host_addresses()]
