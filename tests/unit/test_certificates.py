"""Client certificates: parsing, the trust store, the manager with its password."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tls import Identity, make_identity
from utsuwa.core.errors import AlreadyExists, InvalidRequest, NotFound
from utsuwa.core.scope import EVERYTHING
from utsuwa.db import certificates as rows
from utsuwa.db.certificates import CertificateRow
from utsuwa.db.database import Database
from utsuwa.db.sqlite import Sqlite
from utsuwa.security.certificates import CertificateManager, default_name
from utsuwa.security.client_certificate import MAX_CERTIFICATE, parse_certificate, parse_der
from utsuwa.security.trust_store import TrustStore, format_address, host_of
from utsuwa.wire.certificates import CertificatePatch
from utsuwa.wire.edits import any_state, merge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def alice(folder: Path) -> Identity:
    return make_identity(folder, "alice")


@pytest.fixture(scope="module")
def bob(folder: Path) -> Identity:
    return make_identity(folder, "bob")


def as_row(identity: Identity, **changes: Any) -> CertificateRow:
    row = CertificateRow(
        id=0, fingerprint=identity.fingerprint, type="client", name="x", certificate=identity.pem
    )
    return replace(row, **changes)


# ---- parsing


def test_der_base64_and_pem_are_the_same_certificate(alice: Identity) -> None:
    encoded = b64encode(alice.der).decode()
    wrapped = "\n".join(encoded[i : i + 64] for i in range(0, len(encoded), 64))
    for text in (alice.pem, "\n" + alice.pem, encoded, wrapped):
        parsed = parse_certificate(text)
        assert parsed.fingerprint == alice.fingerprint
        assert parsed.pem == alice.pem
        assert parsed.common_name == "alice"
    assert parse_der(alice.der) == parse_certificate(alice.pem)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid certificate"),
        ("!!", "neither base64 of DER nor PEM"),
        ("YWJj", "Invalid certificate material"),
        ("é", "neither base64"),
        ("-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n", "neither base64"),
        ("-----BEGIN PRIVATE KEY-----\nYWJj\n-----END PRIVATE KEY-----\n", "neither base64"),
        ("A" * (MAX_CERTIFICATE + 1), "longer than 64 KiB"),
    ],
)
def test_invalid_certificates_are_rejected(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_certificate(text)


def test_trailing_bytes_are_refused(alice: Identity) -> None:
    with pytest.raises(InvalidRequest, match="Invalid certificate"):
        parse_der(alice.der + b"\0")


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: b64encode(data).decode())))
def test_any_text_is_refused_cleanly(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_certificate(text)


def test_default_names(alice: Identity, folder: Path) -> None:
    assert default_name(parse_certificate(alice.pem), "10.0.0.1:5") == "alice"
    nameless = parse_certificate(make_identity(folder, "").pem)
    assert default_name(nameless, "10.0.0.1:5") == "10.0.0.1"
    assert default_name(nameless, "[fe80::1]:5") == "fe80::1"
    assert default_name(nameless, "@") == nameless.fingerprint[:12]
    odd = parse_certificate(make_identity(folder, "a\nb").pem)
    assert default_name(odd, "10.0.0.1:5") == "10.0.0.1"


def test_addresses_as_text() -> None:
    assert format_address(("10.0.0.1", 5)) == "10.0.0.1:5"
    assert format_address(("::1", 5, 0, 0)) == "[::1]:5"
    assert format_address(None) == ""
    assert format_address("") == ""
    assert host_of("[::1]:5") == "::1"


# ---- the trust store


class Clock:
    now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


def test_only_stored_certificates_are_trusted(alice: Identity, bob: Identity) -> None:
    store = TrustStore()
    store.load([as_row(alice)])
    caller = store.identify(alice.fingerprint, "10.0.0.1:5")
    assert (caller.trusted, caller.username, caller.protocol) == (True, alice.fingerprint, "tls")
    assert caller.projects is None
    assert not caller.root
    for fingerprint in (bob.fingerprint, "", alice.fingerprint[:-1]):
        assert not store.identify(fingerprint, "10.0.0.1:5").trusted
    store.load([])
    assert not store.identify(alice.fingerprint, "10.0.0.1:5").trusted


def test_validity_is_judged_each_time(alice: Identity) -> None:
    clock = Clock()
    store = TrustStore(now=clock)
    store.load([as_row(alice)])
    for days, trusted in ((0, True), (2, False), (-2, False), (0, True)):
        clock.now = Clock.now + timedelta(days=days)
        assert store.identify(alice.fingerprint, "").trusted is trusted


def test_other_types_do_not_open_the_api(alice: Identity) -> None:
    store = TrustStore()
    store.load([as_row(alice, type="metrics")])
    assert not store.identify(alice.fingerprint, "").trusted


def test_restricted_ones_are_held_to_their_projects(alice: Identity) -> None:
    store = TrustStore()
    store.load([as_row(alice, restricted=True, projects=["one"])])
    assert store.identify(alice.fingerprint, "").projects == frozenset({"one"})


def test_rows_that_are_no_certificates_are_left_out(
    alice: Identity, bob: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    store = TrustStore()
    store.load([as_row(alice, certificate="rubbish"), as_row(bob)])
    assert not store.identify(alice.fingerprint, "").trusted
    assert store.identify(bob.fingerprint, "").trusted
    assert alice.fingerprint[:12] in caplog.text


def test_a_row_is_trusted_by_its_certificate_not_by_its_label(alice: Identity, bob: Identity) -> None:
    """A fingerprint column that does not fit the certificate beside it makes nobody trusted."""
    store = TrustStore()
    store.load([as_row(alice, fingerprint=bob.fingerprint)])
    assert not store.identify(bob.fingerprint, "").trusted


# ---- the manager


class Events:
    def __init__(self) -> None:
        self.published: list[tuple[str, str]] = []

    def publish_lifecycle(self, action: str, source: str, project: str = "", context: Any = None) -> None:
        self.published.append((action, source))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(Sqlite(tmp_path / "utsuwa.db"))
    yield opened
    await opened.close()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def manager(database: Database, events: Events) -> CertificateManager:
    made = CertificateManager(database, events)
    await made.load()
    return made


def trusted(manager: CertificateManager, identity: Identity) -> bool:
    return manager.store.identify(identity.fingerprint, "10.0.0.1:5").trusted


async def test_the_life_of_a_certificate(
    manager: CertificateManager, events: Events, alice: Identity, bob: Identity
) -> None:
    row = await manager.add(parse_certificate(alice.pem), "laptop")
    url = f"/1.0/certificates/{alice.fingerprint}"
    assert trusted(manager, alice)
    assert [(r.name, r.fingerprint, r.type) for r in await manager.list(EVERYTHING)] == [
        ("laptop", row.fingerprint, "client")
    ]
    assert (
        await manager.get(EVERYTHING, alice.fingerprint[:10].upper()) == (await manager.list(EVERYTHING))[0]
    )
    await manager.edit(EVERYTHING, alice.fingerprint[:10], merge(CertificatePatch(name="desk")), any_state)
    assert (await manager.get(EVERYTHING, alice.fingerprint)).name == "desk"
    await manager.edit(EVERYTHING, alice.fingerprint, merge(CertificatePatch(certificate=bob.pem)), any_state)
    assert (trusted(manager, alice), trusted(manager, bob)) == (False, True)
    await manager.delete(bob.fingerprint[:12])
    assert not trusted(manager, bob)
    assert await manager.list(EVERYTHING) == []
    assert events.published == [
        ("certificate-created", url),
        ("certificate-updated", url),
        ("certificate-updated", f"/1.0/certificates/{bob.fingerprint}"),
        ("certificate-deleted", f"/1.0/certificates/{bob.fingerprint}"),
    ]


async def test_the_store_is_read_at_start(
    manager: CertificateManager, database: Database, alice: Identity
) -> None:
    await manager.add(parse_certificate(alice.pem), "laptop")
    again = CertificateManager(database, Events())
    assert not trusted(again, alice)
    await again.load()
    assert trusted(again, alice)


async def test_duplicates_are_refused(
    manager: CertificateManager, events: Events, alice: Identity, bob: Identity
) -> None:
    await manager.add(parse_certificate(alice.pem), "one")
    with pytest.raises(AlreadyExists, match="Certificate already in trust store"):
        await manager.add(parse_certificate(alice.pem), "two")
    await manager.add(parse_certificate(bob.pem), "two")
    events.published.clear()
    with pytest.raises(AlreadyExists):
        await manager.edit(
            EVERYTHING, bob.fingerprint, merge(CertificatePatch(certificate=alice.pem)), any_state
        )
    assert events.published == []
    assert {r.fingerprint: r.name for r in await manager.list(EVERYTHING)} == {
        alice.fingerprint: "one",
        bob.fingerprint: "two",
    }
    assert trusted(manager, bob)


async def test_expired_ones_and_bad_names_are_refused(
    manager: CertificateManager, alice: Identity, folder: Path
) -> None:
    old = make_identity(folder, starts=timedelta(days=-2), ends=timedelta(days=-1))
    with pytest.raises(InvalidRequest, match="expired on"):
        await manager.add(parse_certificate(old.pem), "old")
    for name in ("a\nb", "a\x1b[31m", "x" * 256):
        with pytest.raises(InvalidRequest, match="certificate's name"):
            await manager.add(parse_certificate(alice.pem), name)
    assert await manager.list(EVERYTHING) == []


async def test_unknown_and_ambiguous_fingerprints(
    manager: CertificateManager, database: Database, alice: Identity, bob: Identity
) -> None:
    for prefix in ("ffff", "zz", "", "../x", "a" * 65, "%"):
        with pytest.raises(NotFound, match=r"\ACertificate not found\Z"):
            await manager.get(EVERYTHING, prefix)
        with pytest.raises(NotFound):
            await manager.delete(prefix)
    for row in (
        as_row(alice, fingerprint="ab1" + alice.fingerprint[3:]),
        as_row(bob, fingerprint="ab2" + bob.fingerprint[3:]),
    ):
        await database.write("test", rows.insert, row)
    with pytest.raises(InvalidRequest, match="More than one certificate"):
        await manager.get(EVERYTHING, "ab")


async def test_cancelled_request_leaves_store_and_database_consistent(
    manager: CertificateManager, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.add(parse_certificate(alice.pem), "laptop")
    reached, go_on = threading.Event(), threading.Event()
    delete = rows.delete

    def slow(*arguments: Any) -> None:
        delete(*arguments)
        reached.set()
        assert go_on.wait(30)

    monkeypatch.setattr(rows, "delete", slow)
    task = asyncio.create_task(manager.delete(alice.fingerprint))
    assert await asyncio.to_thread(reached.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await manager.list(EVERYTHING) == []
    assert not trusted(manager, alice)
