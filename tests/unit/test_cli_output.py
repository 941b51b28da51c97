"""What the client prints: tables, CSV, YAML, JSON, sizes and times; and the YAML that it reads."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from utsuwa.cli import multipart, yaml_in
from utsuwa.cli.commands.instances import columns
from utsuwa.cli.errors import UsageError
from utsuwa.cli.instance_filters import matches
from utsuwa.cli.output import idmaps, table, values, yaml_out
from utsuwa.cli.output.records import Time, arrange, sorted_map
from utsuwa.cli.output.render import by_columns, natural, to_json
from utsuwa.client.errors import BadAnswer

# ---- tables


def test_a_table() -> None:
    shown = table.table(["NAME", "IPV4"], [["c1", "10.0.0.2 (eth0)\n10.0.0.3 (eth1)"], ["器", ""]])
    assert shown == (
        "+------+-----------------+\n"
        "| NAME |      IPV4       |\n"
        "+------+-----------------+\n"
        "| c1   | 10.0.0.2 (eth0) |\n"
        "|      | 10.0.0.3 (eth1) |\n"
        "+------+-----------------+\n"
        "| 器   |                 |\n"
        "+------+-----------------+\n"
    )


def test_a_table_without_rows() -> None:
    assert table.table(["A"], []) == "+---+\n| A |\n+---+\n"
    assert table.compact(["A", "B"], [["long", "x"]]) == "   A    B  \n  long  x  \n"


CELLS = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]))


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2)))
def test_csv_is_read_back(rows: list[list[str]]) -> None:
    text = table.csv(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows


def test_orders() -> None:
    assert sorted(["c10", "c2", "c1", "b"], key=natural) == ["b", "c1", "c2", "c10"]
    assert sorted([["", "a"], ["b", ""], ["b", "a"]], key=by_columns) == [["b", "a"], ["b", ""], ["", "a"]]


# ---- YAML and JSON

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n :#-'\"&*"))
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@example("0\n")
@given(DATA)
def test_yaml_is_read_back(value: Any) -> None:
    assert yaml.safe_load(yaml_out.dump(value)) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("=", "'='"),
        ("", '""'),
        ("true", '"true"'),
        ("1.0", '"1.0"'),
        ("0x10", '"0x10"'),
        ("2026-11-24", '"2026-11-24"'),
        ("00:16:3e:f0:80:20", "00:16:3e:f0:80:20"),
        ("::1", "::1"),
        ("[]", "'[]'"),
        ("a: b", "'a: b'"),
        ("it's #1", "'it''s #1'"),
        ("a\nb\n", "|\n  a\n  b"),
        ("a\nb", "|-\n  a\n  b"),
        ("tab\there", '"tab\\there"'),
    ],
)
def test_quotes_only_where_they_are_needed(text: str, shown: str) -> None:
    assert yaml_out.dump({"k": text}) == f"k: {shown}\n"


def test_fields_in_order() -> None:
    record = {"name": "p", "used_by": None, "x": 1, "devices": {"eth10": {}, "eth2": {"b": "", "a": ""}}}
    arranged = arrange(record, "profile")
    assert list(arranged) == ["devices", "name", "used_by", "x"]
    assert list(arranged["devices"]) == ["eth2", "eth10"]
    assert list(arranged["devices"]["eth2"]) == ["a", "b"]
    assert arranged["used_by"] == []
    assert arrange(record, "profile", nulls=True)["used_by"] is None
    assert list(sorted_map({"b": 1, "_": 1, "1": 1})) == ["1", "_", "b"]


def test_times_are_bare_and_short() -> None:
    arranged = arrange({"created_at": "2026-11-24T07:56:51.120Z"}, "instance")
    assert yaml_out.dump(arranged) == "created_at: 2026-11-24T07:56:51.12Z\n"
    assert isinstance(arranged["created_at"], Time)
    assert arrange({"created_at": "2026-11-24T07:56:51Z"}, "") == {"created_at": "2026-11-24T07:56:51Z"}
    assert arrange({"created_at": "2026-11-24T07:56:50.000Z"}, "") == {"created_at": "2026-11-24T07:56:50Z"}


def test_json_as_go_writes_it() -> None:
    assert to_json({"a": ["<&>", "ü"]}) == '{"a":["\\u003c\\u0026\\u003e","ü"]}'


def test_yaml_of_people_is_text() -> None:
    found = yaml_in.parse(
        "config:\n  limits.cpu: 2\n  user.on: yes\n  user.t: 2026-11-24\n  user.none:\n"
        "ephemeral: true\ndescription: ~\ndevices:\n"
    )
    assert found == {
        "config": {"limits.cpu": "2", "user.on": "yes", "user.t": "2026-11-24", "user.none": ""},
        "ephemeral": True,
        "description": "",
        "devices": {},
    }
    assert yaml_in.parse("") == yaml_in.parse("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "Invalid YAML.*line 1"),
        ("- a", "key: value"),
        ("words", "key: value"),
        ("ephemeral: perhaps", "ephemeral must be true or false"),
        ("a: !!python/object:os.system {}", "Invalid YAML"),
    ],
)
def test_yaml_that_cannot_be_used(text: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        yaml_in.parse(text)


# ---- values


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.00KiB"), (2785280, "2.66MiB"), (2**70, "1024.00EiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert values.size(count) == shown


@pytest.fixture
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_utc")
def test_times() -> None:
    text = "2026-11-24T07:06:51.251552999Z"
    assert values.minute(text) == "2026/11/24 07:06 UTC"
    assert values.clock(values.local_time(text)) == "Nov 24, 2026 at 7:06am (UTC)"
    assert values.clock(values.local_time("2026-01-02T00:00:00+00:00")) == "Jan 2, 2026 at 12:00am (UTC)"
    assert values.minute("0001-01-01T00:00:00Z") == ""


def test_pairs_and_changes() -> None:
    assert values.pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    assert values.changes(["user.a", "b c"]) == {"user.a": "b c"}
    assert values.changes(["a=1", "b=2"]) == {"a": "1", "b": "2"}
    for wrong in (["a"], ["=b"], ["a=b", "c"]):
        with pytest.raises(UsageError, match="key=value"):
            values.changes(wrong)


# ---- instances


def instance(**more: Any) -> dict[str, Any]:
    nic = {"type": "broadcast", "addresses": [{"family": "inet", "address": "10.0.3.7", "scope": "global"}]}
    base = {
        "name": "web-1",
        "type": "container",
        "status": "Running",
        "architecture": "x86_64",
        "location": "none",
        "ephemeral": False,
        "config": {"volatile.base_image": "0123456789abcdef"},
        "expanded_config": {"user.owner": "ann", "volatile.eth0.hwaddr": "00:16:3e:00:00:01"},
        "expanded_devices": {"root": {"type": "disk", "path": "/", "pool": "fast"}},
        "state": {"network": {"eth0": nic}, "disk": {"root": {"usage": 2048}}, "cpu": {"usage": 3 * 10**9}},
    }
    return base | more


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        (["web"], True),
        (["eb"], False),
        ([".*b-1$"], True),
        (["web", "status=stopped"], False),
        (["user.owner=ann"], True),
        (["u.owner=ann"], True),
        (["owner=ann"], False),
        (["user.owner=a.*"], True),
        (["user.owner=nn"], False),
        (["v.eth0.hwaddr=00:16:.*"], True),
        (["status=running,frozen", "type=container"], True),
        (["architecture=X86_64"], True),
        (["location=none"], True),
        (["ipv4=10.0.3.0/24"], True),
        (["ipv4=10.0.4.1,10.0.3.7"], True),
        (["ipv6=fd00::/8"], False),
    ],
)
def test_filters(filters: list[str], fits: bool) -> None:
    assert matches(instance(), filters) is fits


@pytest.mark.parametrize("text", ["web[", "ipv4=10.0.0.0/99", "ipv4=abc"])
def test_filters_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        matches(instance(), [text])


def test_columns() -> None:
    chosen, needs_state = columns("nf,b,user.owner:OWNER,devices:root.pool,config:user.owner::2,4uD")
    cells = [(name, cell(instance())) for name, cell in chosen]
    assert cells == [
        ("NAME", "web-1"),
        ("BASE IMAGE", "0123456789ab"),
        ("STORAGE POOL", "fast"),
        ("OWNER", "ann"),
        ("ROOT POOL", "fast"),
        ("", "an"),
        ("IPV4", "10.0.3.7 (eth0)"),
        ("CPU USAGE", "3s"),
        ("DISK USAGE", "2.00KiB"),
    ]
    assert needs_state
    assert not columns("nsacPt")[1]


@pytest.mark.parametrize("text", ["", "n,,s", "Z", "a.b:c:d:e:f", "devices:root", "a.b:c:-3", "a.b:c:x"])
def test_columns_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        columns(text)


# ---- multipart


def form(boundary: str, *parts: tuple[str, bytes]) -> bytes:
    made = b""
    for name, data in parts:
        head = f'Content-Disposition: form-data; filename="{name}"'
        made += f"\r\n--{boundary}\r\n{head}\r\n\r\n".encode() + data
    return made + f"\r\n--{boundary}--\r\n".encode()


@given(st.lists(st.tuples(st.text("abc.", min_size=1), st.binary()), min_size=1), st.integers(1, 50))
def test_files_in_pieces(parts: list[tuple[str, bytes]], step: int) -> None:
    body = form("=mark=", *parts)
    pieces = iter([body[i : i + step] for i in range(0, len(body), step)])
    assert [(name, b"".join(data)) for name, data in multipart.split(pieces, "=mark=")] == parts


@pytest.mark.parametrize("cut", [3, 30, 60, 90])
def test_a_form_that_is_cut_off(cut: int) -> None:
    body = form("=mark=", ("a", b"x" * 20))[:cut]
    with pytest.raises(BadAnswer, match="ended in the middle"):
        [b"".join(data) for _, data in multipart.split(iter([body]), "=mark=")]


def test_a_part_with_an_endless_head() -> None:
    body = b"--m\r\n" + b"x" * 100_000
    with pytest.raises(BadAnswer, match="head is too long"):
        [b"".join(data) for _, data in multipart.split(iter([body[:70_000], body[70_000:]]), "m")]


# ---- id maps

BOTH = (
    '[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":65536},'
    '{"Isuid":false,"Isgid":true,"Hostid":1000000,"Nsid":0,"Maprange":65536}]'
)
HOLED = (
    '[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":1000},'
    '{"Isuid":true,"Isgid":false,"Hostid":33,"Nsid":1000,"Maprange":1},'
    '{"Isuid":false,"Isgid":true,"Hostid":1000000,"Nsid":0,"Maprange":65536}]'
)


def shown_maps(*, running: bool = True, **keys: str) -> list[str]:
    config = {f"volatile.idmap.{name}": value for name, value in keys.items()}
    return list(idmaps.describe(config, running=running))


def test_id_map_in_use_that_stays_is_shown_once() -> None:
    assert shown_maps(current=BOTH, next=BOTH) == [
        "Id map:",
        "  In use and at the next start:",
        "    uids and gids 0-65535 -> 1000000-1065535 on the host",
    ]


def test_changed_id_map_is_shown_beside_the_one_in_use() -> None:
    assert shown_maps(current="[]", next=HOLED) == [
        "Id map:",
        "  In use: none, root in the instance is root on the host",
        "  At the next start:",
        "    uids 0-999 -> 1000000-1000999 on the host",
        "    gids 0-65535 -> 1000000-1065535 on the host",
        "    uids 1000 -> 33 on the host",
    ]


def test_stopped_instance_has_only_the_id_map_of_its_next_start() -> None:
    shown = shown_maps(running=False, current="[]", next=BOTH)
    assert shown[1] == "  At the next start:"
    assert len(shown) == 3


@pytest.mark.parametrize("text", ["nonsense", "{}x", '[{"Isuid":true}]', '"text"', "[1]"])
def test_unreadable_id_map_is_shown_unchanged(text: str) -> None:
    assert shown_maps(current=text, next=text) == ["Id map:", f"  In use and at the next start: {text}"]


def test_no_id_map_is_shown_without_its_keys() -> None:
    assert shown_maps() == []
