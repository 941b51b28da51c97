"""The trust password: who comes in by it, how guessing is limited, and what a stranger can learn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import prepared
from utsuwa.core.errors import Forbidden, Unavailable
from utsuwa.db.database import Database
from utsuwa.security import trust_password
from utsuwa.security.passwords import UNKNOWN_PASSWORD, hash_password
from utsuwa.security.server_config import TRUST_PASSWORD, ServerConfig
from utsuwa.security.trust_password import TrustPassword
from utsuwa.wire.edits import any_state, merge
from utsuwa.wire.server import ServerPut


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[ServerConfig]:
    database = await Database.open(prepared.sqlite(tmp_path / "utsuwa.db"))
    yield ServerConfig(database)
    await database.close()


@pytest.fixture
async def trust(config: ServerConfig) -> TrustPassword:
    return TrustPassword(config)


async def test_the_password_opens_the_door(
    trust: TrustPassword, config: ServerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await config.edit(merge(ServerPut(config={TRUST_PASSWORD: "sesame"})), any_state)
    await trust.check("sesame", "10.0.0.1:5")
    for wrong in ("sesam", "", "sesame ", config.value(TRUST_PASSWORD)):
        with pytest.raises(Forbidden, match=r"\Anot authorized\Z"):
            await trust.check(wrong, "10.0.0.1:5")
    assert "wrong trust password" in caplog.text
    assert "sesam" not in caplog.text


async def test_without_a_password_the_door_stays_shut(trust: TrustPassword) -> None:
    for password in ("", "x"):
        with pytest.raises(Forbidden, match=r"\Anot authorized\Z"):
            await trust.check(password, "10.0.0.1:5")


async def test_guessing_is_limited_also_all_at_once(
    trust: TrustPassword, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await config.edit(merge(ServerPut(config={TRUST_PASSWORD: "sesame"})), any_state)
    checked = []

    def wrong(password: str, stored: str) -> bool:
        checked.append(password)
        return False

    monkeypatch.setattr(trust_password, "verify_password", wrong)
    tries = [trust.check(str(n), "10.0.0.1:5") for n in range(30)]
    refused = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(r, Forbidden) for r in refused)
    assert len(checked) == 10
    with pytest.raises(Forbidden, match="Too many wrong passwords"):
        await trust.check("sesame", "10.0.0.1:6")
    monkeypatch.undo()
    await trust.check("sesame", "10.0.0.2:5")


async def test_concurrent_password_checks_are_limited(
    trust: TrustPassword, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await config.edit(merge(ServerPut(config={TRUST_PASSWORD: "sesame"})), any_state)
    monkeypatch.setattr(trust_password, "_CHECKS_WAITING", 1)
    tries = [trust.check("sesame", f"10.0.0.{n}:5") for n in range(3)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(r) for r in results] == [type(None), Unavailable, Unavailable]


async def test_a_missing_password_costs_as_much_as_a_wrong_one(
    trust: TrustPassword, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a reply must not tell whether there is a trust password."""
    checked = []

    def wrong(password: str, stored: str) -> bool:
        checked.append(stored.split("$")[:4])
        return False

    monkeypatch.setattr(trust_password, "verify_password", wrong)
    with pytest.raises(Forbidden, match=r"\Anot authorized\Z"):
        await trust.check("guess", "10.0.0.1:5")
    await config.edit(merge(ServerPut(config={TRUST_PASSWORD: "sesame"})), any_state)
    with pytest.raises(Forbidden, match=r"\Anot authorized\Z"):
        await trust.check("guess", "10.0.0.1:5")
    assert checked == [hash_password("x").split("$")[:4]] * 2
    assert [len(part) for part in UNKNOWN_PASSWORD.split("$")] == [
        len(part) for part in hash_password("x").split("$")
    ]


async def test_a_thousand_guesses_do_not_hold_up_other_addresses(
    trust: TrustPassword, config: ServerConfig
) -> None:
    await config.edit(merge(ServerPut(config={TRUST_PASSWORD: "sesame"})), any_state)
    guesses = [trust.check(f"guess {n}", "10.0.0.1:5") for n in range(1000)]
    refused, other = await asyncio.gather(
        asyncio.gather(*guesses, return_exceptions=True), trust.check("sesame", "10.0.0.2:5")
    )
    assert other is None
    assert [str(r) for r in refused].count("not authorized") == 10
    assert sum("Too many wrong passwords" in str(r) for r in refused) == 990
