"""What gpgv says of a signed document, and which document is signed."""

from __future__ import annotations

from pathlib import Path

import pytest

from utsuwa.core import signatures
from utsuwa.core.errors import HostError
from utsuwa.images.remote.keyrings import Keyring, Keyrings

GOOD = "[GNUPG:] NEWSIG a@x\n[GNUPG:] GOODSIG 346D a@x\n[GNUPG:] VALIDSIG 5926 2026-11-30\n"


@pytest.mark.parametrize(
    ("messages", "code", "reason"),
    [
        (f"gpgv: Good signature\n{GOOD}", 0, ""),
        (f"{GOOD}[GNUPG:] BADSIG 84BE b@x\n", 1, "its signature is that of another content"),
        (f"{GOOD}[GNUPG:] EXPKEYSIG 84BE b@x\n", 0, "it is signed with the key 84BE, which has expired"),
        ("[GNUPG:] REVKEYSIG 84BE b@x\n", 0, "it is signed with the key 84BE, which has been revoked"),
        (f"{GOOD}[GNUPG:] ERRSIG 84BE 22 8\n", 2, "the key 84BE, which the keyring does not contain"),
        ("[GNUPG:] \n[GNUPG:] ERRSIG\n", 2, "which the keyring does not contain"),
        (GOOD, 2, "gpgv ended with 2"),
        ("", 0, "gpgv ended with 0"),
        ("gpgv: out of memory\n", -9, "cannot be checked: gpgv: out of memory"),
    ],
)
def test_judgement(messages: str, code: int, reason: str) -> None:
    found = signatures.judge(messages, code)
    assert reason in found
    assert bool(reason) is bool(found)


def test_signed_documents() -> None:
    """Also where a signed index names an unsigned one."""
    paths = ("streams/v1/index.json", "streams/v1/a.sjson", "other")
    assert [signatures.signed_path(path) for path in paths] == [
        "streams/v1/index.sjson",
        "streams/v1/a.sjson",
        "other.sjson",
    ]


def test_keyrings_are_named_after_the_host(tmp_path: Path) -> None:
    (tmp_path / "images.example.gpg").touch()
    keyrings = Keyrings(tmp_path)
    for url in ("https://images.example", "https://IMAGES.example:8443/tree/"):
        assert keyrings.find(url) == Keyring(tmp_path / "images.example.gpg")
    for url in ("https://other.example", "https://sub.images.example"):
        assert keyrings.find(url) is None


async def test_large_keyrings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.example.gpg"
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(HostError, match="larger than 16 MiB"):
        await Keyring(path).content(b"", "x")


@pytest.mark.processes
async def test_a_missing_program_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "images.example.gpg"
    path.touch()
    monkeypatch.setattr(signatures, "command", lambda keyring: ["gpgv-is-not-installed", keyring])
    with pytest.raises(HostError, match="install Debian's package 'gpgv'"):
        await Keyring(path).content(b"{}", "x")
