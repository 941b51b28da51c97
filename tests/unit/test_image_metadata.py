"""metadata.yaml as anybody may have written it."""

from __future__ import annotations

import contextlib
import string
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.core.architectures import canonical_architecture
from utsuwa.core.errors import InvalidImage
from utsuwa.images.metadata import ImageMetadata, Template, format_metadata, parse_metadata

GOOD: dict[str, Any] = {"architecture": "x86_64", "creation_date": 1700000000}


def parse(**changes: Any) -> ImageMetadata:
    return parse_metadata(yaml.safe_dump({**GOOD, **changes}).encode())


def test_metadata_of_distributions_is_accepted() -> None:
    text = b"""
architecture: amd64
creation_date: 1700000000
expiry_date: 1800000000
unknown: [1, 2]
properties:
  release: 22.10
  serial: 0123
  os: Debian
  empty:
  nothing: null
  yes: true
templates:
  /etc/hostname:
    when: [create, copy]
    create_only: true
    template: hostname.tpl
    properties: {a: 1}
  /etc/hosts:
    when: [""]
    template: hosts.tpl
"""
    assert parse_metadata(text) == ImageMetadata(
        architecture="x86_64",
        creation_date=1700000000,
        expiry_date=1800000000,
        properties={
            "release": "22.10",
            "serial": "0123",
            "os": "Debian",
            "empty": "",
            "nothing": "",
            "yes": "true",
        },
        templates={
            "/etc/hostname": Template(("create", "copy"), "hostname.tpl", True, {"a": "1"}),
            "/etc/hosts": Template((), "hosts.tpl"),
        },
    )


def test_null_stands_for_what_is_missing() -> None:
    template = {"template": "a", "when": None, "create_only": None, "properties": None}
    found = parse(expiry_date=None, properties=None, templates={"/a": template})
    assert (found.expiry_date, found.properties) == (0, {})
    assert found.templates == {"/a": Template((), "a", False, {})}
    assert parse(templates=None).templates == {}


def test_json_is_yaml_too() -> None:
    assert parse_metadata(b'{"architecture": "aarch64", "creation_date": 7}').architecture == "aarch64"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a mapping"),
        (b"- a\n- b\n", "not a mapping"),
        (b"text", "not a mapping"),
        (b"a: [b", "not YAML"),
        (b"a: b\n---\nc: d\n", "not YAML"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        (b"a: \x00", "not YAML"),
        (b"[a]: b\n", "cannot be read|not YAML"),
        (b"x" * (1024 * 1024 + 1), "larger than 1 MiB"),
        (b"[" * 10_000, "nested deeper|nesting depth"),  # the second is what newer versions of PyYAML say
        (b"a: " + b"{a: " * 40, "nested deeper"),
        (b"a: [" + b"x," * 60_000 + b"]", "too many entries"),
        (b"a: &a [x]\nb: [" + b"*a," * 30 + b"]", "more than 20 aliases"),
    ],
)
def test_invalid_documents_are_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        parse_metadata(data)


def test_yaml_alias_bomb_is_rejected_cheaply() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    begin = time.process_time()
    with pytest.raises(InvalidImage, match="aliases"):
        parse_metadata("\n".join(lines).encode())
    assert time.process_time() - begin < 1


def test_tags_make_no_objects() -> None:
    text = b"architecture: x86_64\ncreation_date: 1\nproperties: {a: !!python/object/apply:os.getpid []}\n"
    with pytest.raises(InvalidImage, match=r"properties\.a is not a text"):
        parse_metadata(text)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "pdp11"}, "unknown"),
        ({"architecture": ""}, "no architecture"),
        ({"architecture": ["x86_64"]}, "architecture is not a text"),
        ({"creation_date": 0}, "creation_date"),
        ({"creation_date": -5}, "creation_date is not a time"),
        ({"creation_date": 1.5}, "creation_date is not a time"),
        ({"creation_date": "soon"}, "creation_date is not a time"),
        ({"creation_date": 10**13}, "creation_date is not a time"),
        ({"expiry_date": 999_999_999_999}, "expiry_date is not a time"),
        ({"properties": []}, "properties is not a mapping"),
        ({"properties": {"a": {"b": "c"}}}, r"properties\.a is not a text"),
        ({"properties": {"a\nb": "c"}}, "invalid name"),
        ({"properties": {"": "c"}}, "invalid name"),
        ({"properties": {"a": "x" * 70_000}}, "longer than"),
        ({"templates": {"etc/hosts": {"template": "a"}}}, "absolute path"),
        ({"templates": {"/etc/": {"template": "a"}}}, "absolute path"),
        ({"templates": {"/etc/../hosts": {"template": "a"}}}, "inside the instance"),
        ({"templates": {"/a\nb": {"template": "a"}}}, "inside the instance"),
        ({"templates": {"/a": "b"}}, "not a mapping"),
        ({"templates": {"/a": None}}, "not a mapping"),
        ({"templates": {None: {"template": "a"}}}, "not the absolute path"),
        ({"templates": {"/a": {"template": None}}}, "not a plain file name"),
        ({"templates": {"/a": {"template": "a", "when": [None, ["a"]]}}}, "when is not a list"),
        ({"architecture": None}, "no architecture"),
        ({"creation_date": None}, "no creation_date"),
        ({"templates": {"/a": {"template": "../a"}}}, "not a plain file name"),
        ({"templates": {"/a": {"template": ".."}}}, "not a plain file name"),
        ({"templates": {"/a": {"template": ""}}}, "not a plain file name"),
        ({"templates": {"/a": {"when": "create", "template": "a"}}}, "when is not a list"),
        ({"templates": {"/a": {"when": [["create"]], "template": "a"}}}, "when is not a list"),
        ({"templates": {"/a": {"create_only": "maybe", "template": "a"}}}, "neither true nor false"),
        ({"templates": {"/a": {"properties": [1], "template": "a"}}}, "properties is not a mapping"),
    ],
)
def test_metadata_against_the_schema_is_rejected(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        parse(**changes)


@pytest.mark.parametrize(
    ("name", "known"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("i386", "i686"), ("vax", None)]
)
def test_architectures(name: str, known: str | None) -> None:
    assert canonical_architecture(name) == known


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_values = st.recursive(
    _scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4)
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["architecture", "creation_date", "expiry_date", "properties", "templates", "x"]),
        _values,
    )
)
def test_any_document_is_parsed_or_refused(content: dict[str, Any]) -> None:
    try:
        found = parse_metadata(yaml.safe_dump({**GOOD, **content}, allow_unicode=True).encode())
    except InvalidImage:
        return
    assert all(isinstance(v, str) for v in found.properties.values())
    for target, template in found.templates.items():
        assert target.startswith("/")
        assert ".." not in target.split("/")
        assert "/" not in template.template


def test_an_instance_needs_neither_architecture_nor_creation_date() -> None:
    assert parse_metadata(b"properties: {a: b}", complete=False) == ImageMetadata(
        "", 0, properties={"a": "b"}
    )
    with pytest.raises(InvalidImage, match="architecture 'vax' is unknown"):
        parse_metadata(b"architecture: vax", complete=False)


@settings(deadline=None)
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=10), st.text()))
def test_formatted_metadata_round_trip(properties: dict[str, str]) -> None:
    try:
        data = format_metadata({"properties": properties})
    except InvalidImage:
        assert any("\0" in text for text in properties.values())
        return
    none = ("null", "Null", "NULL", "~")
    wanted = {name: "" if text in none else text for name, text in properties.items()}
    assert parse_metadata(data, complete=False).properties == wanted


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidImage):
        assert parse_metadata(data).architecture


@settings(deadline=None)
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=10), st.text(string.printable)))
def test_properties_keep_their_text(properties: dict[str, str]) -> None:
    # Line ends that YAML itself changes are not the point here.
    kept = {name: text for name, text in properties.items() if not set(text) & set("\r\x0b\x0c")}
    none = ("", "null", "Null", "NULL", "~")
    wanted = {name: "" if text in none else text for name, text in kept.items()}
    assert parse(properties=kept).properties == wanted


_pieces = st.sampled_from(
    [
        "architecture: x86_64\n",
        "creation_date: 1\n",
        "properties: ",
        "templates: ",
        "/a: ",
        "template: t",
        "when: ",
    ]
    + [
        "&a ",
        "*a",
        "!!binary ",
        "!!int ",
        "!<x> ",
        "<<: ",
        "? ",
        ": ",
        "- ",
        "|\n",
        ">-\n",
        "[",
        "]",
        "{",
        "}",
        ", ",
    ]
    + [
        "\n",
        "\n  ",
        "\t",
        "'",
        '"',
        "\\u0000",
        "\\x80",
        "#",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "\ufeff",
        "\u2028",
        "a",
    ]
)


@settings(deadline=None)
@given(st.lists(_pieces, max_size=25).map("".join))
def test_any_pieces_of_yaml_are_parsed_or_refused(text: str) -> None:
    for document in (text, f"architecture: x86_64\ncreation_date: 1\n{text}"):
        with contextlib.suppress(InvalidImage):
            assert parse_metadata(document.encode()).architecture == "x86_64"
