"""PKI mode: which clients' certificates the authority in `server.ca` accepts, and its revocations."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from tests.support.tls import Identity, TestAuthority, make_identity
from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.db.certificates import CertificateRow
from utsuwa.security.authority import Authority
from utsuwa.security.client_certificate import parse_certificate
from utsuwa.security.trust_store import TrustStore

FOR_CLIENTS = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
FOR_SERVERS = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
UNKNOWN = (x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\5\0"), True)
NO_AUTHORITY = (x509.BasicConstraints(ca=False, path_length=None), True)
AUTHORITY = (x509.BasicConstraints(ca=True, path_length=None), True)


@pytest.fixture(scope="module")
def ours() -> TestAuthority:
    return TestAuthority()


@pytest.fixture
def paths(tmp_path: Path, ours: TestAuthority) -> StatePaths:
    paths = StatePaths(tmp_path)
    paths.server_ca.write_bytes(ours.pem)
    return paths


def loaded(paths: StatePaths) -> Authority:
    authority = Authority.load(paths)
    assert authority is not None
    return authority


def test_no_file_means_no_authority(tmp_path: Path) -> None:
    assert Authority.load(StatePaths(tmp_path)) is None


def test_certificates_that_it_issued_for_clients_are_accepted(
    paths: StatePaths, ours: TestAuthority, tmp_path: Path
) -> None:
    authority = loaded(paths)
    for extensions in ((), (FOR_CLIENTS,), (FOR_CLIENTS, NO_AUTHORITY)):
        assert authority.accepts(ours.issue(tmp_path, "alice", *extensions).der)


def test_all_others_are_refused(paths: StatePaths, ours: TestAuthority, tmp_path: Path) -> None:
    authority = loaded(paths)
    foreign = TestAuthority()
    assert foreign.certificate.subject == ours.certificate.subject
    refused = {
        "nothing": b"",
        "no certificate": b"abc",
        "self-signed": make_identity(tmp_path, "alice").der,
        "the authority's own name, self-signed": make_identity(tmp_path, "authority").der,
        "a foreign authority of the same name": foreign.issue(tmp_path, "alice", FOR_CLIENTS).der,
        "expired": ours.issue(tmp_path, "old", starts=timedelta(-2), ends=timedelta(-1)).der,
        "not yet valid": ours.issue(tmp_path, "new", starts=timedelta(hours=1)).der,
        "a server's": ours.issue(tmp_path, "server", FOR_SERVERS).der,
        "another authority": ours.issue(tmp_path, "sub", AUTHORITY).der,
        "an unknown critical extension": ours.issue(tmp_path, "odd", UNKNOWN).der,
        "the authority itself": ours.certificate.public_bytes(Encoding.DER),
    }
    assert [what for what, der in refused.items() if authority.accepts(der)] == []


def test_an_authority_that_has_expired_accepts_nothing(tmp_path: Path) -> None:
    expired = TestAuthority(ends=timedelta(seconds=-1))
    paths = StatePaths(tmp_path)
    paths.server_ca.write_bytes(expired.pem)
    assert not loaded(paths).accepts(expired.issue(tmp_path, "alice").der)


def test_validity_is_judged_each_time(ours: TestAuthority, tmp_path: Path) -> None:
    moment = datetime.now(UTC)
    authority = Authority([ours.certificate], tmp_path / "ca.crl", now=lambda: moment)
    alice = ours.issue(tmp_path, "alice", ends=timedelta(hours=1))
    assert authority.accepts(alice.der)
    moment += timedelta(hours=2)
    assert not authority.accepts(alice.der)


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_revoked_certificates_are_refused(paths: StatePaths, tmp_path: Path, encoding: Encoding) -> None:
    authority = TestAuthority()
    paths.server_ca.write_bytes(authority.pem)
    alice, bob = (authority.issue(tmp_path, name) for name in ("alice", "bob"))
    authority.revoke(alice)
    paths.ca_crl.write_bytes(authority.revocations(encoding))
    judge = loaded(paths)
    assert (judge.accepts(alice.der), judge.accepts(bob.der)) == (False, True)


def test_several_authorities_each_with_its_list(
    paths: StatePaths, ours: TestAuthority, tmp_path: Path
) -> None:
    other = TestAuthority("other")
    alice, bob = other.issue(tmp_path, "alice"), ours.issue(tmp_path, "bob")
    other.revoke(alice)
    paths.server_ca.write_bytes(ours.pem + other.pem)
    paths.ca_crl.write_bytes(ours.revocations() + other.revocations())
    judge = loaded(paths)
    assert (judge.accepts(alice.der), judge.accepts(bob.der)) == (False, True)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "contains no list|Cannot use"),
        (b"rubbish", "Cannot use"),
        (b"-----BEGIN X509 CRL-----\nrubbish\n-----END X509 CRL-----\n", "Cannot use"),
        (b"-----BEGIN X509 CRL-----\n", "contains no list"),
        (TestAuthority().revocations(), "not signed by the authority"),
        (TestAuthority("other").revocations(), "not signed by the authority"),
    ],
)
def test_it_does_not_start_with_an_invalid_list(paths: StatePaths, content: bytes, reason: str) -> None:
    paths.ca_crl.write_bytes(content)
    with pytest.raises(HostError, match=reason):
        Authority.load(paths)


def test_it_does_not_start_without_an_authority_in_the_file(paths: StatePaths, tmp_path: Path) -> None:
    for content, reason in (
        (b"rubbish", "does not contain a certificate in PEM"),
        (make_identity(tmp_path, "x").pem.encode(), "'CN=x', which is not a certificate authority"),
    ):
        paths.server_ca.write_bytes(content)
        with pytest.raises(HostError, match=reason):
            Authority.load(paths)
    paths.server_ca.unlink()
    paths.server_ca.mkdir()
    with pytest.raises(HostError, match="Cannot read"):
        Authority.load(paths)


async def test_a_new_list_is_in_force_soon_and_a_bad_one_never(
    paths: StatePaths, ours: TestAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = TestAuthority()
    paths.server_ca.write_bytes(authority.pem)
    alice, bob = authority.issue(tmp_path, "alice"), authority.issue(tmp_path, "bob")
    judge = loaded(paths)
    assert judge.accepts(alice.der)
    await judge.follow()
    authority.revoke(alice)
    replace(paths.ca_crl, authority.revocations())
    await judge.follow()
    assert (judge.accepts(alice.der), judge.accepts(bob.der)) == (False, True)
    for content in (b"rubbish", ours.revocations(), None):
        caplog.clear()
        replace(paths.ca_crl, content)
        await judge.follow()
        await judge.follow()
        assert [r.levelname for r in caplog.records] == ["ERROR"]
        assert "the last valid list stays in force" in caplog.text
        assert not judge.accepts(alice.der)
    authority.revoke(bob)
    replace(paths.ca_crl, authority.revocations())
    await judge.follow()
    assert not judge.accepts(bob.der)


def replace(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
        return
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


def test_an_overdue_list_is_used_and_reported(
    paths: StatePaths, ours: TestAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    paths.ca_crl.write_bytes(ours.revocations())
    late = Authority([ours.certificate], paths.ca_crl, now=lambda: datetime.now(UTC) + timedelta(days=2))
    late._reload()
    assert "should have been updated" in caplog.text


# ---- with the trust store


def as_row(identity: Identity, *, restricted: bool = False) -> CertificateRow:
    return CertificateRow(
        id=0,
        fingerprint=identity.fingerprint,
        type="client",
        name="x",
        certificate=identity.pem,
        restricted=restricted,
    )


def test_the_store_needs_both_and_keeps_restrictions(
    paths: StatePaths, ours: TestAuthority, tmp_path: Path
) -> None:
    stored, held, unknown = (ours.issue(tmp_path, name) for name in ("stored", "held", "unknown"))
    foreign = make_identity(tmp_path, "foreign")
    trusts_issued = False
    store = TrustStore()
    store.require_issued_by(loaded(paths), lambda: trusts_issued)
    store.load([as_row(stored), as_row(held, restricted=True), as_row(foreign)])

    def trusted(identity: Identity) -> bool:
        return store.identify(identity.fingerprint, "", identity.der).trusted

    for everyone in (False, True):
        trusts_issued = everyone
        assert [trusted(i) for i in (stored, held, unknown, foreign)] == [True, True, everyone, False]
        assert store.identify(held.fingerprint, "", held.der).projects == frozenset()
        assert not store.identify(stored.fingerprint, "").trusted
    caller = store.identify(unknown.fingerprint, "1.2.3.4:5", unknown.der)
    assert (caller.username, caller.protocol, caller.projects) == (unknown.fingerprint, "tls", None)
    assert store.issued(parse_certificate(stored.pem))
    assert not store.issued(parse_certificate(foreign.pem))
    assert not store.identify("", "").trusted
