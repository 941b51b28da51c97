"""Which proxy a request goes through, and which hosts are reached directly."""

from __future__ import annotations

import pytest

from utsuwa.core.proxies import Proxies


@pytest.mark.parametrize(
    ("host", "proxied"),
    [
        ("images.example", True),
        ("localhost", False),
        ("127.0.0.5", False),
        ("::1", False),
        ("other.example", False),
        ("Sub.Other.example", False),
        ("notother.example", True),
        ("dotted.example", False),
        ("a.dotted.example", False),
        ("10.1.2.3", False),
        ("10.2.2.3", True),
        ("ported.example", False),
    ],
)
def test_hosts_without_a_proxy(host: str, proxied: bool) -> None:
    proxies = Proxies("a:1", "https://b:2", "other.example, .dotted.example,10.1.0.0/16,ported.example:443,")
    assert proxies.find("https", host) == ("https://b:2" if proxied else "")
    assert proxies.find("http", host) == ("http://a:1" if proxied else "")
    assert Proxies("a", "b", "*").find("https", host) == ""
    assert Proxies().find("https", host) == ""


def test_the_environment_is_used_where_the_config_says_nothing() -> None:
    config = {"core.proxy_https": "https://own"}
    env = {"HTTPS_PROXY": "https://other", "http_proxy": "http://other", "NO_PROXY": "x.example"}
    proxies = Proxies.of(lambda key: config.get(key, ""), env)
    hosts = ("images.example", "x.example")
    assert [proxies.find("https", host) for host in hosts] == ["https://own", ""]
    assert [proxies.find("http", host) for host in hosts] == ["http://other", ""]


def test_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    assert Proxies.of().find("https", "images.example") == "http://proxy.example:3128"
