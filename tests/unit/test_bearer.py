"""Bearer tokens: made by the client, accepted for trusted certificates, and refused in every other form."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tls import Identity, PrivateKey, make_identity
from utsuwa.client import bearer as client
from utsuwa.client import keypair
from utsuwa.client.remotes import ClientConfig
from utsuwa.core.errors import InvalidRequest
from utsuwa.db.certificates import CertificateRow
from utsuwa.security import bearer
from utsuwa.security.trust_store import TrustStore


def as_config(folder: Path, identity: Identity) -> ClientConfig:
    config = ClientConfig(str(folder / "conf"))
    config.write("client.crt", identity.pem)
    config.write("client.key", identity.key_file.read_text())
    return config


def trusting(identity: Identity, **more: Any) -> TrustStore:
    store = TrustStore(now=lambda: NOW[0])
    row = CertificateRow(
        id=0, fingerprint=identity.fingerprint, type="client", name="x", certificate=identity.pem, **more
    )
    store.load([row])
    return store


NOW = [datetime.now(UTC)]
KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
}


@pytest.fixture(autouse=True)
def now() -> None:
    NOW[0] = datetime.now(UTC)


@pytest.mark.parametrize("key", KEYS)
def test_a_token_grants_what_its_certificate_grants(tmp_path: Path, key: str) -> None:
    identity = make_identity(tmp_path, "alice", key=KEYS[key])
    token = client.sign(as_config(tmp_path, identity), 600)
    store = trusting(identity, restricted=True, projects=["web"])
    caller = store.bearer(f"Bearer {token}", "10.0.0.1:5")
    assert (caller.trusted, caller.username, caller.address) == (True, identity.fingerprint, "10.0.0.1:5")
    assert caller.projects == frozenset({"web"})
    NOW[0] += timedelta(seconds=601)
    assert not store.bearer(f"Bearer {token}", "").trusted
    NOW[0] -= timedelta(seconds=800)
    assert not store.bearer(f"Bearer {token}", "").trusted


def test_it_ends_with_the_certificate(tmp_path: Path) -> None:
    identity = make_identity(tmp_path, "alice", key=KEYS["P-384"], ends=timedelta(hours=1))
    header = "Bearer " + client.sign(as_config(tmp_path, identity), 86400)
    store = trusting(identity)
    assert store.bearer(header, "").trusted
    NOW[0] += timedelta(hours=2)
    assert not store.bearer(header, "").trusted
    NOW[0] -= timedelta(hours=2)
    store.load([])
    assert not store.bearer(header, "").trusted
    metrics = TrustStore()
    metrics.load([CertificateRow(0, identity.fingerprint, "metrics", "x", identity.pem)])
    caller = metrics.bearer(header, "")
    assert (caller.trusted, caller.metrics) == (False, True)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_changed_and_foreign_tokens_are_refused(tmp_path: Path) -> None:
    alice = make_identity(tmp_path, "alice", key=KEYS["P-384"])
    other = make_identity(tmp_path, "other", key=ec.generate_private_key(ec.SECP384R1()))
    store = trusting(alice)
    token = client.sign(as_config(tmp_path, alice), 600)
    head, claims, signature = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(claims + "=="))
    foreign = client.sign(as_config(tmp_path, other), 600).split(".")
    later = part({**content, "exp": content["exp"] + 1})
    wrong = [
        f"{head}.{later}.{signature}",
        f"{head}.{part({**content, 'sub': alice.fingerprint.upper()})}.{signature}",
        f"{foreign[0]}.{claims}.{foreign[2]}",
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature[:-4]}",
        f"{head}.{claims}.{signature}AAAA",
        f"{part({'alg': 'none'})}.{claims}.{signature}",
        f"{part({'alg': 'none'})}.{claims}.",
        f"{part({'alg': 'HS256'})}.{claims}.{signature}",
        f"{part({'alg': 'RS256'})}.{claims}.{signature}",
        f"{part({'alg': 'ES256'})}.{claims}.{signature}",
        f"{part({'alg': 'ES384', 'crit': ['x']})}.{claims}.{signature}",
        f"{part({'alg': ['ES384']})}.{claims}.{signature}",
        ".".join(foreign),
        token + ".x",
        token + "=",
        token[:-2] + "!" + token[-2:],
        "",
    ]
    assert [text for text in wrong if store.bearer(f"Bearer {text}", "").trusted] == []
    for header in (token, f"Basic {token}", f"Bearer  {token}", "Bearer", ""):
        assert not store.bearer(header, "").trusted
    assert store.bearer(f"bearer {token}", "").trusted


@pytest.mark.parametrize("missing", ["sub", "nbf", "exp"])
def test_incomplete_claims_are_refused(missing: str) -> None:
    claims = {"sub": "ab", "nbf": 1, "exp": 2}
    assert bearer.parse(f"Bearer {part({'alg': 'ES384'})}.{part(claims)}.AAAA") is not None
    assert bearer.parse(f"Bearer {part({'alg': 'ES384'})}.{part({**claims, 'iss': 'x'})}.AAAA") is None
    del claims[missing]
    assert bearer.parse(f"Bearer {part({'alg': 'ES384'})}.{part(claims)}.AAAA") is None


@given(st.text())
def test_any_header_is_refused_without_an_error(text: str) -> None:
    store = TrustStore()
    for header in (text, f"Bearer {text}", f"Bearer {text}.{text}.{text}"):
        assert not store.bearer(header, "").trusted


@given(st.integers(0, 9999), st.integers(0, 9999), st.integers(1, 9999))
def test_durations(hours: int, minutes: int, seconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s"
    assert client.parse_duration(text) == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize("text", ["", "1", "0s", "-1h", "1d", "1h 30m", "h", "1m1h"])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(InvalidRequest, match="such as 1h30m"):
        client.parse_duration(text)


def test_generated_keys_can_sign_and_others_say_why_not(tmp_path: Path) -> None:
    config = ClientConfig(str(tmp_path / "new"))
    keypair.ensure(config)
    assert client.sign(config, 60).count(".") == 2
    unsuitable = make_identity(tmp_path, "x", key=ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(InvalidRequest, match="replace the pair"):
        client.sign(as_config(tmp_path, unsuitable), 60)
