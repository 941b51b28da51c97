"""Origins of web pages, as browsers write them."""

from __future__ import annotations

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.core.origins import Origin, parse_host, parse_origin
from utsuwa.core.server_keys import SERVER_KEYS


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://panel.example", Origin("https", "panel.example", 443)),
        ("HTTPS://Panel.Example:443", Origin("https", "panel.example", 443)),
        ("http://[::1]:8080", Origin("http", "[::1]", 8080)),
        ("moz-extension://2f7d", Origin("moz-extension", "2f7d", 0)),
        ("ws+unix://localhost", Origin("ws+unix", "localhost", 0)),
    ],
)
def test_an_origin_is_scheme_host_and_port(text: str, origin: Origin) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    ["", "null", "*", "panel.example", "https://", "https://a/", "https://a, https://b", "https://u@a"]
    + ["https://a:b", "https://a\n", "https://a:123456", "file://", "https:// a"],
)
def test_invalid_origins_match_nothing(text: str) -> None:
    assert parse_origin(text) is None
    if text not in ("", "*"):
        with pytest.raises(InvalidConfig, match=r"core\.https_allowed_origin"):
            SERVER_KEYS.check({"core.https_allowed_origin": text})


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("LXD.example", ("lxd.example", 443)),
        ("[fd42::1]:8443", ("[fd42::1]", 8443)),
        ("localhost:None", None),
        ("", None),
    ],
)
def test_a_host_without_a_port_has_that_of_its_scheme(text: str, host: tuple[str, int] | None) -> None:
    assert parse_host(text, "https") == host


@pytest.mark.parametrize("value", ["GET", "GET, POST,PUT", "X-Custom_1"])
def test_methods_and_headers_are_lists_of_names(value: str) -> None:
    SERVER_KEYS.check({"core.https_allowed_methods": value, "core.https_allowed_headers": value})


@pytest.mark.parametrize("value", ["GET POST", "GET;POST", "X: y", "a,,b", "GET\nX"])
def test_values_that_would_break_a_header_are_rejected(value: str) -> None:
    with pytest.raises(InvalidConfig, match=r"core\.https_allowed_headers"):
        SERVER_KEYS.check({"core.https_allowed_headers": value})
