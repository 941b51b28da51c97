"""The certificates API over HTTPS: who may add, see and change certificates, and tokens."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.support import prepared, tls
from tests.support.api import Reply
from tests.support.listener import listening
from tests.support.tls import Identity, client_context, connect, make_identity
from utsuwa.api import certificates as certificates_api
from utsuwa.api.application import Application
from utsuwa.core.errors import NotFound
from utsuwa.core.scope import EVERYTHING
from utsuwa.db import projects as project_rows
from utsuwa.db.database import Database
from utsuwa.db.projects import ProjectRow
from utsuwa.operations.events import EventHub
from utsuwa.operations.join_tokens import INVALID_TOKEN, JoinTokens
from utsuwa.operations.operations import Operation, Operations
from utsuwa.security.authorization import Access, authorize, scope_of
from utsuwa.security.certificates import CertificateManager
from utsuwa.security.client_certificate import parse_certificate
from utsuwa.security.server_config import TOKEN_EXPIRY, TRUST_PASSWORD, ServerConfig
from utsuwa.security.tls import ServerContext
from utsuwa.security.trust_password import TrustPassword
from utsuwa.wire.certificates import parse_token
from utsuwa.wire.edits import any_state, merge
from utsuwa.wire.server import ServerPut


class Server:
    """The certificates API over HTTPS, and its managers."""

    def __init__(self, manager: CertificateManager, services: Any, application: Application) -> None:
        self.manager = manager
        self.services = services
        self.application = application
        self.address = ""

    async def ask(
        self, method: str, url: str = "", body: object = None, identity: Identity | None = None, **more: Any
    ) -> Reply:
        return await asyncio.to_thread(
            tls.request,
            self.address,
            method,
            f"/1.0/certificates{url}",
            body,
            identity=identity,
            **more,
        )


class Control:
    """The part of the daemon that tokens need."""

    addresses: Sequence[str] = ("127.0.0.1:8443",)

    async def environment(self) -> Any:
        return SimpleNamespace(addresses=self.addresses, certificate_fingerprint="f" * 64)


def projects_of(database: Database) -> Callable[[], Awaitable[list[str]]]:
    async def names() -> list[str]:
        return [row.name for row in await database.read("test", project_rows.get_all)]

    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def context(folder: Path) -> ServerContext:
    identity = make_identity(folder, "server")
    return ServerContext(identity.certificate_file, identity.key_file)


@pytest.fixture(scope="module")
def alice(folder: Path) -> Identity:
    return make_identity(folder, "alice")


@pytest.fixture
async def server(context: ServerContext, tmp_path: Path) -> AsyncIterator[Server]:
    database = await Database.open(prepared.sqlite(tmp_path / "utsuwa.db"))
    config = ServerConfig(database)
    events = EventHub()
    manager = CertificateManager(database, events)
    await config.edit(merge(ServerPut(config={TRUST_PASSWORD: "sesame"})), any_state)
    operations = Operations(events)
    services = SimpleNamespace(
        certificates=manager,
        database=database,
        events=events,
        server=config,
        operations=operations,
        trust_password=TrustPassword(config),
        join_tokens=JoinTokens(operations, projects_of(database)),
        daemon=Control(),
    )
    application = Application(cast(Any, services), certificates_api.ROUTES, manager.store.caller)
    made = Server(manager, services, application)
    async with listening(context, application.handle, trust=manager.store) as listener:
        made.address = listener.address
        yield made
    await operations.stop()
    await database.close()


def refused(reply: Reply, status: int, error: str) -> None:
    assert (reply.status, reply.json["error"]) == (status, error)


CLIENT = {"type": "client"}
SESAME = {"type": "client", "password": "sesame"}


async def test_strangers_see_nothing(server: Server, alice: Identity) -> None:
    for method, url in (
        ("GET", ""),
        ("GET", "?recursion=1"),
        ("GET", f"/{alice.fingerprint}"),
        ("PUT", f"/{alice.fingerprint}"),
        ("PATCH", f"/{alice.fingerprint}"),
        ("DELETE", f"/{alice.fingerprint}"),
    ):
        refused(await server.ask(method, url, identity=alice), 403, "not authorized")
    for body in ({}, CLIENT, {**CLIENT, "password": "wrong"}, {"type": "odd", "password": "wrong"}):
        refused(await server.ask("POST", "", body, identity=alice), 403, "not authorized")


async def test_client_is_trusted_immediately_after_password(server: Server, alice: Identity) -> None:
    refused(await server.ask("POST", "", SESAME), 400, "No client certificate provided")
    refused(
        await server.ask("POST", "", {**SESAME, "type": ""}, identity=alice),
        400,
        "Invalid certificate type '': use 'client' or 'metrics'",
    )
    reply = await server.ask("POST", "", SESAME, identity=alice)
    assert reply.status == 201
    assert reply.headers["location"] == f"/1.0/certificates/{alice.fingerprint}"
    assert (await server.ask("GET", identity=alice)).metadata == [reply.headers["location"]]
    (shown,) = (await server.ask("GET", "?recursion=1", identity=alice)).metadata
    assert shown == {
        "name": "alice",
        "type": "client",
        "restricted": False,
        "projects": [],
        "certificate": alice.pem,
        "fingerprint": alice.fingerprint,
    }
    refused(await server.ask("POST", "", SESAME, identity=alice), 400, "Client is already trusted")


async def test_trust_ends_at_once_on_a_connection_that_is_open(server: Server, alice: Identity) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    client = await asyncio.to_thread(connect, server.address, client_context(alice))

    def ask() -> bytes:
        client.sendall(b"GET /1.0/certificates HTTP/1.1\r\nHost: x\r\n\r\n")
        return client.recv(65536)[:12]

    assert await asyncio.to_thread(ask) == b"HTTP/1.1 200"
    await server.manager.delete(alice.fingerprint)
    assert await asyncio.to_thread(ask) == b"HTTP/1.1 403"
    client.close()


async def test_an_expired_certificate_is_a_stranger(server: Server, folder: Path) -> None:
    old = make_identity(folder, "old", starts=timedelta(days=-2), ends=timedelta(days=-1))
    refused(await server.ask("GET", identity=old), 403, "not authorized")
    reply = await server.ask("POST", "", SESAME, identity=old)
    assert reply.status == 400
    assert "expired on" in reply.error


async def test_trusted_clients_add_others(server: Server, alice: Identity, folder: Path) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    bob, carol = make_identity(folder, "bob"), make_identity(folder, "carol")
    by_der = {**CLIENT, "certificate": b64encode(bob.der).decode(), "name": "desk"}
    assert (await server.ask("POST", "", by_der, identity=alice)).status == 201
    refused(await server.ask("POST", "", by_der, identity=alice), 409, "Certificate already in trust store")
    by_pem = {**CLIENT, "certificate": carol.pem}
    assert (await server.ask("POST", "", by_pem, identity=alice)).status == 201
    names = {c["name"] for c in (await server.ask("GET", "?recursion=1", identity=bob)).metadata}
    assert names == {"alice", "desk", "carol"}


async def test_a_stranger_with_the_password_may_add_another(
    server: Server, alice: Identity, folder: Path
) -> None:
    bob = make_identity(folder, "bob")
    assert (await server.ask("POST", "", {**SESAME, "certificate": bob.pem}, identity=alice)).status == 201
    assert (await server.ask("GET", identity=bob)).status == 200
    assert (await server.ask("GET", identity=alice)).status == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"type": "metrics"}, 400),
        ({"type": "server"}, 501),
        ({"type": "metrics", "name": "m", "token": True}, 400),
        ({**CLIENT, "token": True, "certificate": "x"}, 400),
        ({**CLIENT, "token": True, "name": "a\nb"}, 400),
        ({**CLIENT, "token": True, "projects": ["nowhere"]}, 404),
        ({"type": "odd"}, 400),
        ({**CLIENT, "certificate": "!!"}, 400),
        ({**CLIENT, "certificate": 5}, 400),
        ({**CLIENT, "name": []}, 400),
        ({**CLIENT, "token": "yes"}, 400),
        ([], 400),
    ],
)
async def test_invalid_additions_by_a_trusted_client_are_rejected(
    server: Server, alice: Identity, body: object, status: int
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    reply = await server.ask("POST", "", body, identity=alice)
    assert reply.status == status, reply.body
    assert len(await server.manager.list(EVERYTHING)) == 1


async def test_editing(server: Server, alice: Identity, folder: Path) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    url = f"/{alice.fingerprint}"
    shown = await server.ask("GET", url[:14], identity=alice)
    etag = shown.headers["etag"]

    async def change(method: str, body: object, etag: str = "") -> Reply:
        headers = {"If-Match": etag} if etag else {}
        return await server.ask(method, url, body, identity=alice, headers=headers)

    assert (await change("PATCH", {"name": "laptop", "type": None}, etag)).status == 200
    assert (await change("PATCH", {"name": "again"}, etag)).status == 412
    assert (await server.manager.get(EVERYTHING, alice.fingerprint)).name == "laptop"
    assert (await change("PUT", {"name": "x"})).status == 400
    assert (await change("PATCH", {"type": "server"})).status == 501
    assert (await change("PUT", CLIENT)).status == 200
    assert (await server.manager.get(EVERYTHING, alice.fingerprint)).name == ""
    bob = make_identity(folder, "bob")
    assert (await change("PUT", {**CLIENT, "name": "bob", "certificate": bob.pem})).status == 200
    assert (await server.ask("GET", url, identity=alice)).status == 403
    assert (await server.ask("DELETE", f"/{bob.fingerprint[:12]}", identity=bob)).status == 200
    assert await server.manager.list(EVERYTHING) == []


async def test_a_restricted_client_sees_its_own_certificate_alone(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    bob = make_identity(folder, "bob")
    body = {**CLIENT, "certificate": bob.pem, "restricted": True, "projects": ["default"]}
    refused(
        await server.ask("POST", "", {**body, "projects": ["nowhere"]}, identity=alice),
        404,
        "Project 'nowhere' not found",
    )
    assert (await server.ask("POST", "", body, identity=alice)).status == 201
    shown = (await server.ask("GET", f"/{bob.fingerprint}", identity=alice)).metadata
    assert (shown["restricted"], shown["projects"]) == (True, ["default"])
    assert len((await server.ask("GET", "", identity=alice)).metadata) == 2
    for prefix in (bob.fingerprint, bob.fingerprint[:9].upper()):
        assert (await server.ask("GET", f"/{prefix}", identity=bob)).metadata == shown
    own = [f"/1.0/certificates/{bob.fingerprint}"]
    assert (await server.ask("GET", "", identity=bob)).metadata == own
    assert (await server.ask("GET", "?recursion=1", identity=bob)).metadata == [shown]
    refused(await server.ask("GET", f"/{alice.fingerprint}", identity=bob), 404, "Certificate not found")
    for method, url in (("DELETE", f"/{bob.fingerprint}"), ("POST", "")):
        refused(await server.ask(method, url, CLIENT, identity=bob), 403, "not authorized")
    assert (
        await server.ask("PATCH", f"/{bob.fingerprint}", {"restricted": False}, identity=alice)
    ).status == 200
    assert len((await server.ask("GET", "", identity=bob)).metadata) == 2


async def test_a_restricted_client_rotates_its_own_key_and_changes_nothing_else(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    bob, new = make_identity(folder, "bob"), make_identity(folder, "bob")
    await server.manager.add(parse_certificate(bob.pem), "bob", restricted=True, projects=["default"])
    own = f"/{bob.fingerprint}"
    bodies: list[dict[str, object]] = [{"restricted": False}, {"name": "admin"}, {"projects": []}]
    for body in bodies:
        reply = await server.ask("PATCH", own, body, identity=bob)
        refused(reply, 403, "Only the certificate itself can be changed")
    reply = await server.ask("PUT", own, {**CLIENT, "name": "bob", "certificate": new.pem}, identity=bob)
    refused(reply, 403, "Only the certificate itself can be changed")
    reply = await server.ask("PATCH", f"/{alice.fingerprint}", {"certificate": new.pem}, identity=bob)
    refused(reply, 404, "Certificate not found")
    assert (await server.ask("PATCH", own, {"certificate": new.pem}, identity=bob)).status == 200
    assert (await server.ask("GET", "", identity=bob)).status == 403
    (shown,) = (await server.ask("GET", "?recursion=1", identity=new)).metadata
    assert (shown["name"], shown["restricted"], shown["projects"]) == ("bob", True, ["default"])
    assert shown["fingerprint"] == new.fingerprint


async def test_unknown_certificate_is_not_found(server: Server, alice: Identity) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    for url in ("/ffff", "/zz", "/..%2f..", "/%00", f"/{alice.fingerprint}0"):
        for method, body in (("GET", None), ("PUT", CLIENT), ("PATCH", {}), ("DELETE", None)):
            refused(await server.ask(method, url, body, identity=alice), 404, "Certificate not found")


async def test_a_certificate_for_metrics_opens_nothing_else(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    meter = make_identity(folder, "meter")
    body = {"type": "metrics", "certificate": meter.pem, "name": "meter"}
    assert (await server.ask("POST", "", body, identity=alice)).status == 201
    shown = (await server.ask("GET", f"/{meter.fingerprint}", identity=alice)).metadata
    assert (shown["type"], shown["name"]) == ("metrics", "meter")
    refused(await server.ask("GET", "", identity=meter), 403, "not authorized")
    caller = server.manager.store.identify(meter.fingerprint, "")
    authorize(caller, Access.METRICS)
    change = {"type": "client"}
    assert (await server.ask("PATCH", f"/{meter.fingerprint}", change, identity=alice)).status == 200
    assert (await server.ask("GET", "", identity=meter)).status == 200


async def test_unusable_certificates_are_refused(server: Server, alice: Identity, folder: Path) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    early = make_identity(folder, "early", starts=timedelta(days=1), ends=timedelta(days=2))
    late = make_identity(folder, "late", starts=timedelta(days=-2), ends=timedelta(days=-1))
    weak = make_identity(folder, "weak", key=rsa.generate_private_key(65537, 1024))
    for identity, reason in (
        (early, "is not valid before"),
        (late, "expired on"),
        (weak, "RSA key has 1024 bits: use 2048 or more"),
    ):
        added = await server.ask("POST", "", {**CLIENT, "certificate": identity.pem}, identity=alice)
        renewed = await server.ask(
            "PATCH", f"/{alice.fingerprint}", {"certificate": identity.pem}, identity=alice
        )
        for reply in (added, renewed):
            assert reply.status == 400
            assert reason in reply.error
    assert len(await server.manager.list(EVERYTHING)) == 1


# ---- tokens


async def issue(server: Server, by: Identity, **grant: Any) -> tuple[str, Operation]:
    """Return a token's text, as clients make it of the operation, and its operation."""
    reply = await server.ask("POST", "", {**CLIENT, "token": True, **grant}, identity=by)
    assert reply.status == 202, reply.body
    record = reply.metadata
    assert (record["class"], record["status"], record["may_cancel"]) == ("token", "Running", True)
    said = record["metadata"]
    token = {
        "client_name": said["request"]["name"],
        "fingerprint": said["fingerprint"],
        "addresses": said["addresses"],
        "secret": said["secret"],
        "expires_at": said.get("expiresAt", "0001-01-01T00:00:00Z"),
    }
    text = b64encode(json.dumps(token).encode()).decode()
    return text, server.services.operations.get(EVERYTHING, record["id"])


async def test_a_token_is_used_once_and_grants_what_it_says(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    token, operation = await issue(server, alice, name="desk", restricted=True, projects=["default"])
    bob, carol = make_identity(folder, "bob"), make_identity(folder, "carol")
    more = {"password": token, "name": "other", "restricted": False, "projects": [], "certificate": carol.pem}
    assert (await server.ask("POST", "", more, identity=bob)).status == 201
    assert await operation.wait(30)
    assert operation.status == "Success"
    row = await server.manager.get(EVERYTHING, bob.fingerprint)
    assert (row.name, row.type, row.restricted, row.projects) == ("desk", "client", True, ["default"])
    refused(await server.ask("POST", "", {"password": token}, identity=carol), 403, INVALID_TOKEN)
    assert len(await server.manager.list(EVERYTHING)) == 2


async def test_a_token_as_clients_of_incus_send_it(server: Server, alice: Identity, folder: Path) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    token, _ = await issue(server, alice, name="desk")
    bob = make_identity(folder, "bob")
    refused(await server.ask("POST", "", {"trust_token": "guess"}, identity=bob), 403, "not authorized")
    assert (await server.ask("POST", "", {"trust_token": token}, identity=bob)).status == 201
    assert (await server.manager.get(EVERYTHING, bob.fingerprint)).name == "desk"


async def test_a_token_used_by_many_at_once_lets_one_in(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    token, _ = await issue(server, alice, name="desk")
    clients = [make_identity(folder, f"client {n}") for n in range(6)]
    asked = [server.ask("POST", "", {"password": token}, identity=client) for client in clients]
    statuses = sorted([reply.status for reply in await asyncio.gather(*asked)])
    assert statuses == [201, 403, 403, 403, 403, 403]
    assert len(await server.manager.list(EVERYTHING)) == 2


async def test_a_token_survives_a_client_that_cannot_use_it(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    token, operation = await issue(server, alice, name="desk")
    old = make_identity(folder, "old", starts=timedelta(days=-2), ends=timedelta(days=-1))
    assert (await server.ask("POST", "", {"password": token}, identity=old)).status == 400
    refused(await server.ask("POST", "", {"password": token}), 400, "No client certificate provided")
    assert not operation.ended
    bob = make_identity(folder, "bob")
    assert (await server.ask("POST", "", {"password": token}, identity=bob)).status == 201


async def test_revoked_and_expired_tokens_are_refused(server: Server, alice: Identity, folder: Path) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    bob = make_identity(folder, "bob")
    revoked, operation = await issue(server, alice, name="revoked")
    operation.cancel()
    assert await operation.wait(30)
    await server.services.server.edit(merge(ServerPut(config={TOKEN_EXPIRY: "1S"})), any_state)
    expired, operation = await issue(server, alice, name="expired")
    assert "expiresAt" in operation.metadata
    assert await operation.wait(30)
    assert (operation.status, operation.error) == ("Cancelled", "The token has expired")
    for token in (revoked, expired, revoked[:-8] + "AAAAAAA="):
        reply = await server.ask("POST", "", {"password": token}, identity=bob)
        assert reply.status == 403
        assert "certificate" not in reply.error
    assert (await server.ask("GET", identity=bob)).status == 403


async def test_wrong_tokens_are_counted_as_guesses_but_do_not_stop_the_right_one(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    token, _ = await issue(server, alice, name="desk")
    wrong = b64encode(json.dumps({"fingerprint": "f", "addresses": ["a"], "secret": "s"}).encode()).decode()
    bob = make_identity(folder, "bob")
    errors = [(await server.ask("POST", "", {"password": wrong}, identity=bob)).error for _ in range(11)]
    assert errors[:10] == [INVALID_TOKEN] * 10
    assert "Too many wrong passwords" in errors[10]
    assert (await server.ask("POST", "", {"password": token}, identity=bob)).status == 201


async def test_strangers_and_restricted_clients_get_no_tokens(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice", restricted=True, projects=["default"])
    body = {**SESAME, "name": "x", "token": True}
    for identity in (alice, make_identity(folder, "bob"), None):
        refused(await server.ask("POST", "", body, identity=identity), 403, "not authorized")
    assert server.services.operations.all(EVERYTHING) == []


async def test_no_tokens_without_an_address(server: Server, alice: Identity) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    server.services.daemon.addresses = []
    reply = await server.ask("POST", "", {**CLIENT, "token": True}, identity=alice)
    assert reply.status == 400
    assert "set core.https_address first" in reply.error


async def test_secrets_are_not_shown_to_restricted_clients(server: Server, alice: Identity) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    caller = server.manager.store.identify(alice.fingerprint, "")
    scope = scope_of(replace(caller, projects=frozenset({"default"})))
    events: EventHub = server.services.events
    with events.subscribe(scope=scope) as heard, events.subscribe() as all_heard:
        _, operation = await issue(server, alice, name="desk")
        assert server.services.operations.all(scope) == []
        with pytest.raises(NotFound):
            server.services.operations.get(scope, operation.id)
        actions = [json.loads(await anext(all_heard))["metadata"] for _ in range(3)]
        assert actions[2]["action"] == "certificate-token-created"
        assert actions[2]["requestor"]["username"] == alice.fingerprint
        events.close()
        assert [text async for text in heard] == []


async def test_a_token_ends_with_the_names_of_its_projects(
    server: Server, alice: Identity, folder: Path
) -> None:
    await server.manager.add(parse_certificate(alice.pem), "alice")
    database = server.services.database
    row = ProjectRow(id=0, name="web", description="", config={})
    project = await database.write("test", project_rows.insert, row)
    token, operation = await issue(server, alice, name="desk", restricted=True, projects=["web"])
    _, other = await issue(server, alice, name="other", restricted=True, projects=["default"])
    await server.services.join_tokens.follow_projects()
    assert not operation.ended
    await database.write("test", project_rows.rename, project, "net")
    await server.services.join_tokens.follow_projects()
    bob = make_identity(folder, "bob")
    refused(await server.ask("POST", "", {"password": token}, identity=bob), 403, INVALID_TOKEN)
    assert await operation.wait(30)
    assert not other.ended


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: b64encode(data).decode()))
def test_any_text_is_a_token_or_a_password(text: str) -> None:
    assert parse_token(text) is None


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.text(), min_size=1))
def test_tokens_are_read_as_they_were_written(fingerprint: str, secret: str, addresses: list[str]) -> None:
    written = {"fingerprint": fingerprint, "secret": secret, "addresses": addresses, "expires_at": "x"}
    found = parse_token(b64encode(json.dumps(written).encode()).decode())
    assert found is not None
    assert (found.fingerprint, found.secret, found.addresses) == (fingerprint, secret, addresses)
    assert secret not in repr(found) or secret in "CertificateAddToken(client_name='')"
