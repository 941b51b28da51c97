"""Compressors: how they are named, and the parallel compressor of gzip members."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utsuwa.core.compression import COMPRESSORS, Compression, parse_compression
from utsuwa.core.errors import InvalidConfig, InvalidRequest
from utsuwa.host.archives import compress, gzip_members


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("none", Compression("none")),
        ("gzip", Compression("gzip")),
        ("gzip -1 --rsyncable", Compression("gzip", 1, rsyncable=True)),
        ("zstd -19", Compression("zstd", 19)),
        ("xz -0", Compression("xz", 0)),
        ("squashfs", Compression("squashfs")),
    ],
)
def test_a_compressor_is_named_with_its_options(text: str, meaning: Compression) -> None:
    assert parse_compression(text) == meaning


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be one of"),
        ("cat", "must be one of"),
        ("gzip -6 -k", "must be one of"),
        ("zstd;id", "must be one of"),
        ("gzip -0", "levels from 1 to 9"),
        ("zstd -20", "levels from 1 to 19"),
        ("none -1", "no levels"),
        ("xz --rsyncable", "only gzip, pigz, zstd do"),
        ("gzip --rsyncable\n", "must be one of"),
    ],
)
def test_what_is_not_a_compressor_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        parse_compression(text)


@given(st.text(max_size=30))
def test_no_text_but_a_compressor_reaches_a_command(text: str) -> None:
    try:
        meaning = parse_compression(text)
    except InvalidConfig:
        return
    assert meaning.name in COMPRESSORS
    assert text == " ".join(
        filter(
            None,
            [
                meaning.name,
                "" if meaning.level is None else text.split()[1],
                "--rsyncable" if meaning.rsyncable else "",
            ],
        )
    )


def test_every_compressor_has_a_command() -> None:
    for name in COMPRESSORS.keys() - {"squashfs"}:
        command = compress.compressor(Compression(name))
        assert bool(command) == (name != "none")
    with pytest.raises(ValueError, match="squashfs"):
        compress.compressor(Compression("squashfs"))


def test_a_compressor_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "PATH", "/nowhere")
    for name in ("gzip", "none"):
        compress.check_installed(Compression(name))
    with pytest.raises(InvalidRequest, match="install Debian's package 'squashfs-tools'"):
        compress.check_installed(Compression("squashfs"))
    with pytest.raises(InvalidRequest, match="install Debian's package 'zstd'"):
        compress.check_installed(Compression("zstd"))


def _compressed(data: bytes, threads: int = 2) -> bytes:
    source, out = io.BytesIO(data), bytearray()
    gzip_members.compress_stream(
        lambda: bytearray(source.read(gzip_members.PIECE)), out.extend, level=6, threads=threads
    )
    return bytes(out)


@pytest.fixture(params=["libdeflate", "zlib"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    way = str(request.param)
    if way == "zlib":
        monkeypatch.setattr(gzip_members, "_LIBRARY", "libnothing.so.0")
        assert gzip_members.by_libdeflate(6) is None
    elif gzip_members.by_libdeflate(6) is None:
        pytest.skip("libdeflate is not installed")
    return way


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [0, 1, gzip_members.PIECE, 5 * gzip_members.PIECE + 17])
def test_members_of_gzip_are_one_file(size: int) -> None:
    data = bytes(i * i % 251 for i in range(1 << 16)) * (size // (1 << 16) + 1)
    packed = _compressed(data[:size])
    assert gzip.decompress(packed) == data[:size]
    assert packed == _compressed(data[:size], threads=5)


@given(st.binary(max_size=300), st.sampled_from([gzip_members.by_zlib, gzip_members.by_libdeflate]))
@settings(max_examples=50)
def test_every_piece_comes_back(data: bytes, make: Callable[[int], gzip_members.Compress | None]) -> None:
    piece = make(1)
    if piece is not None:
        assert gzip.decompress(piece(bytearray(data))) == data
