"""The text of a join token, as the client reads and writes it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.client import join_token
from utsuwa.wire.certificates import parse_token

GOOD: dict[str, Any] = {
    "client_name": "laptop",
    "fingerprint": "ab" * 32,
    "addresses": ["10.0.0.1:8443", "[::1]:8443"],
    "secret": "cd" * 32,
    "expires_at": "2030-01-31T12:00:00Z",
}
OPERATION: dict[str, Any] = {
    "class": "token",
    "status": "Running",
    "metadata": {
        "request": {"name": "laptop"},
        "fingerprint": GOOD["fingerprint"],
        "addresses": GOOD["addresses"],
        "secret": GOOD["secret"],
        "expiresAt": GOOD["expires_at"],
    },
}


def encoded(record: object) -> str:
    return base64.b64encode(json.dumps(record).encode()).decode()


def test_the_text_of_a_token_says_what_its_operation_says() -> None:
    token = join_token.of_operation(OPERATION)
    assert token is not None
    assert json.loads(base64.b64decode(str(token))) == GOOD
    again = join_token.parse(str(token))
    assert again is not None
    assert vars(again) == vars(token)
    at_the_server = parse_token(str(token))
    assert at_the_server is not None
    assert at_the_server.secret == GOOD["secret"]


def test_a_token_without_expiry() -> None:
    metadata = {key: value for key, value in OPERATION["metadata"].items() if key != "expiresAt"}
    token = join_token.of_operation({**OPERATION, "metadata": metadata})
    assert token is not None
    assert token.expires_at == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "changes",
    [{"class": "task"}, {"status": "Cancelled"}, {"metadata": None}, {"metadata": {"request": None}}],
)
def test_other_operations_are_no_tokens(changes: dict[str, Any]) -> None:
    assert join_token.of_operation({**OPERATION, **changes}) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "far.example",
        "https://far.example:8443",
        "10.0.0.1",
        encoded([]),
        encoded({}),
        encoded({**GOOD, "secret": ""}),
        encoded({**GOOD, "fingerprint": ""}),
        encoded({**GOOD, "addresses": []}),
        encoded({**GOOD, "addresses": None}),
        encoded(GOOD)[:-4],
    ],
)
def test_other_texts_are_no_tokens(text: str) -> None:
    assert join_token.parse(text) is None


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_any_text_is_refused_without_an_error(text: str) -> None:
    assert join_token.parse(text) is None
