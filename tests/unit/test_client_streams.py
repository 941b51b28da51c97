"""Documents of image servers as the client reads them, also those that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.client import streams

A, B, C = "a" * 64, "b" * 64, "c" * 64


def item(ftype: str, **more: Any) -> dict[str, Any]:
    return {"ftype": ftype, "path": f"images/x/{ftype}", "sha256": C, "size": 10} | more


def split(fingerprint: str = A) -> dict[str, Any]:
    meta = item("lxd.tar.xz", combined_squashfs_sha256=fingerprint, combined_rootxz_sha256=B)
    return {"items": {"meta": meta, "root": item("squashfs")}}


def product(**more: Any) -> dict[str, Any]:
    found = {
        "aliases": "debian/12,debian/bookworm",
        "arch": "amd64",
        "os": "Debian",
        "release": "bookworm",
        "variant": "default",
        "versions": {"20261129_0700": split()},
    }
    return found | more


def read(*products: dict[str, Any], machine: str = "x86_64", omitted: str = "") -> list[dict[str, Any]]:
    document = {"products": {str(number): one for number, one in enumerate(products)}}
    return [image.record for image in streams.images(document, machine, omitted)]


def names(record: dict[str, Any]) -> list[str]:
    return [alias["name"] for alias in record["aliases"]]


def test_record_is_that_of_the_api() -> None:
    (found,) = read(product(support_eol="2028-06-30"))
    assert found == {
        "fingerprint": A,
        "filename": "lxd.tar.xz",
        "architecture": "x86_64",
        "properties": {
            "os": "Debian",
            "release": "bookworm",
            "architecture": "amd64",
            "serial": "20261129_0700",
            "description": "Debian bookworm amd64 (20261129_0700)",
            "variant": "default",
            "type": "squashfs",
        },
        "aliases": [
            {"name": name, "description": ""}
            for name in ("debian/12", "debian/12/amd64", "debian/bookworm", "debian/bookworm/amd64")
        ],
        "size": 20,
        "created_at": "2026-11-29T00:00:00Z",
        "uploaded_at": "2026-11-29T00:00:00Z",
        "last_used_at": "1970-01-01T00:00:00Z",
        "expires_at": "2028-06-30T00:00:00Z",
        "public": True,
        "auto_update": False,
        "cached": False,
        "type": "container",
        "profiles": [],
    }


def test_aliases_lead_to_the_newest_version() -> None:
    new, old = read(product(versions={"20260101": split(B), "20260201": split(A)}))
    assert (new["fingerprint"], names(old)) == (A, [])


def test_aliases_lead_past_versions_without_a_valid_image() -> None:
    wrong = {"items": {"x": item("lxd_combined.tar.gz", path="/x")}}
    (found,) = read(product(versions={"20260101": split(A), "20260201": wrong}))
    assert found["fingerprint"] == A
    assert "debian/12" in names(found)


def test_aliases_of_another_architecture_name_it() -> None:
    (found,) = read(product(arch="arm64"))
    assert (found["architecture"], names(found)) == ("aarch64", ["debian/12/arm64", "debian/bookworm/arm64"])


def test_what_users_omit_is_omitted() -> None:
    (found,) = read(product(aliases="ubuntu/24.04,noble"), omitted="ubuntu/")
    assert names(found)[::2] == ["24.04", "noble"]


@pytest.mark.parametrize(
    ("items", "fingerprint"),
    [
        ({"x": item("lxd_combined.tar.gz", sha256=B)}, B),
        ({"x": item("incus.tar.xz", combined_rootxz_sha256=B), "y": item("root.tar.xz")}, B),
        ({"x": item("lxd.tar.xz", combined_sha256=B), "y": item("root.tar.xz")}, B),
    ],
)
def test_other_forms_of_images(items: dict[str, Any], fingerprint: str) -> None:
    (found,) = read(product(versions={"20260101": {"items": items}}))
    assert found["fingerprint"] == fingerprint


@pytest.mark.parametrize(
    "wrong",
    [
        {"arch": "vax"},
        {"arch": 5},
        {"versions": []},
        {"versions": {"latest": split()}},
        {"versions": {"20260101": {"items": {}}}},
        {"versions": {"20260101": split("short")}},
        {"versions": {"20260101": {"items": {"x": item("lxd.tar.xz", combined_squashfs_sha256=A)}}}},
        {"versions": {"20260101": {"items": {"x": item("lxd_combined.tar.gz", path="../../x")}}}},
        {"versions": {"20260101": {"items": {"x": item("lxd_combined.tar.gz", path="/x")}}}},
        {"versions": {"20260101": {"items": {"x": item("lxd_combined.tar.gz", size="ten")}}}},
        {"versions": {"20260101": {"items": {"x": item("disk-kvm.img")}}}},
    ],
)
def test_images_that_are_stated_wrongly_are_left_out(wrong: dict[str, Any]) -> None:
    assert read(product(**wrong), product(release="13")) == read(product(release="13"))


KEYS = ["products", "versions", "items", "20260101", "ftype", "path", "aliases", "arch"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_read(document: Any) -> None:
    assert all(image.record["fingerprint"] for image in streams.images(document, "x86_64"))
