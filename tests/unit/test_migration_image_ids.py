"""Images of a running state for another id map: owners of cgroups follow it, and all else stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.idmap import IdMap, IdRange
from utsuwa.core.protobuf import encoded
from utsuwa.host.checkpoint.image_format import messages, with_messages
from utsuwa.migration import image_ids

MAGIC = b"\x19CVT\x30\x33\x38\x59"
THEIRS = IdMap((IdRange(0, 1_000_000, 1_000_000),), (IdRange(0, 2_000_000, 1_000_000),))
OURS = IdMap((IdRange(0, 500_000, 1000), IdRange(1000, 900_000, 10)), (IdRange(0, 600_000, 65_536),))


def varint(number: int, value: int) -> bytes:
    return encoded(number, 0, value)


def part(number: int, *fields: bytes) -> bytes:
    return encoded(number, 2, b"".join(fields))


def owner(number: int, uid: int, gid: int) -> bytes:
    return part(number, varint(1, 0o755), varint(2, uid), varint(3, gid))


def cgroups(top: tuple[int, int], file: tuple[int, int], inner: tuple[int, int]) -> bytes:
    """Return an image as of a controller with a group, which has a file and another group."""
    deep = part(2, part(1, b"deep"), owner(4, *inner))
    named = part(3, part(1, b"cgroup.procs"), part(2, b"1"), owner(3, *file))
    group = part(2, part(1, b"/x"), deep, named, owner(4, *top))
    sets = part(1, varint(1, 5), part(2, part(1, b"cpu"), part(2, b"/x"), varint(3, 31)))
    unknown = encoded(77, 1, 2**40) + encoded(78, 5, 7) + part(79, b"\xff\xff")
    return with_messages(MAGIC, [sets + part(2, part(1, b"cpu"), group) + unknown])


def write(folder: Path, image: bytes) -> None:
    (folder / "cgroup.img").write_bytes(image)
    (folder / "userns-9.img").write_bytes(with_messages(MAGIC, [b""]))


def test_owners_and_the_map_become_those_of_this_host(tmp_path: Path) -> None:
    write(tmp_path, cgroups((1_000_000, 2_000_000), (1_001_005, 2_000_005), (0, 0)))
    image_ids.change(tmp_path, THEIRS, OURS)
    assert (tmp_path / "cgroup.img").read_bytes() == cgroups((500_000, 600_000), (900_005, 600_005), (0, 0))
    (described,) = messages((tmp_path / "userns-9.img").read_bytes())

    def extent(number: int, inside: int, host: int, count: int) -> bytes:
        return part(number, varint(1, inside), varint(2, host), varint(3, count))

    expected = extent(1, 0, 500_000, 1000) + extent(1, 1000, 900_000, 10) + extent(2, 0, 600_000, 65_536)
    assert described == expected


def test_what_criu_has_not_initialized_is_no_owner(tmp_path: Path) -> None:
    state = part(3, part(1, b"freezer.state"), part(2, b"FROZEN"), owner(3, 1_005_000, 2_000_000))
    image = with_messages(MAGIC, [part(2, part(1, b"freezer"), part(2, part(1, b"/x"), state))])
    write(tmp_path, image)
    image_ids.change(tmp_path, THEIRS, OURS)
    assert (tmp_path / "cgroup.img").read_bytes() == image


def test_an_id_without_counterpart_is_refused(tmp_path: Path) -> None:
    write(tmp_path, cgroups((1_005_000, 2_000_000), (0, 0), (0, 0)))
    with pytest.raises(InvalidRequest, match="The id 5000 is in use"):
        image_ids.change(tmp_path, THEIRS, OURS)


def nested(depth: int) -> bytes:
    found = b""
    for _ in range(depth):
        found = part(2, found)
    return with_messages(MAGIC, [found])


@pytest.mark.parametrize(
    "damaged",
    [MAGIC + b"\x01", with_messages(MAGIC, [b"\x08"]), with_messages(MAGIC, [b"\x00\x00"]), nested(200)],
)
def test_damaged_images_are_refused(tmp_path: Path, damaged: bytes) -> None:
    write(tmp_path, damaged)
    with pytest.raises(InvalidRequest, match="damaged"):
        image_ids.change(tmp_path, THEIRS, OURS)
