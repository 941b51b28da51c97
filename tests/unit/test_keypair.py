"""The server's key pair: made once, with its modes, refused where it is broken."""

from __future__ import annotations

import ipaddress
import socket
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from utsuwa.core.errors import HostError
from utsuwa.core.paths import StatePaths
from utsuwa.security.keypair import ensure_key_pair


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    return StatePaths(tmp_path)


def test_made_once_with_final_modes(paths: StatePaths) -> None:
    made = ensure_key_pair(paths)
    assert stat.S_IMODE(paths.server_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.server_cert.stat().st_mode) == 0o644
    assert {p.name for p in paths.root.iterdir()} == {"server.crt", "server.key"}
    assert ensure_key_pair(paths) == made
    assert made.pem == paths.server_cert.read_text()


def test_certificate_fields(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    certificate = x509.load_pem_x509_certificate(ensure_key_pair(paths).pem.encode())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "root@box"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["box", "localhost"]
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    }
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime == timedelta(days=3650)


def test_a_long_or_odd_host_name_is_no_problem(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ü" * 64)
    assert ensure_key_pair(paths).fingerprint


def test_key_pair_is_replaced_if_the_certificate_is_missing(paths: StatePaths) -> None:
    ensure_key_pair(paths)
    paths.server_cert.unlink()
    (paths.root / ".server.crt.new").write_text("half")
    before = paths.server_key.read_bytes()
    ensure_key_pair(paths)
    assert paths.server_key.read_bytes() != before


def test_a_certificate_without_key_is_refused(paths: StatePaths) -> None:
    ensure_key_pair(paths)
    paths.server_key.unlink()
    with pytest.raises(HostError, match=r"server\.key is missing: restore it"):
        ensure_key_pair(paths)


def test_a_foreign_key_is_refused(paths: StatePaths, tmp_path: Path) -> None:
    ensure_key_pair(paths)
    other = StatePaths(tmp_path / "other")
    other.root.mkdir()
    ensure_key_pair(other)
    paths.server_key.write_bytes(other.server_key.read_bytes())
    with pytest.raises(HostError, match="is not the key of"):
        ensure_key_pair(paths)


@pytest.mark.parametrize("name", ["server.crt", "server.key"])
def test_damaged_files_are_refused(paths: StatePaths, name: str) -> None:
    ensure_key_pair(paths)
    (paths.root / name).write_text("rubbish")
    with pytest.raises(HostError, match="cannot be read"):
        ensure_key_pair(paths)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="Cannot read or write"):
        ensure_key_pair(StatePaths(tmp_path / "missing"))
