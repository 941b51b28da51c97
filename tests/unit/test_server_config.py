"""The server's config: whole or not at all, secrets never shown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import prepared
from utsuwa.core.errors import InvalidConfig, OutOfSpace
from utsuwa.db import config as rows
from utsuwa.db.database import Database
from utsuwa.security.passwords import MAX_PASSWORD, verify_password
from utsuwa.security.server_config import TRUST_PASSWORD, ServerConfig
from utsuwa.wire.edits import any_state, merge, replace
from utsuwa.wire.server import ServerPut

ADDRESS = "core.https_address"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(prepared.sqlite(tmp_path / "utsuwa.db"))
    yield opened
    await opened.close()


@pytest.fixture
async def config(database: Database) -> ServerConfig:
    made = ServerConfig(database)
    await made.load()
    return made


async def stored(database: Database) -> dict[str, str]:
    return await database.read("test", rows.load)


async def patch(config: ServerConfig, values: dict[str, Any]) -> frozenset[str]:
    return await config.edit(merge(ServerPut(config=values)), any_state)


async def put(config: ServerConfig, values: dict[str, Any]) -> frozenset[str]:
    return await config.edit(replace(ServerPut(config=values)), any_state)


class Recorder:
    """A listener that remembers what it was told, and refuses where it should."""

    def __init__(self, refuse: str = "") -> None:
        self.told: list[tuple[frozenset[str], dict[str, str]]] = []
        self.refuse = refuse

    async def __call__(self, changed: frozenset[str], new: Mapping[str, str]) -> None:
        if self.refuse and new.get(ADDRESS) == self.refuse:
            raise InvalidConfig("Cannot listen there")
        self.told.append((changed, dict(new)))


async def test_patch_merges_and_put_replaces(config: ServerConfig, database: Database) -> None:
    assert await patch(config, {ADDRESS: ":8443", "user.a": "1"}) == {ADDRESS, "user.a"}
    assert await patch(config, {"user.b": "2", "user.a": ""}) == {"user.a", "user.b"}
    assert config.get() == {ADDRESS: ":8443", "user.b": "2"}
    assert await put(config, {"user.c": "3"}) == {ADDRESS, "user.b", "user.c"}
    assert config.get() == {"user.c": "3"} == await stored(database)
    assert await put(config, {}) == {"user.c"}
    assert config.get() == {}


async def test_unchanged_config_notifies_no_listener(config: ServerConfig) -> None:
    await patch(config, {"user.a": "1"})
    listener = Recorder()
    config.on_change(listener)
    assert await patch(config, {"user.a": "1", "user.b": ""}) == frozenset()
    assert listener.told == []


async def test_another_start_reads_it_back(config: ServerConfig, database: Database) -> None:
    await patch(config, {ADDRESS: ":8443"})
    again = ServerConfig(database)
    await again.load()
    assert again.get() == {ADDRESS: ":8443"}


async def test_values_fall_back_to_defaults(config: ServerConfig) -> None:
    assert config.value("images.auto_update_interval") == "6"
    assert config.flag("images.auto_update_cached") is True
    await patch(config, {"images.auto_update_interval": "12", "images.auto_update_cached": "no"})
    assert config.value("images.auto_update_interval") == "12"
    assert config.flag("images.auto_update_cached") is False
    assert config.value("user.unset") == ""


async def test_null_unsets_and_true_is_a_boolean(config: ServerConfig) -> None:
    await patch(config, {"user.a": "1"})
    await patch(config, {"user.a": None, "images.auto_update_cached": True})
    assert config.get() == {"images.auto_update_cached": "true"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"core.nosuch": "1"}, "Unknown configuration key 'core.nosuch' for the server"),
        ({"images.auto_update_interval": "often"}, "'images.auto_update_interval': must be a whole number"),
        ({ADDRESS: "no host:1"}, "must be an address"),
        ({"user.a": 3}, "Invalid value for 'user.a': must be a string"),
        ({"user.a": ["x"]}, "Invalid value for 'user.a': must be a string"),
        ({TRUST_PASSWORD: "x" * (MAX_PASSWORD + 1)}, "longer than"),
        ({TRUST_PASSWORD: "a\0b"}, "invalid characters"),
        ({TRUST_PASSWORD: "\ud800"}, "invalid characters"),
    ],
)
async def test_invalid_changes_are_rejected_completely(
    config: ServerConfig, database: Database, change: dict[str, object], reason: str
) -> None:
    await patch(config, {"user.keep": "1"})
    for edit in (patch, put):
        with pytest.raises(InvalidConfig, match=reason):
            await edit(config, {"user.other": "2", **change})
    assert config.get() == {"user.keep": "1"} == await stored(database)


async def test_a_listener_that_refuses_undoes_all(config: ServerConfig, database: Database) -> None:
    await patch(config, {ADDRESS: ":1"})
    first, second = Recorder(), Recorder(refuse=":2")
    config.on_change(first)
    config.on_change(second)
    with pytest.raises(InvalidConfig, match="Cannot listen there"):
        await patch(config, {ADDRESS: ":2", "user.a": "1"})
    changed = frozenset({ADDRESS, "user.a"})
    assert first.told == [(changed, {ADDRESS: ":2", "user.a": "1"}), (changed, {ADDRESS: ":1"})]
    assert second.told == []
    assert config.get() == {ADDRESS: ":1"} == await stored(database)


async def test_a_database_that_fails_undoes_all(
    config: ServerConfig, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutOfSpace("No space left")

    monkeypatch.setattr(rows, "replace", full)
    listener = Recorder()
    config.on_change(listener)
    with pytest.raises(OutOfSpace):
        await patch(config, {"user.a": "1"})
    assert [new for _, new in listener.told] == [{"user.a": "1"}, {}]
    assert config.get() == {} == await stored(database)


async def test_cancelled_change_leaves_memory_and_database_consistent(
    config: ServerConfig, database: Database
) -> None:
    reached = asyncio.Event()

    async def slow(changed: frozenset[str], new: Mapping[str, str]) -> None:
        reached.set()
        await asyncio.sleep(0.02)

    config.on_change(slow)
    task = asyncio.create_task(patch(config, {"user.a": "1"}))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert config.get() == {"user.a": "1"} == await stored(database)


async def test_changes_are_serialized(config: ServerConfig) -> None:
    await asyncio.gather(*(patch(config, {f"user.{n}": str(n)}) for n in range(20)))
    assert config.get() == {f"user.{n}": str(n) for n in range(20)}


# ---- the trust password


async def test_the_password_is_hashed_and_shown_as_true(
    config: ServerConfig, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await patch(config, {TRUST_PASSWORD: "sesame"})
    assert config.get() == {TRUST_PASSWORD: True}
    in_database = (await stored(database))[TRUST_PASSWORD]
    assert in_database == config.value(TRUST_PASSWORD)
    assert verify_password("sesame", in_database)
    assert "sesame" not in in_database
    assert "sesame" not in caplog.text


async def test_shown_config_can_be_put_back(config: ServerConfig) -> None:
    await patch(config, {TRUST_PASSWORD: "sesame", "user.a": "1"})
    before = config.value(TRUST_PASSWORD)
    assert await put(config, {**config.get(), "user.a": "2"}) == {"user.a"}
    assert config.value(TRUST_PASSWORD) == before
    await patch(config, {TRUST_PASSWORD: True})
    assert config.value(TRUST_PASSWORD) == before


async def test_true_without_a_password_sets_none(config: ServerConfig) -> None:
    assert await patch(config, {TRUST_PASSWORD: True}) == frozenset()
    assert config.get() == {}


async def test_the_password_can_be_unset(config: ServerConfig) -> None:
    await patch(config, {TRUST_PASSWORD: "sesame"})
    await patch(config, {TRUST_PASSWORD: ""})
    assert config.get() == {}
    assert config.value(TRUST_PASSWORD) == ""


async def test_other_secrets_are_shown_as_true_too(config: ServerConfig) -> None:
    await patch(config, {"loki.auth.password": "sesame"})
    assert config.get() == {"loki.auth.password": True}
    assert config.value("loki.auth.password") == "sesame"


async def test_errors_do_not_quote_the_password(config: ServerConfig) -> None:
    secret = "s" * (MAX_PASSWORD + 1)
    with pytest.raises(InvalidConfig) as caught:
        await patch(config, {TRUST_PASSWORD: secret})
    assert "sss" not in str(caught.value)


async def test_stored_invalid_values_are_logged_and_do_not_block_changes(
    config: ServerConfig, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await database.write("test", rows.replace, {"core.was_known_once": "1"})
    await config.load()
    assert "core.was_known_once" in caplog.text
    await patch(config, {"user.a": "1"})
    assert config.get() == {"core.was_known_once": "1", "user.a": "1"}


USER_KEYS = st.dictionaries(st.sampled_from([f"user.{c}" for c in "abcd"]), st.sampled_from(["", "1", "2"]))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), USER_KEYS), max_size=4))
def test_any_sequence_of_changes_is_applied(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[bool, dict[str, str]]]
) -> None:
    async def body() -> None:
        database = await Database.open(prepared.sqlite(tmp_path_factory.mktemp("db") / "utsuwa.db"))
        config = ServerConfig(database)
        model: dict[str, str] = {}
        for merging, change in changes:
            await (patch if merging else put)(config, change)
            model = {**(model if merging else {}), **change}
            model = {key: value for key, value in model.items() if value}
            assert config.get() == model == await stored(database)
        await database.close()

    asyncio.run(body())
