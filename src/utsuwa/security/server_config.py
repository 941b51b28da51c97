"""The server config (`core.*`, `images.*`, ...): a copy in memory, changed atomically."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from utsuwa.core.config_keys import KeyTable, parse_bool
from utsuwa.core.errors import InvalidConfig, UtsuwaError
from utsuwa.core.rollback import Rollback
from utsuwa.core.server_keys import SERVER_KEYS
from utsuwa.core.tasks import finish
from utsuwa.db import config as rows
from utsuwa.db.database import Database
from utsuwa.security.passwords import MAX_PASSWORD, hash_password
from utsuwa.wire.edits import Change, IfMatch, edited
from utsuwa.wire.server import ServerPut

log = logging.getLogger(__name__)

METRICS_AUTHENTICATION = "core.metrics_authentication"
TRUST_PASSWORD = "core.trust_password"
TOKEN_EXPIRY = "core.remote_token_expiry"
TRUST_ISSUED = "core.trust_ca_certificates"

Listener = Callable[[frozenset[str], Mapping[str, str]], Awaitable[None]]
"""Called with the changed keys and the complete new config before it is stored; raising rejects the change.

A listener that raises must not have changed anything. If a later one raises, the earlier ones are called
again with the same keys and the old config.
"""


class ServerConfig:
    """The config of one daemon; call `load()` first."""

    def __init__(self, database: Database, table: KeyTable = SERVER_KEYS) -> None:
        self._database = database
        self._table = table
        self._config: dict[str, str] = {}
        self._listeners: list[Listener] = []
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Read the stored config; keys unknown to this version are kept and logged."""
        self._config = await self._database.read("server config", rows.load)
        try:
            self._table.check(self._config)
        except InvalidConfig as error:
            log.warning("the stored server config has problems: %s", error)

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def get(self) -> dict[str, str | bool]:
        """Return the config for callers: the keys that are set, with True for secrets."""
        return {key: True if self._secret(key) else value for key, value in self._config.items()}

    def value(self, key: str) -> str:
        """Return a key's value or its default. For the trust password, its hash."""
        found = self._config.get(key, "")
        if found:
            return found
        known = self._table.find(key)
        return known.default if known is not None else ""

    def flag(self, key: str) -> bool:
        """Return the value of a boolean key."""
        return parse_bool(self.value(key))

    def editable(self) -> ServerPut:
        return ServerPut(config={**self.get()})

    async def edit(self, change: Change[ServerPut], if_match: IfMatch) -> frozenset[str]:
        """Change the config as returned to callers, where True keeps a secret. Returns the changed keys.

        Raises PreconditionFailed, InvalidConfig, or what a listener raises.
        """
        return await finish(self._update(change, if_match))

    async def _update(self, change: Change[ServerPut], if_match: IfMatch) -> frozenset[str]:
        async with self._database.locks.hold("server config"), self._lock:
            await self._take_over()
            wanted = edited(self.editable(), change, if_match)
            return await self._change(await self._stored_form(wanted.config))

    async def settled(self) -> None:
        """Wait until a change that listeners have been told of is stored."""
        async with self._lock:
            pass

    async def follow_others(self) -> None:
        """Apply changes made by other members; those rejected by a listener are logged."""
        async with self._lock:
            await self._take_over()

    async def _take_over(self) -> None:
        old, new = self._config, await self._database.read("server config", rows.load)
        changed = _differing(old, new)
        if not changed:
            return
        self._config = new
        for listener in self._listeners:
            try:
                await listener(changed, new)
            except UtsuwaError as error:
                log.error("cannot apply the config set by another member: %s", error)

    def _secret(self, key: str) -> bool:
        known = self._table.find(key)
        return key == TRUST_PASSWORD or (known is not None and known.secret)

    async def _stored_form(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return checked strings, with the trust password hashed and kept secrets filled in."""
        values: dict[str, str] = {}
        for key, value in config.items():
            if value is True:
                values[key] = self._config.get(key, "") if self._secret(key) else "true"
            elif value is None:
                values[key] = ""
            elif isinstance(value, str):
                values[key] = value
            else:
                raise InvalidConfig(f"Invalid value for {key[:60]!r}: must be a string")
        self._table.check_unset(values, self._config)
        new = {key: value for key, value in values.items() if value != self._config.get(key, "")}
        self._check(new)
        if new.get(TRUST_PASSWORD):
            values[TRUST_PASSWORD] = await asyncio.to_thread(hash_password, new[TRUST_PASSWORD])
        return values

    def _check(self, new: Mapping[str, str]) -> None:
        """Check new values only: one that an older version accepted must not block other changes.

        The password is checked separately, as error messages quote values and passwords may contain anything.
        """
        password = new.get(TRUST_PASSWORD, "")
        if len(password.encode(errors="replace")) > MAX_PASSWORD:
            raise InvalidConfig(f"{TRUST_PASSWORD} is longer than {MAX_PASSWORD} bytes")
        if "\0" in password or not _encodable(password):
            raise InvalidConfig(f"{TRUST_PASSWORD} contains invalid characters")
        self._table.check({key: value for key, value in new.items() if key != TRUST_PASSWORD})

    async def _change(self, values: Mapping[str, str]) -> frozenset[str]:
        old = self._config
        new = {key: value for key, value in sorted(values.items()) if value}
        changed = _differing(old, new)
        if not changed:
            return changed
        async with Rollback() as undo:
            for listener in self._listeners:
                await listener(changed, new)
                undo.push(listener, changed, old)
            await self._database.write("server config", rows.replace, new)
            self._config = new
            undo.keep()
        return changed


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> frozenset[str]:
    return frozenset(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
