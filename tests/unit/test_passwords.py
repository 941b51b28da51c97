"""The trust password's hash, and the limit on guesses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.core.client_networks import network_of
from utsuwa.core.errors import Forbidden
from utsuwa.security.passwords import MAX_PASSWORD, GuessLimiter, hash_password, verify_password


def test_a_hash_fits_its_password_only() -> None:
    stored = hash_password("höhle")
    assert verify_password("höhle", stored)
    assert not verify_password("hohle", stored)
    assert not verify_password("", stored)
    assert not verify_password("x" * (MAX_PASSWORD + 1), stored)
    assert "höhle" not in stored


def test_equal_passwords_have_different_hashes() -> None:
    assert hash_password("foo") != hash_password("foo")


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "foo",
        "scrypt$14$8$1$!!$aa",
        "scrypt$99$8$1$YWFh$YWFh",
        "scrypt$0$8$1$YWFh$YWFh",
        "md5$1$1$1$YQ$YQ",
    ],
)
def test_invalid_hash_matches_no_password(stored: str) -> None:
    assert not verify_password("foo", stored)


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_stored_text_is_handled_safely(stored: str) -> None:
    assert not verify_password("foo", stored)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tries_are_limited_for_an_address_and_for_a_while() -> None:
    clock = Clock()
    limiter = GuessLimiter(tries=2, seconds=60, now=clock)
    limiter.begin("10.0.0.1")
    clock.now += 20
    limiter.begin("10.0.0.1")
    with pytest.raises(Forbidden, match="try again in 40 seconds"):
        limiter.begin("10.0.0.1")
    limiter.begin("10.0.0.2")
    clock.now += 41
    limiter.begin("10.0.0.1")
    with pytest.raises(Forbidden, match="Too many"):
        limiter.begin("10.0.0.1")


def test_a_right_password_clears_the_count() -> None:
    limiter = GuessLimiter(tries=1)
    limiter.begin("10.0.0.1")
    limiter.succeeded("10.0.0.1")
    limiter.begin("10.0.0.1")


def test_addresses_are_forgotten_oldest_first() -> None:
    limiter = GuessLimiter(tries=1, addresses=2)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        limiter.begin(host)
    limiter.begin("10.0.0.1")
    with pytest.raises(Forbidden):
        limiter.begin("10.0.0.3")


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("what", "what"),
    ],
)
def test_network_of(host: str, network: str) -> None:
    assert network_of(host) == network
