"""Records of `/1.0`: the server, its environment and its config."""

from __future__ import annotations

import msgspec


class Environment(msgspec.Struct, kw_only=True):
    """Facts of the host and of the daemon."""

    addresses: list[str]
    architectures: list[str]
    certificate: str
    certificate_fingerprint: str
    driver: str
    driver_version: str
    firewall: str
    kernel: str
    kernel_architecture: str
    kernel_features: dict[str, str]
    kernel_version: str
    lxc_features: dict[str, str]
    os_name: str
    os_version: str
    project: str
    server: str
    server_clustered: bool
    server_event_mode: str
    server_name: str
    server_pid: int
    server_version: str
    storage: str
    storage_version: str
    storage_supported_drivers: list[SupportedDriver]


class SupportedDriver(msgspec.Struct, kw_only=True):
    """A storage driver that works on this host."""

    name: str = msgspec.field(name="Name")
    version: str = msgspec.field(name="Version")
    remote: bool = msgspec.field(name="Remote")


class UntrustedServer(msgspec.Struct, kw_only=True):
    """What `GET /1.0` returns to untrusted callers."""

    api_extensions: tuple[str, ...]
    api_status: str
    api_version: str
    auth: str
    public: bool
    auth_methods: list[str]


class Server(UntrustedServer, kw_only=True):
    """What `GET /1.0` returns to trusted callers."""

    config: dict[str, str | bool]
    environment: Environment


class ServerPut(msgspec.Struct, kw_only=True):
    """The server's config in PUT and PATCH; numbers and booleans are converted to strings."""

    config: dict[str, str | int | float | bool | None] = {}
