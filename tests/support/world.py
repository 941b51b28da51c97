"""Utsuwa, LXD and Incus as remotes of the clients of all three."""

from __future__ import annotations

import base64
import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support import incus, peers, tls
from tests.support.api import Endpoint
from tests.support.client import command, environment
from tests.support.daemon import Daemon
from utsuwa.client import join_token

NAMES = ("utsuwa", "lxd", "incus")
CLIENTS = ("lxc", "incus", "utsuwa")
PASSWORD = "open"
WAYS = [
    (source, target)
    for source in NAMES
    for target in NAMES
    if source != target and "utsuwa" in (source, target)
]


@dataclass
class World:
    """The servers by name, and how clients are run, which know all of them as remotes."""

    daemon: Daemon
    servers: dict[str, Endpoint]

    def run(self, client: str, *words: str, check: bool = True) -> str:
        """Return stdout, or without `check` stderr."""
        argv = {
            "lxc": ["lxc", *words],
            "incus": [str(incus.client()), *words],
            "utsuwa": command(*words),
        }[client]
        conf = str(self.daemon.home / "clients" / client)
        ended = subprocess.run(
            argv,
            env=environment(self.daemon) | dict.fromkeys(("LXD_CONF", "UTSUWA_CONF", "INCUS_CONF"), conf),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check:
            assert ended.returncode == 0, f"{client} {' '.join(words)}: {ended.stdout}{ended.stderr}"
        return ended.stdout if check else ended.stderr

    def images(self, server: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.servers[server].get("/1.0/images?recursion=1")
        return found

    def empty(self, server: str, *, but: str = "") -> None:
        for image in self.images(server):
            if image["fingerprint"] != but:
                self.servers[server].do("DELETE", f"/1.0/images/{image['fingerprint']}")


@contextlib.contextmanager
def three_servers(daemon: Daemon) -> Iterator[World]:
    """Start LXD and Incus beside a daemon, and make each server a remote of each client."""
    with contextlib.ExitStack() as stack:
        servers: dict[str, Endpoint] = {"utsuwa": daemon}
        for name, start in (("lxd", peers.lxd), ("incus", peers.incusd)):
            servers[name] = peer = start()
            stack.callback(peer.close)
        found = World(daemon, servers)
        for name, server in servers.items():
            address = tls.free_address()
            server.do("PATCH", "/1.0", {"config": {"core.https_address": address}})
            for client in CLIENTS:
                (daemon.home / "clients" / client).mkdir(parents=True, exist_ok=True)
                trust(found, client, name, address)
        yield found
        for name in NAMES:
            found.empty(name)


def trust(world: World, client: str, name: str, address: str) -> None:
    """Add a server as a remote: by the password, where both sides have it, and by a token, or by a file."""
    server, url = world.servers[name], f"https://{address}"
    if "incus" not in (client, name):
        before = set(server.get("/1.0/certificates"))
        server.do("PATCH", "/1.0", {"config": {"core.trust_password": PASSWORD}})
        world.run(client, "remote", "add", name, url, "--accept-certificate", "--password", PASSWORD)
        world.run(client, "remote", "remove", name)
        for certificate in set(server.get("/1.0/certificates")) - before:
            server.do("DELETE", certificate)
        # With one, LXD replies with a config that the client of Incus cannot read.
        server.do("PATCH", "/1.0", {"config": {"core.trust_password": ""}})
    if (client, name) in (("lxc", "incus"), ("incus", "lxd")):  # each has its own field for a token
        pem = (world.daemon.home / "clients" / client / "client.crt").read_text()
        der = base64.b64encode(ssl.PEM_cert_to_DER_cert(pem)).decode()
        server.do("POST", "/1.0/certificates", {"type": "client", "certificate": der, "name": client})
        world.run(client, "remote", "add", name, url, "--accept-certificate")
        return
    made = server.api("POST", "/1.0/certificates", {"type": "client", "token": True, "name": client})
    token = join_token.of_operation(server.get(made.operation))
    assert token is not None
    world.run(client, "remote", "add", name, str(token))
