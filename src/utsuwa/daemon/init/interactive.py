"""`init` without options: LXD's questions for a server that is not clustered."""

from __future__ import annotations

import getpass
import ipaddress
import re
import sys
from collections.abc import Callable, Collection
from typing import Protocol, TextIO

from utsuwa.core.errors import Cancelled, InvalidRequest, UtsuwaError
from utsuwa.core.names import check_object_name
from utsuwa.daemon.init import plan
from utsuwa.daemon.init.dump import to_yaml
from utsuwa.daemon.init.options import DEFAULT_PORT
from utsuwa.daemon.init.preseed import NetworkSeed, PoolSeed, Preseed, ProfileSeed
from utsuwa.daemon.init.state import ServerState

_INTERFACE = re.compile(r"[!-.0-~]{2,15}\Z")
_YES_NO = {"yes": True, "y": True, "no": False, "n": False}

Check = Callable[[str], object]
"""Raises UtsuwaError or ValueError if the answer is invalid."""


class Terminal(Protocol):
    """Prints questions and reads answers."""

    def ask(self, prompt: str) -> str:
        """Ask a question and return the line. Raises Cancelled at the end of input."""

    def ask_secret(self, prompt: str) -> str:
        """As `ask`, without echo."""

    def say(self, text: str) -> None:
        """Print a message."""


class StandardTerminal:
    """Standard input and output."""

    def __init__(self, source: TextIO = sys.stdin, target: TextIO = sys.stdout) -> None:
        self._source, self._target = source, target

    def ask(self, prompt: str) -> str:
        self._target.write(prompt)
        self._target.flush()
        line = self._source.readline()
        if not line:
            self._target.write("\n")
            raise Cancelled("The input ended before the last question: nothing was changed")
        return line.strip()

    def ask_secret(self, prompt: str) -> str:
        if not self._source.isatty():
            return self.ask(prompt)
        try:
            return getpass.getpass(prompt, self._target)
        except EOFError:
            raise Cancelled("The input ended before the last question: nothing was changed") from None

    def say(self, text: str) -> None:
        self._target.write(f"{text}\n")
        self._target.flush()


def converse(terminal: Terminal, state: ServerState) -> Preseed:
    """Ask all questions; return the resulting preseed. Raises Cancelled."""
    return _Interview(terminal, state).run()


class _Interview:
    def __init__(self, terminal: Terminal, state: ServerState) -> None:
        self._terminal = terminal
        self._state = state
        self._preseed = Preseed()
        self._profile = ProfileSeed(name=plan.PROFILE)

    def run(self) -> Preseed:
        self._storage()
        self._network()
        self._server()
        if self._profile.devices:
            self._preseed.profiles.append(self._profile)
        if self._yes("Would you like the answers to be printed as YAML for `init --preseed`?", default=False):
            self._terminal.say(to_yaml(self._preseed))
        return self._preseed

    # ---- topics

    def _storage(self) -> None:
        if not self._yes("Do you want to configure a new storage pool?", default=not self._state.pools):
            return
        name = self._text("Name of the new storage pool", plan.POOL, self._new_pool_name)
        drivers = sorted(self._state.drivers)
        default = plan.default_driver(drivers)
        driver = self._choice("Name of the storage backend to use", drivers, default)
        self._preseed.storage_pools.append(PoolSeed(name=name, driver=driver))
        self._profile.devices["root"] = plan.root_disk(name)

    def _new_pool_name(self, name: str) -> None:
        check_object_name("Storage pool", name)
        if name in self._state.pools:
            raise InvalidRequest(f"the storage pool {name!r} already exists")

    def _network(self) -> None:
        if self._state.makes_networks and self._yes(
            "Would you like to create a new local network bridge?", default=not self._state.networks
        ):
            self._new_bridge()
        elif self._yes(
            "Would you like instances to use an existing bridge or host interface?", default=False
        ):
            name = self._text("Name of the existing bridge or host interface", "", self._existing_interface)
            self._profile.devices["eth0"] = self._nic_on(name)

    def _new_bridge(self) -> None:
        name = self._text(
            "What should the new bridge be called?", self._state.free_bridge(), self._new_interface
        )
        config = {}
        for version in (4, 6):
            key = f"ipv{version}.address"
            config[key] = self._text(
                f"What IPv{version} address should be used? (CIDR subnet notation, 'auto' or 'none')",
                "auto",
                _address_check(version),
            )
            if config[key] not in ("auto", "none"):
                nat = self._yes(
                    f"Would you like IPv{version} traffic on the bridge to be NATed?", default=True
                )
                config[f"ipv{version}.nat"] = "true" if nat else "false"
        self._preseed.networks.append(NetworkSeed(name=name, type="bridge", config=config))
        self._profile.devices["eth0"] = {"type": "nic", "network": name, "name": "eth0"}

    def _new_interface(self, name: str) -> None:
        if name in self._state.interfaces:
            raise InvalidRequest(f"the network interface {name!r} already exists")
        if not _INTERFACE.match(name):
            raise InvalidRequest("an interface name must have 2 to 15 characters, without spaces and slashes")

    def _existing_interface(self, name: str) -> None:
        if name not in self._state.interfaces:
            raise InvalidRequest(f"the network interface {name!r} does not exist")

    def _nic_on(self, name: str) -> dict[str, str]:
        if name in self._state.networks:
            return {"type": "nic", "network": name, "name": "eth0"}
        kind = "bridged" if name in self._state.bridges else "macvlan"
        return {"type": "nic", "nictype": kind, "parent": name, "name": "eth0"}

    def _server(self) -> None:
        config = self._preseed.config
        if self._yes("Would you like the server to be available over the network?", default=False):
            address = self._text("Address to bind to (not including port)", "all", _bind_check)
            port = int(self._text("Port to bind to", str(DEFAULT_PORT), _port_check))
            config["core.https_address"] = plan.listen_address(address, port)
            password = self._password()
            if password:
                config["core.trust_password"] = password
        if not self._yes("Would you like stale cached images to be updated automatically?", default=True):
            config["images.auto_update_interval"] = "0"

    def _password(self) -> str:
        while True:
            first = self._terminal.ask_secret("Trust password for new clients (empty for none): ")
            if not first or self._terminal.ask_secret("Again: ") == first:
                return first
            self._terminal.say("The passwords do not match, try again.\n")

    # ---- types of questions

    def _yes(self, question: str, *, default: bool) -> bool:
        shown = "yes" if default else "no"
        while True:
            answer = self._terminal.ask(f"{question} (yes/no) [default={shown}]: ").lower()
            if not answer:
                return default
            if answer in _YES_NO:
                return _YES_NO[answer]
            self._terminal.say("Please answer yes or no.\n")

    def _choice(self, question: str, choices: Collection[str], default: str) -> str:
        def check(answer: str) -> None:
            if answer not in choices:
                raise InvalidRequest(f"must be one of {', '.join(choices)}")

        return self._text(f"{question} ({', '.join(choices)})", default, check)

    def _text(self, question: str, default: str, check: Check) -> str:
        shown = f" [default={default}]" if default else ""
        while True:
            answer = self._terminal.ask(f"{question}{shown}: ") or default
            try:
                check(answer)
            except (UtsuwaError, ValueError) as error:
                self._terminal.say(f"Invalid answer: {error}\n")
            else:
                return answer


def _address_check(version: int) -> Check:
    def check(text: str) -> None:
        if text in ("auto", "none"):
            return
        interface = ipaddress.ip_interface(text)
        if interface.version != version or "/" not in text:
            raise InvalidRequest(f"must be an IPv{version} address with prefix length")

    return check


def _bind_check(text: str) -> None:
    if text != "all":
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))


def _port_check(text: str) -> None:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise InvalidRequest("must be a port number from 1 to 65535")
