"""The messages of a migration: encoding, decoding, and what both sides agree on."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidRequest, UtsuwaError
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.protobuf import InvalidMessage, Message
from utsuwa.host.rsync import Options
from utsuwa.migration import index, negotiation
from utsuwa.migration.messages import (
    NOT_LIVE,
    Control,
    Header,
    IdRangeMessage,
    KeyValue,
    OwnFeatures,
    RsyncFeatures,
    SavedStates,
    SnapshotMessage,
)
from utsuwa.migration.received_snapshots import moment


def values(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Messages of a type, with any values of their fields."""
    fields = {}
    for field in kind.FIELDS.values():
        if isinstance(field.kind, type):
            one = values(field.kind)
        elif field.kind == "bool":
            one = st.booleans()
        elif field.kind == "int":
            one = st.integers(-(2**63), 2**63 - 1)
        else:
            one = st.text(max_size=20)
        fields[field.name] = st.lists(one, max_size=3) if field.repeated else st.none() | one
    return st.builds(kind, **fields)


@given(values(Header))
def test_a_message_is_decoded_as_it_was_encoded(header: Header) -> None:
    assert Header.decode(header.encode()) == header


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidMessage):
        Header.decode(data)


@given(values(Header), st.data())
def test_a_message_that_is_cut_off_is_refused_or_another_one(header: Header, data: st.DataObject) -> None:
    whole = header.encode()
    part = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        found = Header.decode(part)
    except InvalidMessage:
        return
    assert found.encode() == part


def test_numbers_and_types_are_those_of_the_protocol() -> None:
    header = Header(fs=0, snapshot_names=["s"], rsync=RsyncFeatures(xattrs=True), index_version=1)
    assert header.encode() == b"\x08\x00\x22\x01s\x42\x02\x08\x01\x68\x01"
    assert Control(success=True, message="").encode() == b"\x08\x01\x12\x00"
    assert Control.decode(b"\x08\x00\x12\x02no") == Control(success=False, message="no")


def test_unknown_fields_of_every_type_are_skipped() -> None:
    unknown = b"\xa0\x06\x05" + b"\xa1\x06" + bytes(8) + b"\xa2\x06\x02ab" + b"\xa5\x06" + bytes(4)
    assert Header.decode(unknown + b"\x08\x00") == Header(fs=0)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # no value
        b"\x22\x05ab",  # shorter than it says
        b"\x22\x01\xff",  # no text
        b"\x0a\x00",  # text for a number
        b"\x20\x01",  # a number for text
        b"\x08" + b"\xff" * 10 + b"\x01",  # too large
        b"\x0b",  # a group
        b"\x00\x00",  # the number 0
    ],
)
def test_invalid_messages_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        Header.decode(data)


def offer(**more: Any) -> Header:
    rsync = RsyncFeatures(xattrs=True, delete=True, compress=True, bidirectional=True)
    return dataclasses.replace(Header(fs=0, rsync=rsync, index_version=1), **more)


def agreed(offered: Header, *, compress: bool = True) -> tuple[Header, Options]:
    answer = negotiation.answer_to(
        offered,
        compress=compress,
        refresh=False,
        names=list(offered.snapshot_names),
        able=OwnFeatures(links=True),
    )
    assert negotiation.options_of(offered, answer) == negotiation.options_of(
        offered, Header.decode(answer.encode())
    )
    return answer, negotiation.options_of(offered, answer)


def test_what_both_sides_can_is_used() -> None:
    assert agreed(offer())[1] == Options(xattrs=True, delete=True, compress=True)
    assert agreed(offer(), compress=False)[1] == Options(xattrs=True, delete=True)
    with_own = offer(own=OwnFeatures(links=True))
    assert agreed(with_own)[1] == Options(xattrs=True, delete=True, links=True)


def test_a_handover_needs_both_sides() -> None:
    known, unknown = OwnFeatures(links=True, handover=True), OwnFeatures(links=True)
    assert negotiation.common(known, known).handover
    assert not negotiation.common(known, unknown).handover
    assert not negotiation.common(unknown, known).handover


def test_only_offered_running_states_are_sent() -> None:
    states = SavedStates("c1", ["one", "two"], own=True)
    offered = offer(own=OwnFeatures(links=True, states=states))

    def chosen(answer: SavedStates | None) -> SavedStates | None:
        return negotiation.chosen_states(offered, offer(own=OwnFeatures(links=True, states=answer)))

    assert chosen(SavedStates("c1", ["two"])) == SavedStates("c1", ["two"])
    for lying in (SavedStates("c1", ["three"]), None):
        with pytest.raises(InvalidRequest):
            chosen(lying)
    assert negotiation.chosen_states(offer(), offer()) is None
    of_snapshots = offer(own=OwnFeatures(links=True, states=SavedStates("c1", ["one"])))
    assert negotiation.chosen_states(of_snapshots, offer()) is None


def test_servers_of_long_ago_have_fixed_options() -> None:
    assert agreed(offer(rsync=None))[1] == Options(xattrs=True, delete=True, compress=True)


def test_another_kind_of_transfer_is_answered_by_rsync_and_refused_as_an_answer() -> None:
    assert agreed(offer(fs=2))[0].fs == 0
    with pytest.raises(InvalidRequest):
        negotiation.options_of(offer(), offer(fs=2))


def test_the_answer_repeats_the_second_pass_and_limits_the_index() -> None:
    answer, _ = agreed(offer(criu=NOT_LIVE, index_version=7))
    assert (answer.criu, answer.index_version) == (NOT_LIVE, 1)
    assert agreed(offer(criu=0, index_version=-1))[0].index_version == 0


def test_only_offered_snapshots_are_sent_in_their_order() -> None:
    offered = offer(snapshot_names=["a", "b", "c"])
    assert negotiation.chosen_snapshots(offered, Header(refresh=False)) == ["a", "b", "c"]
    answer = Header(refresh=True, snapshot_names=["c", "a"])
    assert negotiation.chosen_snapshots(offered, answer) == ["a", "c"]
    with pytest.raises(InvalidRequest):
        negotiation.chosen_snapshots(offered, Header(refresh=True, snapshot_names=["../x"]))


@pytest.mark.parametrize(
    ("names", "described"),
    [
        (["../etc"], []),
        (["a/b"], []),
        ([""], []),
        (["."], []),
        (["a", "a"], []),
        (["a"], ["b"]),
        (["a", "b"], ["a"]),
        ([], ["a"]),
        ([str(number) for number in range(10_001)], []),
    ],
)
def test_snapshots_of_a_lying_peer_are_refused(names: list[str], described: list[str]) -> None:
    snapshots = [SnapshotMessage(name=name) for name in described]
    with pytest.raises(UtsuwaError):
        negotiation.check_names(Header(snapshot_names=names, snapshots=snapshots))


def test_id_maps_are_read_in_both_forms() -> None:
    ranges = (IdRange(0, 1000000, 65536),)
    found = IdMap(ranges, ranges)
    assert negotiation.owners_of(negotiation.owners_message(found)) == found
    assert negotiation.owners_of([IdRangeMessage(True, True, 1000000, 0, 65536)]) == found
    assert negotiation.owners_of([]) == IdMap()


@pytest.mark.parametrize(
    "entries",
    [
        [(True, True, 1000000, 0, 0)],
        [(True, True, 1000000, 0, -1)],
        [(True, True, -5, 0, 10)],
        [(True, True, 2**32 - 2, 0, 10)],
        [(True, True, 1000000, 5, 10)],  # without root
        [(True, False, 1000000, 0, 10)],  # without groups
        [(True, True, 1000000, 0, 10), (True, True, 1000005, 100, 10)],
        [(True, True, 1000000, 0, 10), (True, True, 2000000, 5, 10)],
        [(True, True, 1000000 + 10 * i, 10 * i, 10) for i in range(341)],
    ],
)
def test_impossible_id_maps_are_refused(entries: list[tuple[bool, bool, int, int, int]]) -> None:
    with pytest.raises(InvalidRequest):
        negotiation.owners_of([IdRangeMessage(*entry) for entry in entries])


def test_an_index_is_read_in_the_words_of_every_server() -> None:
    inner = b'{"volume": {"config": {"user.x": "1"}}, "volume_snapshots": [{"name": "s", "config": null}]}'
    found = index.decode(b'{"config": ' + inner + b"}")
    assert found.config == {"user.x": "1"}
    assert found.snapshots["s"].config == {}
    again = index.decode(index.encode("custom", "v", {"a": "b"}, "text", ()))
    assert (again.config, again.description) == ({"a": "b"}, "text")
    assert index.decode(b"{}") == index.Index()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"5", b'{"config": 5}', b'{"config": {"volume": 5}}', b"\xff"],
)
def test_an_invalid_index_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        index.decode(data)


def test_an_index_is_confirmed_or_refused() -> None:
    index.check_answer(index.answer(refresh=True))
    for data in (b"", b"[]", b'{"StatusCode": 400, "Error": "no"}', b'{"StatusCode": null}'):
        with pytest.raises(InvalidRequest):
            index.check_answer(data)


def test_a_control_message_has_a_reason() -> None:
    assert KeyValue.decode(KeyValue("a", "b").encode()) == KeyValue("a", "b")


def test_dates_are_seconds_or_nanoseconds() -> None:
    assert (
        moment(1_700_000_000)
        == moment(1_700_000_000 * 10**9)
        == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    )
    assert moment(0) is moment(-62_135_596_800) is None
    latest = moment(2**63 - 1)
    assert latest is not None
    assert latest.year == 2262
