"""Records of `/1.0/warnings`."""

from __future__ import annotations

import msgspec


class Warning(msgspec.Struct, kw_only=True):  # noqa: A001  the name that the API gives it
    """A lasting trouble that somebody should know of.

    `entity_url` is empty for the server as a whole; times are RFC 3339.
    """

    status: str
    uuid: str
    location: str
    project: str
    type: str
    count: int
    first_seen_at: str
    last_seen_at: str
    last_message: str
    severity: str
    entity_url: str


class WarningPut(msgspec.Struct, kw_only=True):
    """Also the body of PATCH; `status` is `new` or `acknowledged`."""

    status: str = ""


class TestWarning(msgspec.Struct, kw_only=True):
    """The body of `/internal/testing/warnings`; codes are those of LXD's database."""

    type_code: int = 0
    message: str = ""
    location: str = ""
    project: str = ""
    entity_type_code: int | None = None
    entity_id: int | None = None
