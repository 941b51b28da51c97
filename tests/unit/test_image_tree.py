"""The directory of an image server: its index, its files, and what becomes of earlier versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.client.image_tree import ImageTree, _safe, _version
from utsuwa.core.errors import HostError, InvalidRequest

SQUASHFS = b"hsqs and more"


def image(files: list[bytes], *, created: str = "2026-11-29T10:11:12Z", **more: Any) -> dict[str, Any]:
    return {
        "fingerprint": hashlib.sha256(b"".join(files)).hexdigest(),
        "type": "container",
        "architecture": "x86_64",
        "properties": {"os": "Debian", "release": "bookworm"},
        "aliases": [{"name": "debian/12"}, {"name": "debian"}],
        "created_at": created,
        "uploaded_at": "2026-11-30T00:00:00Z",
    } | more


def add(tree: ImageTree, files: list[bytes], **more: Any) -> str:
    return tree.add(image(files, **more), map(in_chunks, files))


def in_chunks(data: bytes) -> Iterator[bytes]:
    yield data[:5]
    yield data[5:]


def read(folder: Path, name: str = "images") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"streams/v1/{name}.json").read_text())
    return content


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in (folder / "images").rglob("*") if p.is_file()}


def test_split_image(tmp_path: Path) -> None:
    files = [b"metadata", SQUASHFS]
    tree = ImageTree(str(tmp_path))
    name = add(tree, files)
    tree.save()
    assert name == "debian:bookworm:amd64:default"
    (product,) = read(tmp_path)["products"].values()
    assert (product["aliases"], product["os"], product["arch"]) == ("debian,debian/12", "Debian", "amd64")
    (version,) = product["versions"]
    assert version == "20261129_1011"
    items = product["versions"][version]["items"]
    folder = f"images/debian/bookworm/amd64/default/{version}"
    assert items["root.squashfs"] == {
        "ftype": "squashfs",
        "path": f"{folder}/root.squashfs",
        "sha256": hashlib.sha256(SQUASHFS).hexdigest(),
        "size": len(SQUASHFS),
    }
    lxd, incus = items["lxd.tar.xz"], items["incus.tar.xz"]
    assert lxd["combined_squashfs_sha256"] == image(files)["fingerprint"]
    assert incus == lxd | {"ftype": "incus.tar.xz"}
    assert (tmp_path / lxd["path"]).read_bytes() == b"metadata"
    index = read(tmp_path, "index")["index"]["images"]
    assert (index["path"], index["products"]) == ("streams/v1/images.json", [name])
    assert not list(tmp_path.rglob("*.new"))


def test_image_of_one_file(tmp_path: Path) -> None:
    tree = ImageTree(str(tmp_path))
    add(tree, [b"everything"])
    tree.save()
    ((version,),) = ([*p["versions"].values()] for p in read(tmp_path)["products"].values())
    assert version["items"].keys() == {"lxd_combined.tar.gz", "incus_combined.tar.gz"}


def test_root_file_system_as_archive(tmp_path: Path) -> None:
    tree = ImageTree(str(tmp_path))
    files = [b"metadata", b"\xfd7zXZ and more"]
    add(tree, files)
    tree.save()
    ((version,),) = ([*p["versions"].values()] for p in read(tmp_path)["products"].values())
    assert version["items"]["root.tar.xz"]["ftype"] == "root.tar.xz"
    assert version["items"]["lxd.tar.xz"]["combined_rootxz_sha256"] == image(files)["fingerprint"]


def test_the_newest_versions_remain(tmp_path: Path) -> None:
    for day in (3, 1, 2, 4):
        tree = ImageTree(str(tmp_path), keep=2)
        add(tree, [b"%d" % day, SQUASHFS], created=f"2026-11-0{day}T00:00:00Z")
        tree.save()
    (product,) = read(tmp_path)["products"].values()
    assert sorted(product["versions"]) == ["20261103_0000", "20261104_0000"]
    assert {Path(f).parent.name for f in files_in(tmp_path)} == set(product["versions"])


def test_the_same_version_again_replaces_it(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        tree = ImageTree(str(tmp_path))
        add(tree, [content, SQUASHFS])
        tree.save()
    (found,) = tmp_path.glob("images/*/*/*/*/*/lxd.tar.xz")
    assert found.read_bytes() == b"new"


def test_other_products_are_kept(tmp_path: Path) -> None:
    for properties in (
        {"os": "Debian", "release": "13"},
        {"os": "Debian", "release": "12", "variant": "cloud"},
    ):
        tree = ImageTree(str(tmp_path))
        add(tree, [b"metadata", SQUASHFS], properties=properties, aliases=[])
        tree.save()
    assert sorted(read(tmp_path)["products"]) == ["debian:12:amd64:cloud", "debian:13:amd64:default"]
    assert len(files_in(tmp_path)) == 4


def test_what_an_interrupted_run_has_left_is_removed(tmp_path: Path) -> None:
    left = [tmp_path / "images/.new-1", tmp_path / "images/debian/bookworm/amd64/default/20260101_0000"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "0").touch()
    tree = ImageTree(str(tmp_path))
    add(tree, [b"metadata", SQUASHFS])
    tree.save()
    assert not [folder for folder in left if folder.exists()]
    assert len(files_in(tmp_path)) == 2


def test_files_that_are_not_the_images_are_refused(tmp_path: Path) -> None:
    tree = ImageTree(str(tmp_path))
    with pytest.raises(HostError, match="do not match its fingerprint"):
        tree.add(image([b"other"]), [iter([b"metadata"]), iter([SQUASHFS])])
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ([b"a", SQUASHFS], {"type": "virtual-machine"}, "virtual machines"),
        ([b"a", b"b", b"c"], {}, "one file or two"),
    ],
)
def test_images_that_cannot_be_in_a_tree(
    tmp_path: Path, files: list[bytes], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        add(ImageTree(str(tmp_path)), files, **more)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"products": 1', '{"products": 1}'])
def test_a_file_that_is_no_index_is_not_overwritten(tmp_path: Path, content: str) -> None:
    file = tmp_path / "streams/v1/images.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(HostError, match="is not an index of images"):
        ImageTree(str(tmp_path))
    assert file.read_text() == content


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Cannot use the directory"):
        ImageTree(str(tmp_path / "file"))


@given(st.text(max_size=20))
def test_any_property_is_one_part_of_a_path(text: str) -> None:
    part = _safe(text)
    assert part
    assert "/" not in part
    assert ":" not in part
    assert not part.startswith(".")


@pytest.mark.parametrize(
    ("serial", "created", "version"),
    [
        ("20261128_07:00", "2026-11-29T10:11:12Z", "20261128_07-00"),
        ("", "2026-11-29T10:11:12Z", "20261129_1011"),
        ("first", "2026-11-29T10:11:12Z", "20261129_1011"),
        ("", "1970-01-01T00:00:00Z", "20261130_0000"),
    ],
)
def test_versions_sort_by_time(serial: str, created: str, version: str) -> None:
    assert _version(image([], created=created, properties={"serial": serial})) == version
