"""The options of `init`, and their valid combinations, as in LXD."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from utsuwa.core.errors import InvalidRequest

DEFAULT_PORT = 8443


@dataclass(frozen=True)
class Options:
    """The options of the command line; None or the empty string if absent."""

    auto: bool = False
    minimal: bool = False
    preseed: bool = False
    dump: bool = False
    network_address: str = ""
    network_port: int | None = None
    trust_password: str = ""
    storage_backend: str = ""
    storage_pool: str = ""
    storage_create_device: str = ""
    storage_create_loop: int | None = None

    @property
    def details(self) -> list[str]:
        """The given options that modify `--auto`."""
        values = {
            "--network-address": self.network_address,
            "--network-port": self.network_port,
            "--trust-password": self.trust_password,
            "--storage-backend": self.storage_backend,
            **self.storage_details,
        }
        return [name for name, value in values.items() if value not in (None, "")]

    @property
    def storage_details(self) -> dict[str, str | int | None]:
        """The given options for storage backends with their own file system."""
        return {
            "--storage-pool": self.storage_pool,
            "--storage-create-device": self.storage_create_device,
            "--storage-create-loop": self.storage_create_loop,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser; `from_arguments` reads them."""
    add = parser.add_argument
    add("--auto", action="store_true", help="set up with defaults, without questions")
    add("--minimal", action="store_true", help="as --auto, without further options")
    add("--preseed", action="store_true", help="set up from YAML on standard input, completely or not at all")
    add("--dump", action="store_true", help="print the configuration as YAML for --preseed")
    add("--network-address", metavar="IP", default="", help="serve clients at this address (default: none)")
    add("--network-port", metavar="PORT", type=int, help=f"and on this port (default: {DEFAULT_PORT})")
    add("--trust-password", metavar="PASSWORD", default="", help="password with which clients add themselves")
    add("--storage-backend", metavar="DRIVER", default="", help="driver of the storage pool")
    add("--storage-pool", metavar="POOL", default="", help="existing pool of the backend to use")
    add("--storage-create-device", metavar="DEVICE", default="", help="create the pool on this block device")
    add("--storage-create-loop", metavar="SIZE", type=int, help="create the pool in a file of SIZE GB")


def from_arguments(arguments: argparse.Namespace) -> Options:
    """Raises InvalidRequest if options cannot be combined."""
    options = Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})
    check(options)
    return options


def check(options: Options) -> None:
    """Raises InvalidRequest if options cannot be combined."""
    modes = [name for name in ("auto", "minimal", "preseed", "dump") if getattr(options, name)]
    if len(modes) > 1:
        raise InvalidRequest(f"--{modes[0]} and --{modes[1]} cannot be used together: choose one")
    if options.details and modes != ["auto"]:
        raise InvalidRequest(f"{options.details[0]} needs --auto")
    if not options.network_address:
        for name, given in (("port", options.network_port is not None), ("", bool(options.trust_password))):
            if given:
                option = "--network-port" if name else "--trust-password"
                raise InvalidRequest(f"{option} needs --network-address")
    if options.network_port is not None and not 1 <= options.network_port <= 65535:
        raise InvalidRequest("--network-port must be between 1 and 65535")
    if options.storage_create_device and options.storage_create_loop is not None:
        raise InvalidRequest("--storage-create-device and --storage-create-loop cannot be used together")
