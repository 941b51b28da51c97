"""Signatures of the documents of image servers, as simplestreams has them: clear-signed `.sjson` files.

A document is only ever taken from the output of gpgv, never from what surrounds the signed text.
"""

from __future__ import annotations

_STATUS = "[GNUPG:] "
_WRONG = {
    "BADSIG": "its signature is that of another content",
    "ERRSIG": "it is signed with the key {key}, which the keyring does not contain",
    "EXPSIG": "its signature has expired",
    "EXPKEYSIG": "it is signed with the key {key}, which has expired",
    "REVKEYSIG": "it is signed with the key {key}, which has been revoked",
    "NODATA": "it is not signed",
    "ERROR": "it is more than one signed text",
}
"""The states of a signature that is not accepted."""


def signed_path(path: str) -> str:
    """Return the path of the signed form of a document."""
    return path if path.endswith(".sjson") else f"{path.removesuffix('.json')}.sjson"


def keyring_name(host: str) -> str:
    """Return the file name of the keyring for an image server."""
    return f"{host.lower().replace('/', '')}.gpg"


def command(keyring: str) -> list[str]:
    """Return the program that reads a signed document and writes its content; `judge` reads its stderr.

    `keyring` is an absolute path.
    """
    return [
        "gpgv", "--homedir", "/nonexistent", "--weak-digest", "SHA1", "--keyring", keyring,
        "--status-fd", "2", "--output", "-", "-",
    ]  # fmt: skip


def judge(messages: str, code: int) -> str:
    """Return what is wrong with a document, or '' if all of its signatures are accepted.

    gpgv itself succeeds with keys that have expired.
    """
    states = [
        line.removeprefix(_STATUS).split() for line in messages.splitlines() if line.startswith(_STATUS)
    ]
    for name, *details in filter(None, states):
        if name in _WRONG:
            return _WRONG[name].format(key=details[0] if details else "")
    good = any(state[:1] == ["GOODSIG"] for state in states)
    if code == 0 and good:
        return ""
    said = [line for line in messages.splitlines() if not line.startswith(_STATUS)]
    return f"its signature cannot be checked: {said[-1][:200] if said else f'gpgv ended with {code}'}"
