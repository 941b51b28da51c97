"""Images through Debian's `lxc` client."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = pytest.mark.root


@pytest.fixture
def images(module_daemon: Daemon) -> Daemon:
    """The module's daemon, without images."""
    for image in module_daemon.get("/1.0/images?recursion=1"):
        module_daemon.do("DELETE", f"/1.0/images/{image['fingerprint']}")
    return module_daemon


def test_import_list_show_and_delete_a_unified_image(images: Daemon, busybox_image: Image) -> None:
    assert busybox_image.unified is not None
    fingerprint = images.import_image(busybox_image.unified, alias="bb")
    assert fingerprint == hashlib.sha256(busybox_image.unified.read_bytes()).hexdigest()
    (row,) = images.lxc("image", "list", "--format", "csv").stdout.splitlines()
    assert row.startswith(f"bb,{fingerprint[:12]},no,BusyBox x86_64,x86_64,CONTAINER,")
    shown = yaml.safe_load(images.lxc("image", "show", fingerprint[:10]).stdout)
    assert shown["properties"]["os"] == "BusyBox"
    assert "Fingerprint: " + fingerprint in images.lxc("image", "info", "bb").stdout
    images.lxc("image", "delete", "bb")
    assert images.lxc("image", "list", "--format", "csv").stdout == ""
    assert images.get("/1.0/images/aliases") == []


def test_a_split_image_has_the_fingerprint_of_both_files(images: Daemon, busybox_image: Image) -> None:
    fingerprint = images.import_image(busybox_image.metadata, busybox_image.rootfs)
    both = busybox_image.metadata.read_bytes() + busybox_image.rootfs.read_bytes()
    assert fingerprint == hashlib.sha256(both).hexdigest()
    assert images.get(f"/1.0/images/{fingerprint}")["filename"] == busybox_image.rootfs.name


def test_exported_image_is_identical(images: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    assert busybox_image.unified is not None
    images.import_image(busybox_image.unified, alias="unified")
    images.lxc("image", "export", "unified", str(tmp_path / "one"))
    (one,) = tmp_path.glob("one*")
    assert one.read_bytes() == busybox_image.unified.read_bytes()
    images.import_image(busybox_image.metadata, busybox_image.rootfs, alias="split")
    images.lxc("image", "export", "split", str(tmp_path / "two"))
    contents = {path.read_bytes() for path in tmp_path.glob("two*")}
    assert contents == {busybox_image.metadata.read_bytes(), busybox_image.rootfs.read_bytes()}


def test_aliases(images: Daemon, busybox_image: Image) -> None:
    fingerprint = images.import_image(busybox_image.metadata, busybox_image.rootfs)
    images.lxc("image", "alias", "create", "first", fingerprint)
    images.lxc("image", "alias", "create", "with/slash", fingerprint[:12])
    listed = images.lxc("image", "alias", "list", "--format", "csv").stdout.splitlines()
    assert [line.split(",")[:2] for line in listed] == [
        ["first", fingerprint[:12]],
        ["with/slash", fingerprint[:12]],
    ]
    images.lxc("image", "alias", "rename", "first", "renamed")
    taken = images.lxc("image", "alias", "create", "renamed", fingerprint, check=False)
    assert taken.returncode != 0
    assert "already exists" in taken.stderr
    images.lxc("image", "alias", "delete", "renamed")
    assert [alias["name"] for alias in images.get("/1.0/images/aliases?recursion=1")] == ["with/slash"]


def test_second_import_of_an_image_is_rejected(images: Daemon, busybox_image: Image) -> None:
    images.import_image(busybox_image.metadata, busybox_image.rootfs)
    again = images.lxc("image", "import", str(busybox_image.metadata), str(busybox_image.rootfs), check=False)
    assert again.returncode != 0
    assert "already exists" in again.stderr
    assert len(images.get("/1.0/images")) == 1


def test_properties_can_be_edited(images: Daemon, busybox_image: Image) -> None:
    fingerprint = images.import_image(busybox_image.metadata, busybox_image.rootfs, alias="bb")
    shown = images.lxc("image", "show", "bb").stdout
    edited = shown.replace("public: false", "public: true").replace("BusyBox x86_64", "A small one")
    images.lxc("image", "edit", "bb", input=edited)
    images.lxc("image", "set-property", "bb", "flavour", "plain")
    image = images.get(f"/1.0/images/{fingerprint}")
    assert image["public"] is True
    assert image["properties"]["description"] == "A small one"
    assert image["properties"]["flavour"] == "plain"


@pytest.mark.parametrize("keep", [0, 10, 200, 5000])
def test_an_image_cut_off_before_its_metadata_is_refused_and_leaves_nothing(
    images: Daemon, busybox_image: Image, tmp_path: Path, keep: int
) -> None:
    assert busybox_image.unified is not None
    broken = tmp_path / "broken.tar.xz"
    broken.write_bytes(busybox_image.unified.read_bytes()[:keep])
    ended = images.lxc("image", "import", str(broken), check=False)
    assert ended.returncode != 0
    assert images.get("/1.0/images") == []
    assert [path for path in (images.dir / "images").iterdir() if path.is_file()] == []


def test_an_image_cut_off_later_is_refused_at_the_launch_and_leaves_nothing(
    images: Daemon, busybox_image: Image, tmp_path: Path
) -> None:
    assert busybox_image.unified is not None
    broken = tmp_path / "broken.tar.xz"
    broken.write_bytes(busybox_image.unified.read_bytes()[:-5000])
    if images.lxc("image", "import", str(broken), "--alias", "broken", check=False).returncode == 0:
        ended = images.lxc("launch", "broken", "c1", check=False)
        assert ended.returncode != 0
        assert "image" in ended.stderr.lower() or "xz" in ended.stderr, ended.stderr
    assert images.get("/1.0/instances") == []
    pool = images.dir / "storage-pools" / "default"
    assert list((pool / "containers").iterdir()) == []
    assert list((pool / "images").iterdir()) == []


def test_a_directory_is_imported_as_it_is(images: Daemon, busybox_image: Image, tmp_path: Path) -> None:
    assert busybox_image.unified is not None
    folder = tmp_path / "unpacked"
    folder.mkdir()
    subprocess.run(["tar", "-C", str(folder), "-xf", str(busybox_image.unified)], check=True)
    os.setxattr(folder / "rootfs/bin/busybox", "user.note", b"kept")
    refused = utsuwa_client(images, "image", "import", str(folder / "rootfs"), check=False)
    assert "contains no metadata.yaml" in refused.stderr
    said = utsuwa_client(images, "image", "import", str(folder), "a=b", "--alias", "folder").stdout
    image = images.get(f"/1.0/images/{images.get('/1.0/images/aliases/folder')['target']}")
    assert said == f"Image imported with fingerprint: {image['fingerprint']}\n"
    assert (image["filename"], image["properties"]["a"]) == ("unpacked.tar.xz", "b")
    utsuwa_client(images, "image", "export", "folder", str(tmp_path / "exported"))
    listed = subprocess.run(
        ["tar", "--xattrs", "-tvvf", str(tmp_path / "exported")], capture_output=True, text=True, check=True
    ).stdout
    assert "user.note" in listed
    assert "templates/hostname.tpl" in listed
