"""JSON from outside: depth, nulls, types, and the envelopes that go back."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.api.routes import all_routes
from utsuwa.wire.codec import (
    MAX_DEPTH,
    InvalidBody,
    check_depth,
    convert,
    decode,
    decode_json,
    encode_stable,
)
from utsuwa.wire.envelope import error_reply, sync_reply


class Inner(msgspec.Struct, kw_only=True):
    name: str = "none"
    tags: list[str] = []


class Body(msgspec.Struct, kw_only=True):
    name: str = "default"
    count: int = 3
    config: dict[str, str] = {}
    devices: dict[str, dict[str, str]] = {}
    inner: Inner = msgspec.field(default_factory=Inner)
    inners: list[Inner] = []
    many: dict[str, Inner] = {}
    maybe: Inner | None = None
    class_: str = msgspec.field(name="class", default="c")


def depth_of(text: str) -> int:
    """The slow and obvious way."""
    depth = deepest = 0
    inside = escaped = False
    for c in text:
        if inside:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                inside = False
        elif c == '"':
            inside = True
        elif c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\ab\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=40,
)


@given(JSON, st.integers(0, 6))
def test_depth_is_judged_as_the_obvious_scan_judges_it(value: Any, limit: int) -> None:
    text = json.dumps(value)
    if depth_of(text) > limit:
        with pytest.raises(InvalidBody, match="deeper than"):
            check_depth(text.encode(), limit)
    else:
        check_depth(text.encode(), limit)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidBody):
        decode_json(data)


@pytest.mark.parametrize("unit", ["[", '{"a":', '[{"b":'])
def test_deeply_nested_json_is_rejected_before_decoding(unit: str) -> None:
    with pytest.raises(InvalidBody, match=f"deeper than {MAX_DEPTH} levels"):
        decode(unit.encode() * 5000, Body)


def test_brackets_in_strings_are_no_depth() -> None:
    text = '[{\\"' * 5000
    assert decode(b'{"name":"' + text.encode() + b'"}', Body).name == '[{"' * 5000


def test_the_deepest_allowed_value_is_taken() -> None:
    assert decode_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


def test_null_counts_as_absent() -> None:
    body = decode(
        b'{"name":null,"count":null,"config":null,"devices":{"eth0":null},"inner":{"name":null,"tags":null},'
        b'"inners":[{"name":null}],"many":{"x":null},"maybe":null,"class":null,"unknown":null}',
        Body,
    )
    assert body == Body(devices={"eth0": {}}, inners=[Inner()], many={"x": Inner()})


def test_null_in_a_map_of_strings_is_the_empty_value() -> None:
    body = decode(b'{"config":{"user.a":null,"user.b":"1"},"devices":{"r":{"path":null}}}', Body)
    assert body.config == {"user.a": "", "user.b": "1"}
    assert body.devices == {"r": {"path": ""}}


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"name":"x","later":[1,{"a":2}]}', Body) == Body(name="x")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"name":1}', "'name'"),
        ('{"count":"3"}', "'count'"),
        ('{"config":[]}', "'config'"),
        ('{"config":{"a":1}}', "'config"),
        ('{"devices":{"r":"x"}}', "'devices"),
        ('{"inner":{"tags":{}}}', "'inner.tags'"),
        ('{"inners":{}}', "'inners'"),
    ],
)
def test_a_wrong_type_names_its_field(text: str, field: str) -> None:
    with pytest.raises(InvalidBody) as caught:
        decode(text.encode(), Body)
    assert field in str(caught.value)


@pytest.mark.parametrize("text", ["[]", '"x"', "1", "null", "[1]"])
def test_json_that_is_not_an_object_is_rejected(text: str) -> None:
    with pytest.raises(InvalidBody, match="must be a JSON object"):
        decode(text.encode(), Body)


@pytest.mark.parametrize("data", [b"", b"{", b"{}x", b'{"a":\xff}', b"nul", b'{"a":"\\ud800"}x'])
def test_invalid_json_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidBody, match="not valid JSON"):
        decode(data, Body)


def test_stable_json_does_not_depend_on_the_order_of_keys() -> None:
    assert encode_stable({"a": 1, "b": {"c": 2, "d": 3}}) == encode_stable({"b": {"d": 3, "c": 2}, "a": 1})


def test_the_envelopes_are_what_clients_expect() -> None:
    assert json.loads(sync_reply(["/1.0"])) == {
        "type": "sync",
        "status": "Success",
        "status_code": 200,
        "operation": "",
        "error_code": 0,
        "error": "",
        "metadata": ["/1.0"],
    }
    assert json.loads(error_reply(404, "not found", "not-found")) == {
        "type": "error",
        "status": "",
        "status_code": 0,
        "operation": "",
        "error_code": 404,
        "error": "not found",
        "error_key": "not-found",
        "metadata": None,
    }


# ---- which key of a map is wrong


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"config": {"user.a": "x", "limits.cpu": 2}}, "config[limits.cpu]"),
        ({"config": {"user.a": True}}, "config[user.a]"),
        ({"config": {"user.a": ["x"]}}, "config[user.a]"),
        ({"config": {"user.a": {"b": "c"}}}, "config[user.a]"),
        ({"devices": {"eth0": {"type": "nic"}, "root": {"size": 3}}}, "devices[root][size]"),
        ({"devices": {"root": "disk"}}, "devices[root]"),
        ({"inners": [{}, {"tags": ["a", 1]}]}, "inners[1].tags[1]"),
        ({"many": {"one": {}, "two": {"name": 2}}}, "many[two].name"),
        ({"maybe": {"name": 2}}, "maybe.name"),
        ({"config": {"k" * 500: 2}}, f"config[{'k' * 60}]"),
        ({"config": "x"}, "config"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_by_its_key(body: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidBody) as raised:
        convert(body, Body)
    assert str(raised.value).startswith(f"Invalid value for '{place}': Expected ")


@pytest.mark.parametrize(("value", "quoted"), [(2, '"2"'), (1.5, '"1.5"'), (True, '"true"')])
def test_a_number_is_to_be_quoted(value: object, quoted: str) -> None:
    with pytest.raises(InvalidBody, match=f"write it in quotes: {quoted}$"):
        convert({"config": {"limits.cpu": value}}, Body)


def test_every_map_of_strings_names_its_keys() -> None:
    """Instances, profiles, pools, networks, images, projects: for POST, PUT and PATCH alike."""
    seen = set()
    for record in {route.body for route in all_routes() if route.body is not None}:
        names = {field.encode_name for field in msgspec.structs.fields(record)}
        for name in names & {"config", "properties", "environment"}:
            with pytest.raises(InvalidBody, match=rf"'{name}\[some\.key\]'"):
                convert({name: {"fine": "x", "some.key": [1]}}, record)
            seen.add(record.__name__)
        if "devices" in names:
            with pytest.raises(InvalidBody, match=r"'devices\[eth0\]\[mtu\]'"):
                convert({"devices": {"root": {}, "eth0": {"mtu": 1500}}}, record)
    assert {
        "InstancesPost",
        "InstancePut",
        "InstancePatch",
        "ProfilePatch",
        "NetworkPut",
        "ServerPut",
    } <= seen


@given(JSON)
def test_whatever_does_not_fit_is_explained(value: Any) -> None:
    for field in ("config", "devices", "inners", "many", "maybe"):
        with contextlib.suppress(InvalidBody):
            convert({field: value}, Body)
