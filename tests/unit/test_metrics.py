"""The two text formats of metrics, judged by Prometheus' own parsers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from utsuwa.wire import metrics
from utsuwa.wire.metrics import Family, Samples, accepts_openmetrics, labels

FAMILIES = [value for value in vars(metrics).values() if isinstance(value, Family)]


def parsed(samples: Samples, openmetrics: bool) -> list[Any]:
    text = samples.render(openmetrics=openmetrics).decode()
    parser = openmetrics_parser if openmetrics else text_parser
    found = list(parser.text_string_to_metric_families(text))
    return [(family.name, family.type, s.name, s.labels, s.value) for family in found for s in family.samples]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_all_families_can_be_parsed(openmetrics: bool) -> None:
    samples = Samples()
    for number, family in enumerate(FAMILIES):
        samples.add(family, number)
    found = {name: (kind, value) for _, kind, name, _, value in parsed(samples, openmetrics)}
    assert found == {family.name: (family.kind, number) for number, family in enumerate(FAMILIES)}


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 2**53)), min_size=1, max_size=5), st.booleans())
def test_labels_and_values_survive(pairs: list[tuple[str, int]], openmetrics: bool) -> None:
    samples = Samples()
    for number, (value, amount) in enumerate(pairs):
        samples.add(metrics.PROCESSES, amount, labels((("name", value), ("number", str(number)))))
    expected = [
        ({"name": value, "number": str(number)}, amount) for number, (value, amount) in enumerate(pairs)
    ]
    assert [(found, value) for _, _, _, found, value in parsed(samples, openmetrics)] == expected


def test_samples_of_a_family_stand_together() -> None:
    samples = Samples()
    for name in ("a", "b"):
        samples.add(metrics.PROCESSES, 1, labels((("name", name),)))
        samples.add(metrics.CPU_SECONDS, 0.5, labels((("name", name),)))
    assert samples.render(openmetrics=False).decode() == (
        "# HELP lxd_cpu_seconds_total Processor time in seconds.\n"
        "# TYPE lxd_cpu_seconds_total counter\n"
        'lxd_cpu_seconds_total{name="a"} 0.5\nlxd_cpu_seconds_total{name="b"} 0.5\n'
        "# HELP lxd_procs_total Number of processes.\n"
        "# TYPE lxd_procs_total gauge\n"
        'lxd_procs_total{name="a"} 1\nlxd_procs_total{name="b"} 1\n'
        "# EOF\n"
    )


def test_nothing_runs() -> None:
    assert Samples().render(openmetrics=True) == b"# EOF\n"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1", True),
        ("application/openmetrics-text;q=0.4, text/plain; q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
        ("APPLICATION/OPENMETRICS-TEXT; Q=1", True),
    ],
)
def test_format_that_a_client_prefers(accept: str, expected: bool) -> None:
    assert accepts_openmetrics(accept) is expected


@given(st.text(max_size=60))
def test_any_accept_header_is_understood(accept: str) -> None:
    assert accepts_openmetrics(accept) in (True, False)
