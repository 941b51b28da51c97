"""The description of the API, as it comes from the table of routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from utsuwa.api import routes
from utsuwa.api.http import Background, Created, Empty, Raw
from utsuwa.api.openapi import reply_types


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(routes.description()))
    return found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_is_described(description: dict[str, Any]) -> None:
    described = {(m.upper(), path) for path, methods in description["paths"].items() for m in methods}
    assert described == {(r.method, r.path.replace(":path}", "}")) for r in routes.served()}


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    components = description["components"]["schemas"]
    found = set(references(description))
    assert len(found) > 20
    assert {ref.removeprefix("#/components/schemas/") for ref in found} <= components.keys()


def test_every_component_is_a_valid_schema(description: dict[str, Any]) -> None:
    for schema in description["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_path_parameters_are_declared(description: dict[str, Any]) -> None:
    for path, methods in description["paths"].items():
        wanted = [s[1:-1] for s in path.split("/") if s.startswith("{")]
        for operation in methods.values():
            assert [p["name"] for p in operation.get("parameters", [])] == wanted


def test_a_union_is_described_as_its_members() -> None:
    assert reply_types(list[str] | list[int]) == [list[str], list[int]]
    assert reply_types(str) == [str]
    for kind in (Empty, Created, Background, Raw):
        assert reply_types(kind) == []
