"""Reading the documents of simplestreams servers: which image is meant, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.core.architectures import runnable
from utsuwa.core.errors import InvalidImage, InvalidRequest, NotFound, UtsuwaError
from utsuwa.core.simplestreams import StreamImage
from utsuwa.images.remote import streams

SERVER = "https://images.example"
OWN = runnable("x86_64")


def fingerprint(number: int) -> str:
    return f"{number:064x}"


def items(number: int, *, meta: str = "lxd.tar.xz") -> dict[str, Any]:
    """Both forms of an image, with the fingerprints `number` (squashfs) and `number` + 1."""
    return {
        meta: {
            "ftype": meta,
            "path": f"images/{number}/{meta}",
            "sha256": fingerprint(90),
            "size": 10,
            "combined_squashfs_sha256": fingerprint(number),
            "combined_rootxz_sha256": fingerprint(number + 1),
        },
        "root.tar.xz": {"ftype": "root.tar.xz", "path": f"images/{number}/rootfs.tar.xz", "size": 30},
        "root.squashfs": {"ftype": "squashfs", "path": f"images/{number}/rootfs.squashfs", "size": "20"},
        "disk.qcow2": {"ftype": "disk-kvm.img", "path": f"images/{number}/disk.qcow2", "size": 20},
    }


def product(number: int, **more: Any) -> dict[str, Any]:
    return {
        "aliases": "debian/12,debian/bookworm",
        "arch": "amd64",
        "os": "Debian",
        "release": "bookworm",
        "release_title": "12",
        "versions": {"20260101_0524": {"items": items(number)}},
        **more,
    }


def listed(*products: dict[str, Any]) -> list[StreamImage]:
    document = {"products": {str(number): content for number, content in enumerate(products)}}
    return list(streams.images(json.dumps(document).encode()))


def chosen(wanted: str, *products: dict[str, Any], server: str = SERVER) -> StreamImage:
    return streams.choose(listed(*products), server, wanted, OWN)


def test_the_squashfs_of_the_newest_version_is_preferred() -> None:
    versions = {f"2026010{day}": {"items": items(day * 10)} for day in (1, 3, 2)}
    image = chosen("debian/12", product(0, versions=versions))
    assert (image.fingerprint, image.serial) == (fingerprint(30), "20260103")
    assert [(file.part, file.size) for file in image.files()] == [("metadata", 10), ("rootfs", 20)]
    assert image.filename == "lxd.tar.xz"


def test_a_tarball_is_used_where_there_is_no_squashfs() -> None:
    files = items(10)
    del files["root.squashfs"]
    image = chosen("debian/12", product(0, versions={"20260101": {"items": files}}))
    assert image.fingerprint == fingerprint(11)


def test_images_of_incus_and_unified_ones_are_known() -> None:
    versions = {"20260101": {"items": items(10, meta="incus.tar.xz")}}
    assert chosen("debian/12", product(0, versions=versions)).fingerprint == fingerprint(10)
    one = {"ftype": "lxd_combined.tar.gz", "path": "a/b.tar.gz", "sha256": fingerprint(5), "size": 1}
    unified = chosen("debian/12", product(0, versions={"20260101": {"items": {"a": one}}}))
    assert unified.fingerprint == fingerprint(5)
    assert [file.part for file in unified.files()] == ["metadata"]


def test_the_own_architecture_is_preferred() -> None:
    products = [product(10 * n, arch=arch) for n, arch in enumerate(("arm64", "i386", "amd64"), 1)]
    assert chosen("debian/12", *products).architecture == "x86_64"
    assert chosen("debian/12", *products[:2]).architecture == "i686"
    assert chosen("debian/12/arm64", *products).architecture == "aarch64"
    with pytest.raises(NotFound, match="only for arm64"):
        chosen("debian/12", products[0])


def test_aliases_of_ubuntu_omit_the_system() -> None:
    ubuntu = product(10, aliases="ubuntu/24.04,24.04,noble", os="ubuntu")
    assert chosen("24.04", ubuntu).fingerprint == fingerprint(10)
    url = "https://cloud-images.ubuntu.com/releases/"
    only_long = product(10, aliases="ubuntu/24.04")
    assert chosen("24.04", only_long, server=url).fingerprint == fingerprint(10)
    with pytest.raises(NotFound):
        chosen("24.04", only_long)


def test_variants_have_their_own_aliases() -> None:
    default = product(10, variant="default", aliases="debian/12/default,debian/12")
    cloud = product(20, variant="cloud", aliases="debian/12/cloud")
    assert chosen("debian/12", cloud, default).fingerprint == fingerprint(10)
    assert chosen("debian/12/cloud", cloud, default).fingerprint == fingerprint(20)
    assert chosen("debian/12/cloud", cloud, default).properties["variant"] == "cloud"


def test_fingerprints_and_their_prefixes() -> None:
    first, second = product(0x10), product(0x20)
    assert chosen(fingerprint(0x10), first, second).fingerprint == fingerprint(0x10)
    with pytest.raises(InvalidRequest, match="longer prefix"):
        chosen("0000", first, second)
    with pytest.raises(NotFound):
        chosen("debian/13", first)


def test_properties() -> None:
    versions = {"20260101": {"label": "release", "items": items(10)}}
    more = {"support_eol": "2028-06-10", "requirements": {"secureboot": "false"}}
    image = chosen("debian/12", product(0, versions=versions, **more))
    assert image.properties == {
        "os": "Debian",
        "release": "bookworm",
        "architecture": "amd64",
        "label": "release",
        "serial": "20260101",
        "description": "Debian 12 amd64 (release) (20260101)",
        "type": "squashfs",
        "requirements.secureboot": "false",
    }
    assert image.support_end == "2028-06-10"


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../etc/shadow"},
        {"path": "/etc/shadow"},
        {"path": "images/./a"},
        {"path": "https://other.example/a"},
        {"path": "images//a"},
        {"path": "images/a?b#c"},
        {"path": "images\\a"},
        {"path": "images/a\r\nHost: b"},
        {"path": "images/%2e%2e/a%00"},
        {"path": ""},
        {"path": "a/" * 300 + "a"},
        {"sha256": "../x"},
        {"sha256": "A" * 64},
        {"size": -1},
        {"size": 2**60},
    ],
)
def test_invalid_files_are_refused(change: dict[str, Any]) -> None:
    files = items(10)
    files["root.squashfs"] |= change
    image = chosen("debian/12", product(0, versions={"20260101": {"items": files}}))
    with pytest.raises(InvalidImage, match="invalid file"):
        image.files()


def test_images_without_a_valid_fingerprint_or_version_are_not_listed() -> None:
    for wrong in ("", "../../x", "g" * 64, fingerprint(1).upper() + "A"):
        files = items(10)
        files["lxd.tar.xz"] |= {"combined_squashfs_sha256": wrong, "combined_rootxz_sha256": wrong}
        assert listed(product(0, versions={"20260101": {"items": files}})) == []
    assert listed(product(0, versions={"latest": {"items": items(10)}})) == []
    assert listed(product(0, arch="abacus")) == []


def test_deltas_lead_from_other_versions_of_the_product() -> None:
    def delta(base: str, **more: Any) -> dict[str, Any]:
        return {"ftype": "squashfs.vcdiff", "delta_base": base, "path": "a/b.vcdiff", "size": 5} | more

    deltas = {
        "a": delta("20260101"),
        "b": delta("20260103"),
        "c": delta("20260101", path="../x"),
        "d": delta("20260102"),
        "e": {**delta("20260101"), "ftype": "disk-kvm.img.vcdiff"},
    }
    files = items(10)
    versions = {
        "20260101": {"items": files},
        "20260102": {"items": {name: files[name] for name in ("lxd.tar.xz", "root.tar.xz")}},
        "20260104": {"items": items(20) | deltas},
    }
    image = chosen("debian/12", product(0, versions=versions))
    assert [(base, file.path) for base, file in image.deltas()] == [(fingerprint(10), "a/b.vcdiff")]
    tarball = next(found for found in listed(product(0, versions=versions)) if not found.is_squashfs)
    assert tarball.deltas() == []


@pytest.mark.parametrize(
    "path", ["../images.json", "/etc/passwd", "https://other.example/x.json", "a\nb", "file:///etc/passwd"]
)
def test_invalid_paths_of_an_index_are_refused(path: str) -> None:
    entry = {"datatype": "image-downloads", "path": path, "products": ["a"]}
    with pytest.raises(InvalidImage, match="invalid path"):
        streams.product_paths(json.dumps({"index": {"a": entry}}).encode())


def test_an_index_lists_documents_of_images_only() -> None:
    entries = {
        "a": {"datatype": "image-downloads", "path": "streams/v1/a.json", "products": ["x"]},
        "b": {"datatype": "image-ids", "path": "streams/v1/b.json", "products": ["x"]},
        "c": {"datatype": "image-downloads", "path": "streams/v1/c.json", "products": []},
    }
    assert streams.product_paths(json.dumps({"index": entries}).encode()) == ["streams/v1/a.json"]
    many = {str(n): entries["a"] for n in range(17)}
    with pytest.raises(InvalidImage, match="more than 16"):
        streams.product_paths(json.dumps({"index": many}).encode())


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b'{"index": 1}', b"\xff", b'{"index":' + b"[" * 10**5]
)
def test_what_is_no_index_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"is not an index|is not JSON"):
        streams.product_paths(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
_ITEM = st.fixed_dictionaries(
    {"ftype": st.sampled_from(["lxd.tar.xz", "squashfs", "incus.tar.xz", "x"]) | _JSON},
    optional={
        "path": st.text() | _JSON,
        "sha256": st.text() | _JSON,
        "size": st.integers() | _JSON,
        "combined_squashfs_sha256": st.sampled_from([fingerprint(1), "x"]) | _JSON,
    },
)
_PRODUCT = st.fixed_dictionaries(
    {"arch": st.sampled_from(["amd64", "arm64"]) | _JSON, "aliases": st.sampled_from(["a", "a,b"]) | _JSON},
    optional={
        "versions": st.dictionaries(
            st.sampled_from(["20260101", "20260102_01:00", "x"]),
            st.fixed_dictionaries({"items": st.dictionaries(st.text(max_size=3), _ITEM, max_size=3)}),
            max_size=2,
        ),
        "support_eol": _JSON,
        "requirements": _JSON,
    },
)


@given(st.dictionaries(st.text(max_size=3), _PRODUCT | _JSON, max_size=3), st.sampled_from(["a", "b", "0"]))
def test_any_document_gives_an_image_or_an_error_for_the_caller(products: Any, wanted: str) -> None:
    data = json.dumps({"products": products}).encode()
    try:
        image = streams.choose(streams.images(data), SERVER, wanted, OWN)
        files = image.files()
    except UtsuwaError:
        return
    assert image.properties["serial"]
    for file in files:
        assert ".." not in file.path.split("/")
        assert not file.path.startswith("/")
