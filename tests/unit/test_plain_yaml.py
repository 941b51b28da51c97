"""The subset of YAML that the client reads without PyYAML."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.client import plain_yaml

CONFIG = """\
default-remote: far
remotes:
  far:
    addr: https://10.0.0.1:8443
    auth_type: tls
    project: 'my lab'
    protocol: lxd
    public: false
  images:
    addr: https://images.example

    public: true
  empty:
aliases: {}
defaults:
    list_format: ""
"""


def test_a_file_of_lxc() -> None:
    parsed = plain_yaml.loads(CONFIG)
    assert parsed == yaml.safe_load(CONFIG)
    assert parsed["remotes"]["images"]["public"] is True
    assert parsed["remotes"]["empty"] is None


@pytest.mark.parametrize(
    "text",
    [
        "a: 1",
        "a: 1:30",
        "a: 2026-01-01",
        "a: yes",
        "a: Null",
        "on: b",
        "a: b # comment",
        "# comment",
        "---",
        "- a",
        "a: [b]",
        "a: &x b",
        "a: |",
        'a: "b\\n"',
        "a: 'it''s'",
        "a: 'b' 'c'",
        "a: b: c",
        "a: b:",
        "a: b\n  c: d",
        "a: b\n  c",
        "a:\n  b: c\n d: e",
        " a: b",
        "a:\tb",
        "a: é",
        "a: b\r\nc: d",
        "word",
        f"a: {'b' * 600}",
    ],
)
def test_what_is_left_to_a_parser_of_all_yaml(text: str) -> None:
    with pytest.raises(plain_yaml.NotPlain):
        plain_yaml.loads(text)


_WORDS = st.text(alphabet="abn1.-:/ #'\"{}[]\\~&*!|>%@,?=<yes", max_size=8)
_LINES = st.builds(
    lambda indent, key, colon, value: f"{' ' * indent}{key}{colon}{value}",
    st.integers(0, 5),
    _WORDS,
    st.sampled_from((":", ": ", ":  ", "")),
    st.one_of(_WORDS, st.sampled_from(("", "{}", "true", "False", "null", "on", "''", '""', "1e3", "0x1"))),
)


def understood(text: str) -> dict[str, Any] | None:
    try:
        return plain_yaml.loads(text)
    except plain_yaml.NotPlain:
        return None


@given(st.lists(_LINES, max_size=6).map("\n".join))
def test_what_is_understood_means_the_same_to_pyyaml(text: str) -> None:
    parsed = understood(text)
    if parsed is not None:
        assert parsed == (yaml.safe_load(text) or {})


_NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True).filter(
    lambda name: name not in plain_yaml._WORDS
)
_VALUES = st.one_of(st.booleans(), st.just(""), _NAMES, _NAMES.map("https://{}:8443".format))
_MAPPINGS = st.recursive(
    st.dictionaries(_NAMES, _VALUES, max_size=4),
    lambda inner: st.dictionaries(_NAMES, st.one_of(_VALUES, inner), max_size=4),
    max_leaves=12,
)


@given(_MAPPINGS.filter(bool), st.integers(2, 4))
def test_files_as_clients_write_them_are_understood(content: dict[str, Any], indent: int) -> None:
    assert plain_yaml.loads(yaml.safe_dump(content, indent=indent)) == content
