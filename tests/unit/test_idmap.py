"""Id maps: what root may map, how it is divided, and what raw.idmap punches into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import HostError, InvalidConfig
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.security import idmap
from utsuwa.security.idmap import HostIds, HostRange

BASE, COUNT = 1_000_000, 1_000_000_000
HOST = HostIds(uids=(HostRange(BASE, COUNT),), gids=(HostRange(BASE, COUNT),))
WITH_1000 = HostIds(
    uids=(HostRange(1000, 11), HostRange(BASE, COUNT)), gids=(HostRange(1000, 11), HostRange(BASE, COUNT))
)
WHOLE = (IdRange(0, BASE, COUNT),)


def test_reads_roots_entries_by_name_and_by_number_and_merges_them() -> None:
    text = "alice:1:5\nroot:1000000:65536\n0:1065536:65536\n\nroot:1000:1\nroot:bad:1\nroot:5\n"
    text += "root:4294967295:1\nroot:1:0\n"
    assert idmap.parse_subids(text) == (HostRange(1000, 1), HostRange(1000000, 131072))


def test_two_ranges_of_root_side_by_side_are_one() -> None:
    """As on a host where Debian's LXD has been beside: a container may use all of both."""
    text = "root:1000000:1000000000\n_lxd:1001000000:10000001\nroot:1001000000:10000001\n"
    ranges = idmap.parse_subids(text)
    assert ranges == (HostRange(1000000, 1010000001),)
    assert idmap.choose({}, HostIds(ranges, ranges)).idmap.uids == (IdRange(0, 1000000, 1010000001),)


def test_the_host_is_read_from_files_and_cut_to_this_namespace(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("root:1000000:1000000000\n")
    (tmp_path / "subgid").write_text("root:1000000:1000000000\n")
    (tmp_path / "uid_map").write_text("         0          0 4294967295\n")
    (tmp_path / "gid_map").write_text("         0     100000    1500000\n")
    host = idmap.read_host_ids(tmp_path, tmp_path)
    assert host == HostIds(uids=(HostRange(1000000, 1000000000),), gids=(HostRange(1000000, 500000),))


@pytest.mark.parametrize(
    ("kernel_map", "line"),
    [
        ("0 0 4294967295", "root:1000000:1000000000"),
        ("0 1000000 1000000000", "root:1000000:999000000"),
        ("0 1000000 1048576", "root:65536:983040"),
        ("0 1000000 65536\n200000 300000 70000", "root:200000:70000"),
        ("0 1000000 131071", "root:1000000:1000000000"),
        ("", "root:1000000:1000000000"),
    ],
    ids=["a host", "a container", "few ids", "two ranges", "too few ids", "unreadable"],
)
def test_the_suggested_range_lies_within_this_user_namespace(
    tmp_path: Path, kernel_map: str, line: str
) -> None:
    for name in ("uid_map", "gid_map"):
        (tmp_path / name).write_text(kernel_map)
    assert idmap.suggested(tmp_path) == line


def test_missing_files_result_in_advice(tmp_path: Path) -> None:
    host = idmap.read_host_ids(tmp_path, tmp_path)
    with pytest.raises(HostError, match=r"root:1000000:1000000000 to /etc/subuid"):
        idmap.choose({}, host)


def test_a_range_too_small_for_a_container_is_refused() -> None:
    small = HostIds(uids=HOST.uids, gids=(HostRange(1000, 65535),))
    with pytest.raises(HostError, match="/etc/subgid"):
        idmap.choose({}, small)


def test_default_is_the_largest_range() -> None:
    assert idmap.choose({}, WITH_1000) == idmap.Choice(IdMap(WHOLE, WHOLE), 0)


def test_privileged_needs_no_range() -> None:
    assert idmap.choose({"security.privileged": "true"}, HostIds((), ())) == idmap.Choice(IdMap(), 0)


def test_an_isolated_map_for_nesting_has_ids_for_containers() -> None:
    config = {"security.idmap.isolated": "true", "security.nesting": "true"}
    assert idmap.choose(config, HOST).idmap.uids[0].count == idmap.NESTING
    given = idmap.choose(config | {"security.idmap.size": "70000"}, HOST)
    assert given.idmap.uids[0].count == 70000


def test_isolated_maps_follow_each_other_and_are_used_again() -> None:
    config = {"security.idmap.isolated": "true"}
    first = idmap.choose(config, HOST)
    assert first.base == BASE + 65536
    assert first.idmap.uids == first.idmap.gids == (IdRange(0, BASE + 65536, 65536),)
    held = idmap.held_ranges(HOST, idmap.to_json(first.idmap), "", "")
    assert set(held) == {HostRange(BASE + 65536, 65536)}
    second = idmap.choose(config, HOST, held)
    assert second.base == BASE + 131072
    assert idmap.choose(config, HOST, [HostRange(second.base, 65536)]).base == first.base


def test_size_and_base_are_applied() -> None:
    config = {"security.idmap.isolated": "true", "security.idmap.size": "110000"}
    assert idmap.choose(config, HOST).idmap.uids == (IdRange(0, BASE + 65536, 110000),)
    config["security.idmap.base"] = str(BASE + 12345)
    assert idmap.choose(config, HOST).idmap.gids == (IdRange(0, BASE + 12345, 110000),)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("security.idmap.size", "0"),
        ("security.idmap.size", "-1"),
        ("security.idmap.size", "many"),
        ("security.idmap.size", str(COUNT + 1)),
        ("security.idmap.size", "9999999999"),
        ("security.idmap.base", "0"),
        ("security.idmap.base", str(BASE + COUNT - 1)),
    ],
)
def test_sizes_and_bases_that_do_not_fit(key: str, value: str) -> None:
    with pytest.raises(InvalidConfig, match=r"security\.idmap"):
        idmap.choose({"security.idmap.isolated": "true", key: value}, HOST)


def test_default_map_is_not_reserved() -> None:
    text = idmap.to_json(idmap.choose({}, WITH_1000).idmap)
    assert not idmap.held_ranges(WITH_1000, text, text, "")
    assert not idmap.held_ranges(HOST, "", "", "")


def test_raw_ids_are_held() -> None:
    text = idmap.to_json(idmap.choose({"raw.idmap": "both 1000 1000"}, WITH_1000).idmap)
    assert idmap.held_ranges(WITH_1000, text, "", "") == {HostRange(1000, 1)}


NARROW = HostIds((HostRange(100000, 65536),), (HostRange(100000, 65536),))


@pytest.mark.parametrize(
    ("config", "host", "allowed"),
    [
        ({}, WITH_1000, True),
        ({}, NARROW, False),
        ({}, HostIds(WITH_1000.uids, NARROW.gids), False),
        ({}, HostIds((), ()), False),
        ({"raw.idmap": "both 1000 1000"}, WITH_1000, True),
        ({"raw.idmap": "both 1000 1000"}, HOST, False),
        ({"security.idmap.isolated": "true"}, HOST, True),
        ({"security.privileged": "true"}, HostIds((), ()), True),
    ],
)
def test_a_map_is_permitted_while_root_has_all_of_its_ids(
    config: dict[str, str], host: HostIds, allowed: bool
) -> None:
    """(incus#458)"""
    assert idmap.permitted(idmap.choose(config, WITH_1000).idmap, host) is allowed


def test_a_map_that_root_lost_is_held_only_while_an_instance_runs_with_it() -> None:
    text = idmap.to_json(idmap.choose({"security.idmap.isolated": "true"}, HOST).idmap)
    assert not idmap.held_ranges(NARROW, text, text, "STOPPED")
    assert idmap.held_ranges(NARROW, text, text, "RUNNING") == {HostRange(BASE + 65536, 65536)}


def test_held_ids_are_those_of_the_host_that_is_asked_about() -> None:
    """They are cached, and the files that assign ids to root may change."""
    text = idmap.to_json(idmap.choose({"security.idmap.isolated": "true"}, HOST).idmap)
    for _ in range(2):
        assert idmap.held_on(HOST)(text, text, "") == {HostRange(BASE + 65536, 65536)}
        assert not idmap.held_on(NARROW)(text, text, "")


def test_raw_idmap_replaces_mapped_ids() -> None:
    chosen = idmap.choose({"raw.idmap": "uid 1000 1000\n\n both 1001-1003 2000-2002 "}, WITH_1000).idmap
    assert chosen.uids == (
        IdRange(0, BASE, 1000),
        IdRange(1000, 1000, 1),
        IdRange(1001, BASE + 1001, 999),
        IdRange(2000, 1001, 3),
        IdRange(2003, BASE + 2003, COUNT - 2003),
    )
    assert chosen.host_gid(1000) == BASE + 1000
    assert chosen.host_gid(2002) == 1003


def test_raw_ids_of_the_daemons_range_outside_of_an_isolated_map() -> None:
    config = {"security.idmap.isolated": "true", "raw.idmap": f"uid {BASE} 1000000\ngid {BASE + 1} 1000000"}
    chosen = idmap.choose(config, HOST).idmap
    assert (chosen.host_uid(1000000), chosen.host_gid(1000000)) == (BASE, BASE + 1)


def test_a_provisional_map_lacks_what_root_may_not_map() -> None:
    config = {"raw.idmap": "both 1000 1000\nuid 999 5"}
    with pytest.raises(InvalidConfig, match="root:999:1"):
        idmap.choose(config, WITH_1000)
    chosen = idmap.choose(config, WITH_1000, provisional=True).idmap
    assert (chosen.host_uid(1000), chosen.host_uid(5)) == (1000, BASE + 5)
    assert idmap.permitted(chosen, WITH_1000)
    assert idmap.lacks_raw(config, chosen)
    assert not idmap.lacks_raw({"raw.idmap": "both 1000 1000"}, chosen)
    assert not idmap.lacks_raw({}, chosen)
    assert not idmap.lacks_raw(config, idmap.choose({"security.privileged": "true"}, WITH_1000).idmap)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (f"uid {BASE + 1} 1000", "already uses"),
        (f"gid {BASE + 1} 1000", "already uses"),
        ("uid 999 1000", "root may not map: add the line root:999:1 to /etc/subuid"),
        ("uid 0-1 0-1", "root may not map: add the line root:0:2 to /etc/subuid"),
        ("gid 1010-1011 1-2", "/etc/subgid"),
        ("uid 1000 1000\nuid 1000 1001", "of the host twice"),
        ("uid 1000-1002 5-7\nboth 1003 6", "of the container twice"),
        ("uid 1000", "Invalid line"),
        ("user 1000 1000", "Invalid line"),
        ("both 1000-1002 1000-1003", "differ in length"),
        ("both 1002-1000 1002-1000", "no ids"),
        ("uid 1000 4294967295", "no ids"),
        ("uid 1000 1000 extra", "Invalid line"),
        ("uid ١ ١", "Invalid line"),
    ],
)
def test_raw_maps_that_are_refused(raw: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        idmap.choose({"raw.idmap": raw}, WITH_1000)


def test_root_may_map_its_own_ids() -> None:
    chosen = idmap.choose({"raw.idmap": "both 0 5"}, HOST).idmap
    assert IdRange(5, 0, 1) in chosen.uids
    assert IdRange(5, 0, 1) in chosen.gids


def test_too_many_ranges_for_the_kernel_are_rejected() -> None:
    host = HostIds(uids=(HostRange(1000, 400), HostRange(BASE, COUNT)), gids=HOST.gids)
    for count, step in ((200, 2), (341, 1)):
        raw = "\n".join(f"uid {1000 + n} {step * n}" for n in range(count))
        with pytest.raises(InvalidConfig, match="more than 340 ranges"):
            idmap.choose({"raw.idmap": raw}, host)


def test_json_is_lxds() -> None:
    text = idmap.to_json(IdMap(WHOLE, WHOLE))
    assert json.loads(text) == [
        {"Isuid": True, "Isgid": False, "Hostid": BASE, "Nsid": 0, "Maprange": COUNT},
        {"Isuid": False, "Isgid": True, "Hostid": BASE, "Nsid": 0, "Maprange": COUNT},
    ]
    assert idmap.from_json(text) == IdMap(WHOLE, WHOLE)
    assert idmap.to_json(IdMap()) == "[]"
    assert idmap.from_json("") == idmap.from_json("[]") == idmap.from_json("null") == IdMap()


def test_json_entries_for_both_kinds_at_once() -> None:
    text = '[{"Isuid":true,"Isgid":true,"Hostid":5,"Nsid":0,"Maprange":7}]'
    assert idmap.from_json(text) == IdMap((IdRange(0, 5, 7),), (IdRange(0, 5, 7),))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "7",
        "[7]",
        '[{"Isuid":true}]',
        '[{"Isuid":true,"Isgid":false,"Hostid":5,"Nsid":0,"Maprange":7}]',
        '[{"Isuid":true,"Isgid":true,"Hostid":-5,"Nsid":0,"Maprange":7}]',
        '[{"Isuid":true,"Isgid":true,"Hostid":"5","Nsid":0,"Maprange":7}]',
        "[" * 100000,
    ],
)
def test_json_that_is_no_map(text: str) -> None:
    with pytest.raises(InvalidConfig, match="Invalid id map"):
        idmap.from_json(text)


small = st.integers(0, 200)
ranges = st.builds(HostRange, small, st.integers(1, 50))


@given(st.lists(ranges, max_size=8), st.integers(1, 60), ranges)
def test_first_gap_touches_nothing_and_misses_nothing(
    taken: list[HostRange], size: int, space: HostRange
) -> None:
    found = idmap.first_gap(space, size, taken)
    fitting = [
        start
        for start in range(space.start, space.end - size + 1)
        if not any(HostRange(start, size).overlaps(t) for t in taken)
    ]
    assert (found.start if found else None) == (fitting[0] if fitting else None)


entries = st.builds(
    lambda kind, host, container, count: (
        f"{kind} {1000 + host}-{1000 + host + count - 1} {container}-{container + count - 1}"
    ),
    st.sampled_from(["uid", "gid", "both"]),
    small,
    st.integers(0, 70000),
    st.integers(1, 20),
)


def _doubles(lines: list[str]) -> bool:
    """Whether the lines name an id twice, counted one by one."""
    seen = set()
    for line in lines:
        kind, host, container = line.split()
        for what in ("uid", "gid") if kind == "both" else (kind,):
            for side, (first, last) in (("h", host.split("-")), ("c", container.split("-"))):
                for n in range(int(first), int(last) + 1):
                    if (what, side, n) in seen:
                        return True
                    seen.add((what, side, n))
    return False


@given(st.lists(entries, max_size=6), st.booleans())
def test_maps_are_complete_and_injective(lines: list[str], isolated: bool) -> None:
    extra = HostRange(1000, 300)
    host = HostIds(uids=(extra, *HOST.uids), gids=(extra, *HOST.gids))
    config = {"raw.idmap": "\n".join(lines), "security.idmap.isolated": str(isolated).lower()}
    if _doubles(lines):
        with pytest.raises(InvalidConfig, match="twice"):
            idmap.choose(config, host)
        return
    chosen = idmap.choose(config, host).idmap
    for kind in (chosen.uids, chosen.gids):
        inside = sorted((r.container, r.container + r.count) for r in kind)
        outside = sorted((r.host, r.host + r.count) for r in kind)
        for spans in (inside, outside):
            assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        covered = sum(min(end, 65536) - min(start, 65536) for start, end in inside)
        assert covered == 65536
    assert idmap.from_json(idmap.to_json(chosen)) == chosen
