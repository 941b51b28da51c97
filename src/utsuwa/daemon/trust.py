"""Creation of what decides which network clients are trusted."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from utsuwa.core.paths import StatePaths
from utsuwa.daemon.following import Following
from utsuwa.db.database import Database
from utsuwa.operations.events import EventHub
from utsuwa.security.certificates import CertificateManager
from utsuwa.security.server_config import TRUST_ISSUED, ServerConfig

if TYPE_CHECKING:
    from utsuwa.security.authority import Authority

log = logging.getLogger(__name__)


async def load_certificates(
    database: Database, events: EventHub, config: ServerConfig, authority: Authority | None
) -> CertificateManager:
    """Load the trust store, which accepts certificates of `authority` only if there is one."""
    certificates = CertificateManager(database, events)
    if authority is not None:
        certificates.store.require_issued_by(authority, partial(config.flag, TRUST_ISSUED))
    await certificates.load()
    return certificates


async def load_authority(paths: StatePaths, stack: AsyncExitStack) -> Authority | None:
    """Load the authority of PKI mode, if there is one, and follow its revocations. Raises HostError."""
    if not await asyncio.to_thread(paths.server_ca.exists):
        return None
    # Imported on demand, as it is slow to load.
    from utsuwa.security.authority import Authority

    authority = await asyncio.to_thread(Authority.load, paths)
    if authority is not None:
        log.info("only clients with a certificate of server.ca are accepted")
        following = Following([authority.follow])
        following.start()
        stack.push_async_callback(following.stop)
    return authority
