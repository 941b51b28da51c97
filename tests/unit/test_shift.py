"""Moving owners from one id map to another: the pure part, and a tree of one's own files."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.host.files.shift import Shift, shifted_acl, shifted_capability

PLAIN = IdMap()


def mapped(*ranges: tuple[int, int, int]) -> IdMap:
    made = tuple(IdRange(*r) for r in ranges)
    return IdMap(made, made)


A = mapped((0, 100_000, 65_536))
B = mapped((0, 1_000_000, 65_536))


@given(st.integers(0, 65_535))
def test_shift_round_trip(owner: int) -> None:
    assert Shift(PLAIN, A).uid(owner) == owner + 100_000
    assert Shift(A, PLAIN).uid(owner + 100_000) == owner
    assert Shift(A, B).gid(owner + 100_000) == owner + 1_000_000


@pytest.mark.parametrize("owner", [65_536, 99_999, 200_000, 2**32 - 2])
def test_unmapped_owners_are_kept(owner: int) -> None:
    assert Shift(PLAIN, A).uid(owner) == owner
    assert Shift(A, PLAIN).uid(owner) == owner


@given(st.integers(0, 65_535))
def test_resumed_shift_does_not_shift_twice(owner: int) -> None:
    shift = Shift(PLAIN, A, resumed=True)
    assert shift.uid(shift.uid(owner)) == owner + 100_000
    again = Shift(A, PLAIN, resumed=True)
    assert again.uid(again.uid(owner + 100_000)) == owner


def test_several_ranges() -> None:
    holed = mapped((0, 100_000, 1000), (1000, 1000, 1), (1001, 101_001, 64_535))
    assert [Shift(PLAIN, holed).uid(i) for i in (0, 999, 1000, 1001)] == [100_000, 100_999, 1000, 101_001]


def test_uids_and_gids_are_shifted_by_their_own_maps() -> None:
    idmap = IdMap((IdRange(0, 100_000, 10),), (IdRange(0, 200_000, 10),))
    shift = Shift(PLAIN, idmap)
    assert (shift.uid(3), shift.gid(3)) == (100_003, 200_003)
    entries = [(0x01, 6, 2**32 - 1), (0x02, 7, 3), (0x08, 5, 4), (0x10, 7, 2**32 - 1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
    moved = list(struct.iter_unpack("<HHI", shifted_acl(acl, shift)[4:]))
    assert moved == [entries[0], (0x02, 7, 100_003), (0x08, 5, 200_004), entries[3]]


@pytest.mark.parametrize("value", [b"", b"\1\0\0\0", b"\2\0\0\0abc", b"\3\0\0\0" + bytes(8)])
def test_an_unknown_acl_is_left(value: bytes) -> None:
    assert shifted_acl(value, Shift(PLAIN, A)) == value


def test_a_capability_gets_and_loses_its_root() -> None:
    effective = 1
    plain = struct.pack("<IIIII", 0x02000000 | effective, 0x2000, 0, 0, 0)
    rooted = shifted_capability(plain, Shift(PLAIN, A))
    assert rooted == struct.pack("<IIIIII", 0x03000000 | effective, 0x2000, 0, 0, 0, 100_000)
    assert shifted_capability(rooted, Shift(A, B))[-4:] == struct.pack("<I", 1_000_000)
    assert shifted_capability(rooted, Shift(A, PLAIN)) == plain


@pytest.mark.parametrize("value", [b"", b"\0" * 20, b"\0" * 24, struct.pack("<I", 0x01000000) + bytes(8)])
def test_an_unknown_capability_is_left(value: bytes) -> None:
    assert shifted_capability(value, Shift(PLAIN, A)) == value
