"""Multipart forms, whose pieces may end anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.errors import InvalidRequest
from utsuwa.images.multipart import MultipartForm

TYPE = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[bytes, bytes], end: bytes = b"\r\n--xyz--\r\n") -> bytes:
    """Parts of (headers, content), the first one at the very beginning."""
    return b"".join(b"\r\n--xyz\r\n" + head + b"\r\n" + content for head, content in parts)[2:] + end


async def read(data: bytes, size: int = 1000, kind: str = TYPE) -> list[tuple[dict[str, str], bytes]]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    reader, found = MultipartForm(kind, pieces()), []
    while (headers := await reader.next_part()) is not None:
        found.append((headers, b"".join([piece async for piece in reader.content()])))
    return found


AWKWARD = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"x", b"y", b"\r\n--xy", b"\r\n--", b"z"]))


@given(contents=st.lists(AWKWARD.map(b"".join), max_size=3), size=st.integers(1, 40))
async def test_contents_come_as_they_are_whatever_the_pieces(contents: list[bytes], size: int) -> None:
    contents = [content for content in contents if b"\r\n--xyz" not in b"\r\n" + content]
    data = form(*((b"A: %d\r\n" % number, content) for number, content in enumerate(contents)))
    data = data if contents else b"--xyz--\r\n"
    assert await read(data, size) == [
        ({"a": str(number)}, content) for number, content in enumerate(contents)
    ]


@pytest.mark.parametrize("kind", [TYPE, 'multipart/form-data; boundary="xyz"', TYPE + "; charset=x"])
async def test_headers_are_read(kind: str) -> None:
    data = form((b"Content-Disposition: form-data; name=a;\r\nX: \xc3\xa9\r\n", b"1"), (b"", b"2"))
    expected = {"content-disposition": "form-data; name=a;", "x": "é"}
    assert await read(data, kind=kind) == [(expected, b"1"), ({}, b"2")]


async def test_what_stands_around_the_parts_is_skipped() -> None:
    data = b"For other programs\r\n" + form((b"", b"1")).replace(b"--xyz\r\n", b"--xyz \r\n") + b"The end"
    assert await read(data) == [({}, b"1")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"--xyz",
        form((b"", b"1"), end=b""),
        form((b"", b"1"), end=b"\r\n--xyz"),
        form((b"no header\r\n", b"1")),
        form((b"A: 1\r\n" * 10_000, b"1")),
        b"x" * 100_000 + form((b"", b"1")),
        b"--xyz" + b" " * 100_000 + b"\r\n",
    ],
)
async def test_what_is_not_a_complete_form_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a complete multipart form"):
        await read(data)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", f"{TYPE}{'x' * 70}", "multipart/form-data; boundary="]
)
async def test_a_form_needs_a_boundary(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="not a complete multipart form"):
        await read(b"", kind=kind)
