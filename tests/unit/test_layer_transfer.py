"""What two servers say of the layers that they exchange: documents that are checked before they are used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import HostError, InvalidRequest
from utsuwa.core.pool_keys import bytes_per_second
from utsuwa.migration import layers
from utsuwa.migration.messages import OwnFeatures
from utsuwa.migration.negotiation import common
from utsuwa.storage.drivers import layer_marks
from utsuwa.storage.layer_transfer import MAX_CHAIN, fingerprint_of, image_id, is_chain

A, B = "a" * 16, "b" * 16
IMAGE = image_id("c" * 64)


def test_a_chain_consists_of_layers_and_perhaps_an_image_below_them() -> None:
    assert all(map(is_chain, [(A,), (A, B), (A, B, IMAGE), (IMAGE,)]))
    assert fingerprint_of(IMAGE) == "c" * 64
    assert fingerprint_of(A) is None


@pytest.mark.parametrize(
    "chain",
    [(), (A, A), (IMAGE, A), ("../../etc",), (A + "\n",), ("A" * 16,), ("image-x",)]
    + [tuple(f"{number:016x}" for number in range(MAX_CHAIN + 1))],
)
def test_other_chains_are_refused(chain: tuple[str, ...]) -> None:
    assert not is_chain(chain)
    with pytest.raises(InvalidRequest, match="other layers than there can be"):
        layers.decode_chains(layers.encode_chains([chain]), 1)


def test_a_layer_comes_after_those_below_it_and_once() -> None:
    assert layers.in_order([(A, IMAGE), (B, A, IMAGE)]) == [IMAGE, A, B]


def test_there_must_be_a_chain_of_each_volume() -> None:
    assert layers.decode_chains(layers.encode_chains([(A,), (B, A)]), 2) == [(A,), (B, A)]
    with pytest.raises(InvalidRequest):
        layers.decode_chains(layers.encode_chains([(A,)]), 2)


@pytest.mark.parametrize("wanted", [[B], [A, A], [""]])
def test_only_offered_layers_can_be_wanted(wanted: list[str]) -> None:
    assert layers.decode_wanted(layers.encode_wanted([A]), [(A, IMAGE)]) == [A]
    with pytest.raises(InvalidRequest, match="not offered"):
        layers.decode_wanted(layers.encode_wanted(wanted), [(A, IMAGE)])


@given(st.binary(max_size=40) | st.recursive(st.none() | st.text(), st.lists).map(msgspec.json.encode))
def test_anything_else_is_refused(document: bytes) -> None:
    for decode in (lambda: layers.decode_chains(document, 1), lambda: layers.decode_wanted(document, [(A,)])):
        try:
            decode()
        except InvalidRequest:
            continue


def test_servers_agree_on_what_both_can_do_and_prefer_layers() -> None:
    everything = OwnFeatures(links=True, stream=True, layers=True, zeros=True)
    both = common(everything, everything)
    assert (both.links, both.stream, both.layers, both.zeros) == (True, False, True, True)
    assert common(everything, OwnFeatures(links=True, stream=True)).stream
    least = common(everything, OwnFeatures(links=True))
    assert (least.links, least.stream, least.layers, least.zeros) == (True, False, False, False)
    assert common(everything, None) == common(OwnFeatures(layers=True), everything) == OwnFeatures()


@pytest.mark.parametrize(("value", "rate"), [("", 0), ("0", 0), ("100", 102_400), ("10MiB", 10 * 2**20)])
def test_a_number_limits_the_bandwidth_in_kib(value: str, rate: int) -> None:
    assert bytes_per_second(value) == rate


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    tree = tmp_path / "layer"
    (tree / "a" / "b\n").mkdir(parents=True)
    (tree / "link").symlink_to(tmp_path)
    return tree


def test_sockets_get_what_they_had(layer: Path, tmp_path: Path) -> None:
    place = layer / "a" / "b\n" / "socket"
    os.mknod(place, 0o640 | stat.S_IFSOCK)
    os.utime(place, ns=(5, 5))
    marks = layer_marks.parse(layer_marks.collect(layer))
    place.unlink()
    before = place.parent.stat().st_mtime_ns
    layer_marks.apply(layer, marks)
    status = place.lstat()
    assert (stat.S_ISSOCK(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o640)
    assert (status.st_mtime_ns, place.parent.stat().st_mtime_ns) == (5, before)


def test_marks_of_directories_are_found_at_any_depth(layer: Path) -> None:
    (layer / "a" / "c" / "d").mkdir(parents=True)
    os.setxattr(layer / "a" / "b\n", "trusted.overlay.opaque", b"y")
    os.setxattr(layer / "a" / "c" / "d", "trusted.overlay.redirect", b"/e")
    os.setxattr(layer / "a" / "c", "user.other", b"y")
    marks = layer_marks.parse(layer_marks.collect(layer))
    found = {(mark.path, mark.kind, mark.value) for mark in marks}
    assert found == {(b"a/b\n", b"o", b"y"), (b"a/c/d", b"r", b"/e")}


def test_directories_without_an_end_are_refused(layer: Path) -> None:
    """A guest can nest them; each one that is open takes memory and a descriptor of the daemon."""
    nested = [layer]
    for _ in range(1001):
        nested.append(nested[-1] / "x")
        nested[-1].mkdir()
    try:
        with pytest.raises(HostError, match="more than 1000 levels deep"):
            layer_marks.collect(layer)
        nested.pop().rmdir()
        assert layer_marks.collect(layer) == b""
    finally:
        while len(nested) > 1:  # pytest could not remove so many
            nested.pop().rmdir()


@pytest.mark.parametrize(
    "document",
    [
        b"a",
        b"a\0o\0",
        b"../a\0o\0y\0",
        b"/a\0o\0y\0",
        b"\0o\0y\0",
        b"a\0o\0x\0",
        b"a\0origin\0y\0",
        b"a\0r\0../b\0",
        b"a\0r\0b/c\0",
        b"a\0r\0/b/../c\0",
        b"a\0r\0\0",
        b"a/.\0s\x00511 0 0 0\0",
        b"a\0s\x00-1 0 0 0\0",
        b"a\0s\x0099999 0 0 0\0",
        b"a\0s\x000 0 4294967295 0\0",
    ],
)
def test_marks_that_cannot_be_are_refused(document: bytes) -> None:
    with pytest.raises(InvalidRequest, match="describes a layer wrongly"):
        layer_marks.parse(document)


@given(st.binary(max_size=60) | st.lists(st.binary(max_size=5)).map(b"\0".join))
def test_marks_of_any_bytes_are_parsed_or_refused(document: bytes) -> None:
    try:
        marks = layer_marks.parse(document)
    except InvalidRequest:
        return
    assert all(b".." not in mark.path.split(b"/") for mark in marks)


@pytest.mark.parametrize("document", [b"link\0o\0y\0", b"link/new\0s\x00511 0 0 0\0", b"gone\0o\0y\0"])
def test_marks_are_applied_in_the_layer_only(layer: Path, tmp_path: Path, document: bytes) -> None:
    with pytest.raises(InvalidRequest, match="describes a layer wrongly"):
        layer_marks.apply(layer, layer_marks.parse(document))
    assert [path.name for path in tmp_path.iterdir()] == ["layer"]
