"""Log lines on who requests what: all requests for debugging, and the changes as the audit log.

The audit log is complete because it is written for requests, by their method, and not by handlers. What a
change has led to, also later in the background, are lifecycle events with the same requestor.
"""

from __future__ import annotations

import logging

from aiohttp import web

from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.security.authorization import Caller

log = logging.getLogger(__name__)
audit_log = logging.getLogger("utsuwa.audit")

_READING = frozenset(("GET", "HEAD", "OPTIONS"))
_SFTP = "/sftp"
"""The end of paths whose GET leads to a connection that can change files."""
_CALLER = web.RequestKey("caller", Caller)
CUT_OFF = 0
"""The status of a request whose client has disconnected."""


def note(raw: web.BaseRequest, caller: Caller) -> None:
    """Remember and log the caller of a request that begins."""
    raw[_CALLER] = caller
    if log.isEnabledFor(logging.DEBUG):
        log.debug("request", extra={**_described(raw), **_identity(caller)})


def record(raw: web.BaseRequest, status: int) -> None:
    """Log a change, whether it was made or refused; attempts of untrusted callers only if they succeeded."""
    path = raw.rel_url.raw_path
    if raw.method in _READING and not (raw.method == "GET" and path.endswith(_SFTP)):
        return
    caller = raw.get(_CALLER)
    if caller is None or not (caller.trusted or CUT_OFF < status < 400):
        return
    message = "change" if CUT_OFF < status < 400 else "change failed"
    audit_log.info(message, extra={**_described(raw), "status": status, **_identity(caller)})


def _described(raw: web.BaseRequest) -> dict[str, str]:
    """Return what is requested; other query parameters than the project may be secrets."""
    found = {"method": raw.method, "url": raw.rel_url.raw_path}
    project = raw.rel_url.query.get("project", DEFAULT_PROJECT) if raw.rel_url.raw_query_string else ""
    return found if project in ("", DEFAULT_PROJECT) else {**found, "project": project}


def _identity(caller: Caller) -> dict[str, str]:
    """Return the fields that say who a caller is, and from where."""
    fields = {
        "user": caller.username,
        "protocol": caller.protocol,
        "address": caller.address,
        "certificate": caller.label,
    }
    if not caller.username:
        fields["fingerprint"] = caller.fingerprint
    return {name: value for name, value in fields.items() if value}
