"""Sessions of the web page: who may begin one, what it needs, and when it ends."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.tls import Identity, make_identity
from utsuwa.core.errors import Forbidden, InvalidRequest
from utsuwa.db.certificates import CertificateRow
from utsuwa.security.authorization import Caller, tls_caller, unix_caller
from utsuwa.security.trust_store import TrustStore
from utsuwa.security.web_sessions import SESSION_TIME, TOKEN_TIME, Opened, WebSessions

ROOT = unix_caller(0, "root")
SECOND = timedelta(seconds=1)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trust(clock: Clock) -> TrustStore:
    return TrustStore(clock)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "web-sessions.json"


@pytest.fixture
def sessions(trust: TrustStore, file: Path, clock: Clock) -> WebSessions:
    return WebSessions(trust, file, clock)


async def begin(
    sessions: WebSessions, caller: Caller = ROOT, der: bytes = b"", *, local: bool = True
) -> Opened:
    return await sessions.begin(sessions.issue(caller, der, local=local).secret, local=local)


def found(sessions: WebSessions, opened: Opened, *, local: bool = True) -> Caller | None:
    return sessions.caller(opened.cookie, opened.key, "127.0.0.1:1", local=local)


def trusting(identity: Identity, *, projects: list[str] | None = None) -> list[CertificateRow]:
    return [
        CertificateRow(
            id=1,
            fingerprint=identity.fingerprint,
            type="client",
            name="laptop",
            certificate=identity.pem,
            restricted=projects is not None,
            projects=projects or [],
        )
    ]


async def test_a_session_has_the_rights_of_the_unix_user_but_not_of_root(sessions: WebSessions) -> None:
    caller = found(sessions, await begin(sessions))
    assert caller == Caller(
        trusted=True, root=False, protocol="unix", username="root", address="127.0.0.1:1", web=True
    )


async def test_neither_secret_grants_anything_alone(sessions: WebSessions) -> None:
    opened, other = await begin(sessions), await begin(sessions)
    for cookie, key in (
        (opened.cookie, ""),
        ("", opened.key),
        (opened.cookie, other.key),
        (opened.key, opened.cookie),
        (opened.cookie, "\udcff"),
    ):
        assert sessions.caller(cookie, key, "", local=True) is None


async def test_a_token_works_once(sessions: WebSessions) -> None:
    token = sessions.issue(ROOT, b"", local=True)
    assert sessions.is_waiting(token.id)
    await sessions.begin(token.secret, local=True)
    assert not sessions.is_waiting(token.id)
    for secret in (token.secret, token.id, "", "\udcff", "x" * 10_000):
        with pytest.raises(Forbidden, match="has been used or has expired"):
            await sessions.begin(secret, local=True)


async def test_a_token_expires(sessions: WebSessions, clock: Clock) -> None:
    token = sessions.issue(ROOT, b"", local=True)
    clock.time += TOKEN_TIME
    assert not sessions.is_waiting(token.id)
    with pytest.raises(Forbidden):
        await sessions.begin(token.secret, local=True)


async def test_a_session_expires(sessions: WebSessions, clock: Clock) -> None:
    opened = await begin(sessions)
    clock.time += SESSION_TIME - SECOND
    assert found(sessions, opened)
    assert sessions.local_seconds == 1
    clock.time += SECOND
    assert found(sessions, opened) is None
    assert sessions.local_seconds == 0


async def test_a_session_ends_with_its_cookie(sessions: WebSessions) -> None:
    opened, other = await begin(sessions), await begin(sessions)
    await sessions.end("another cookie")
    await sessions.end(opened.cookie)
    assert found(sessions, opened) is None
    assert found(sessions, other)


async def test_local_sessions_and_those_over_https_are_apart(sessions: WebSessions) -> None:
    token = sessions.issue(ROOT, b"", local=True)
    with pytest.raises(Forbidden):
        await sessions.begin(token.secret, local=False)
    opened = await sessions.begin(token.secret, local=True)
    assert found(sessions, opened, local=False) is None


async def test_who_may_not_have_a_token(sessions: WebSessions) -> None:
    stranger = tls_caller(fingerprint="f", address="", trusted=False)
    with pytest.raises(Forbidden):
        sessions.issue(stranger, b"", local=False)
    session = found(sessions, await begin(sessions))
    assert session
    with pytest.raises(Forbidden):  # it would never end
        sessions.issue(session, b"", local=True)
    with pytest.raises(InvalidRequest, match="for local users"):
        sessions.issue(tls_caller(fingerprint="f", address="", trusted=True), b"", local=True)


async def test_a_session_has_what_its_certificate_grants_now(
    sessions: WebSessions, trust: TrustStore, tmp_path: Path
) -> None:
    identity = make_identity(tmp_path)
    trust.load(trusting(identity, projects=["one"]))
    caller = trust.identify(identity.fingerprint, "", identity.der)
    opened = await begin(sessions, caller, identity.der, local=False)
    held = found(sessions, opened, local=False)
    assert held
    assert (held.projects, held.fingerprint, held.web) == (frozenset({"one"}), identity.fingerprint, True)
    trust.load(trusting(identity))
    assert found(sessions, opened, local=False) is not None
    assert found(sessions, opened, local=False).projects is None  # type: ignore[union-attr]
    trust.load([])
    assert found(sessions, opened, local=False) is None


async def test_sessions_survive_a_restart(
    sessions: WebSessions, trust: TrustStore, file: Path, clock: Clock
) -> None:
    """Only digests are stored, for the daemon alone to read; tokens are not."""
    await sessions.use_address("name.localhost", 4000)
    opened, token = await begin(sessions), sessions.issue(ROOT, b"", local=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not any(secret in file.read_text() for secret in (opened.cookie, opened.key, token.secret))
    later = WebSessions(trust, file, clock)
    await later.load()
    assert later.address == ("name.localhost", 4000)
    assert found(later, opened)
    with pytest.raises(Forbidden):
        await later.begin(token.secret, local=True)


async def test_sessions_of_another_address_are_over(sessions: WebSessions) -> None:
    await sessions.use_address("name.localhost", 4000)
    local, remote = await begin(sessions), await begin(sessions, local=False)
    await sessions.use_address("other.localhost", 4001)
    assert found(sessions, local) is None
    assert found(sessions, remote, local=False)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"sessions": 3}', b"\xff", b"[]"])
async def test_a_damaged_file_costs_the_sessions(
    sessions: WebSessions, file: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(damage)
    await sessions.load()
    assert "sign in again" in caplog.text
    assert found(sessions, await begin(sessions))


async def test_the_number_of_tokens_and_sessions_is_bounded(sessions: WebSessions) -> None:
    first = sessions.issue(ROOT, b"", local=True)
    opened = await begin(sessions)
    for _ in range(200):
        sessions.issue(ROOT, b"", local=True)
    assert not sessions.is_waiting(first.id)
    for _ in range(200):
        await begin(sessions)
    assert found(sessions, opened) is None
