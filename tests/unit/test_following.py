"""What one member changes of what another one holds in memory: taken over, whatever fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.support.tls import make_identity
from utsuwa.core.errors import HostError, Unavailable
from utsuwa.daemon.following import Following
from utsuwa.db.database import Database
from utsuwa.operations.events import EventHub
from utsuwa.security.certificates import CertificateManager
from utsuwa.security.client_certificate import parse_certificate
from utsuwa.security.server_config import ServerConfig
from utsuwa.wire.edits import any_state
from utsuwa.wire.server import ServerPut


async def test_failed_listener_is_retried_without_delaying_others(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def note(name: str, error: Exception | None = None) -> None:
        calls.append(name)
        if error is not None:
            raise error

    away, odd = partial(note, "away", Unavailable("away")), partial(note, "odd", ValueError("odd"))
    following = Following([away, odd, partial(note, "last")], seconds=0.01)
    await following.stop()  # not begun yet: nothing to stop
    following.start()
    async with asyncio.timeout(30):
        while len(calls) < 6:
            await asyncio.sleep(0.01)
    await following.stop()
    assert calls[:6] == ["away", "odd", "last"] * 2
    assert "cannot apply a change of another member" in caplog.text


async def _set(server: ServerConfig, **values: str) -> None:
    config = {f"user.{key}": value for key, value in values.items()}

    def change(old: ServerPut) -> ServerPut:
        return ServerPut(config={**old.config, **config})

    await server.edit(change, any_state)


async def test_settings_of_members_do_not_undo_each_other(two: tuple[Database, Database]) -> None:
    one, other = ServerConfig(two[0]), ServerConfig(two[1])
    await one.load()
    await other.load()
    await _set(one, a="1")
    await _set(other, b="2")
    await one.follow_others()
    assert one.get() == other.get() == {"user.a": "1", "user.b": "2"}


async def test_listeners_receive_settings_of_other_members(
    two: tuple[Database, Database], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = ServerConfig(two[0]), ServerConfig(two[1])
    told: list[frozenset[str]] = []

    async def listen(changed: frozenset[str], _: Mapping[str, str]) -> None:
        told.append(changed)
        raise HostError("the address is taken here")

    other.on_change(listen)
    await one.load()
    await other.load()
    await _set(one, a="1")
    await other.follow_others()
    await other.follow_others()
    assert told == [frozenset({"user.a"})]
    assert other.get() == {"user.a": "1"}
    assert "the address is taken here" in caplog.text


async def test_trust_ends_on_all_members(two: tuple[Database, Database], tmp_path: Path) -> None:
    certificate = parse_certificate(make_identity(tmp_path).pem)
    managers = [CertificateManager(database, EventHub()) for database in two]
    await managers[0].add(certificate, "laptop")
    await managers[1].follow_others()
    assert managers[1].store.identify(certificate.fingerprint, "host").trusted
    await managers[0].delete(certificate.fingerprint)
    await managers[1].follow_others()
    assert not managers[1].store.identify(certificate.fingerprint, "host").trusted
