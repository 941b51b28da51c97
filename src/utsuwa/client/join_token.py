"""Join tokens: what the server's operation says about one, and the text in which people pass it on."""

from __future__ import annotations

import binascii
import json

from utsuwa.client import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NEVER = "0001-01-01T00:00:00Z"


class JoinToken:
    """A token: `fingerprint` and `addresses` identify the server that has issued it."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        """Take the content of a token's text. Raises KeyError or TypeError if it is not one."""
        self.name = str(record.get("client_name") or "")
        self.fingerprint = str(record["fingerprint"])
        self.addresses = [str(address) for address in record["addresses"]]
        self.secret = str(record["secret"])
        self.expires_at = str(record.get("expires_at") or _NEVER)

    def __str__(self) -> str:
        content = {
            "client_name": self.name,
            "fingerprint": self.fingerprint,
            "addresses": self.addresses,
            "secret": self.secret,
            "expires_at": self.expires_at,
        }
        text = json.dumps(content, separators=(",", ":"))  # the same text as that of lxc
        return binascii.b2a_base64(text.encode(), newline=False).decode()


def parse(text: str) -> JoinToken | None:
    """Decode a token; None if the text is not one."""
    try:
        record = lean.loads(binascii.a2b_base64(text, strict_mode=True).decode())
        token = JoinToken(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return token if token.fingerprint and token.addresses and token.secret else None


def of_operation(operation: Mapping[str, Any]) -> JoinToken | None:
    """Return the token of a running operation; None for any other operation."""
    if operation["class"] != "token" or operation["status"] != "Running":
        return None
    said = operation.get("metadata") or {}
    try:
        name, expires_at = said["request"]["name"], said.get("expiresAt")
        return JoinToken({**said, "client_name": name, "expires_at": expires_at})
    except (KeyError, TypeError):
        return None
