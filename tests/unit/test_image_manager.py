"""Images and aliases as their managers keep them; the archives themselves are not looked at."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import prepared
from utsuwa.core.errors import (
    AlreadyExists,
    HostError,
    InvalidImage,
    InvalidName,
    InvalidRequest,
    NotFound,
    OtherMember,
)
from utsuwa.core.filters import parse as parse_filter
from utsuwa.core.image_source import ImageOrigin, ImageSource
from utsuwa.core.paths import StatePaths
from utsuwa.core.scope import EVERYTHING, NOTHING, Scope
from utsuwa.db import images as image_rows
from utsuwa.db import members, schema
from utsuwa.db.database import Database
from utsuwa.db.images import ImageRow
from utsuwa.db.transaction import Transaction
from utsuwa.host.archives import check
from utsuwa.images import records
from utsuwa.images.manager import ImageManager
from utsuwa.images.new import NewAlias, NewImage
from utsuwa.images.store import ImageStore
from utsuwa.images.upload import Upload
from utsuwa.operations.events import EventHub
from utsuwa.operations.operations import Operations
from utsuwa.security.server_config import ServerConfig
from utsuwa.wire.edits import any_state, merge
from utsuwa.wire.edits import replace as replace_with
from utsuwa.wire.images import (
    ImageAliasesEntryPatch,
    ImageAliasesEntryPut,
    ImageAliasesPost,
    ImagePatch,
    ImagePut,
)

METADATA = (
    b"architecture: amd64\ncreation_date: 100\nexpiry_date: 200\nproperties: {os: Debian, release: 12}\n"
)


class Events(EventHub):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def publish_lifecycle(
        self,
        action: str,
        source: str,
        project: str = "",
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.seen.append((action, source))


class Pools:
    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.prepared: list[str] = []
        self.fails = False

    async def delete(self, fingerprint: str) -> None:
        if self.fails:
            raise HostError("busy")
        self.deleted.append(fingerprint)

    def prepare(self, image: ImageSource) -> None:
        self.prepared.append(image.fingerprint)


class Setting:
    """A manager with what it stands on."""

    def __init__(self, database: Database, paths: StatePaths) -> None:
        self.database, self.paths = database, paths
        self.events, self.pools = Events(), Pools()
        self.images = ImageManager(
            database, paths, Operations(self.events), self.pools, ServerConfig(database)
        )

    async def add(
        self, content: bytes = b"one", *, rootfs: bytes | None = None, project: str = "default", **new: Any
    ) -> ImageRow:
        async with self.images.upload() as upload:
            await upload.receive("metadata", once(content))
            if rootfs is not None:
                await upload.receive("rootfs", once(rootfs))
            aliases = [NewAlias(name) for name in new.pop("aliases", ())]
            return await self.images.add(project, upload, NewImage(**new, aliases=aliases))

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.paths.images.iterdir())


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


ONE, TWO = digest(b"one"), digest(b"two")


def _make_projects(tx: Transaction) -> None:
    """`other` has images of its own, `shares` those of the default project."""
    own = {"key": "features.images", "value": "true"}
    other = tx.insert(schema.projects, {"name": "other", "description": ""})
    tx.insert(schema.projects_config, {"project_id": other, **own})
    tx.insert(schema.projects, {"name": "shares", "description": ""})


@pytest.fixture
async def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    monkeypatch.setattr(check, "check_image", lambda metadata, rootfs, stopper: METADATA)
    paths = StatePaths(tmp_path)
    paths.create_directories()
    database = await Database.open(prepared.sqlite(paths.database))
    try:
        await database.write("test", _make_projects)
        yield Setting(database, paths)
    finally:
        await database.close()


async def test_an_upload_becomes_an_image(setting: Setting) -> None:
    row = await setting.add(
        filename="x.tar.xz",
        fingerprint=ONE,
        public=True,
        properties={"os": "Mine", "empty": ""},
        aliases=["debian/12", "d"],
        trusted=True,
    )
    assert setting.files == [ONE]
    assert await setting.images.get(EVERYTHING, "default", ONE[:5]) == row
    assert (row.architecture, row.size, row.state, row.trusted) == ("x86_64", 3, "ready", True)
    assert row.properties == {"os": "Mine", "release": "12"}
    assert row.profiles == ["default"]
    record = await setting.images.record(row)
    assert record.created_at == "1970-01-01T00:01:40Z"
    assert record.expires_at == "1970-01-01T00:03:20Z"
    assert record.last_used_at == "0001-01-01T00:00:00Z"
    assert sorted(alias.name for alias in record.aliases) == ["d", "debian/12"]
    assert await setting.images.records(EVERYTHING, "default") == [record]
    assert setting.events.seen == [("image-created", f"/1.0/images/{ONE}")]
    source = setting.images.source(row)
    assert (source.metadata, source.rootfs, source.trusted) == (setting.paths.images / ONE, None, True)


async def test_a_split_image_has_two_files(setting: Setting) -> None:
    row = await setting.add(b"on", rootfs=b"e")
    assert setting.files == [ONE, f"{ONE}.rootfs"]
    assert setting.images.source(row).rootfs == setting.paths.images / f"{ONE}.rootfs"
    files = [file.part for file in await _exported(setting, row)]
    assert files == ["metadata", "rootfs"]
    await setting.images.remove(row)
    assert setting.files == []


async def _exported(setting: Setting, row: ImageRow) -> Any:
    # Contents of a known kind: their first bytes give the names.
    source = setting.images.source(row)
    source.metadata.write_bytes(b"\xfd7zXZ\0")
    if source.rootfs is not None:
        source.rootfs.write_bytes(b"hsqs")
    files = await setting.images.files(row)
    for file in files:
        file.file.close()
    return files


async def test_an_image_deleted_during_its_export_is_not_found(setting: Setting) -> None:
    for gone in (ONE, f"{ONE}.rootfs"):
        row = await setting.add(b"on", rootfs=b"e")
        await _exported(setting, row)
        (setting.paths.images / gone).unlink()
        with pytest.raises(NotFound, match="deleted meanwhile"):
            await setting.images.files(row)
        await setting.images.remove(row)


async def test_exported_files_are_named_by_the_fingerprint(setting: Setting) -> None:
    split, whole = await setting.add(b"on", rootfs=b"e"), await setting.add(b"two")
    names = [[file.name for file in await _exported(setting, row)] for row in (split, whole)]
    assert names == [[f"meta-{ONE}.tar.xz", f"{ONE}.squashfs"], [f"{TWO}.tar.xz"]]
    assert setting.events.seen[-1] == ("image-retrieved", f"/1.0/images/{TWO}")


@pytest.mark.parametrize(
    ("new", "error"),
    [
        ({"fingerprint": TWO}, InvalidRequest),
        ({"properties": {"a\nb": "c"}}, InvalidRequest),
        ({"properties": {"a": "x" * 70_000}}, InvalidRequest),
        ({"properties": {str(n): "x" for n in range(501)}}, InvalidRequest),
        ({"aliases": [""]}, InvalidName),
        ({"aliases": ["a", "a"]}, AlreadyExists),
        ({"profiles": ["nowhere"]}, NotFound),
        ({"project": "nowhere"}, NotFound),
    ],
)
async def test_a_refused_upload_leaves_nothing(
    setting: Setting, new: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await setting.add(**new)
    assert setting.files == []
    assert await setting.images.names(EVERYTHING, "default") == []
    assert await setting.images.aliases.all(EVERYTHING, "default") == []
    assert setting.events.seen == []


async def test_a_bad_archive_leaves_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "check_image", lambda metadata, rootfs, stopper: b"- no mapping")
    with pytest.raises(InvalidImage):
        await setting.add()
    assert setting.files == []


async def test_files_are_on_disk_before_they_become_an_image(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    sync, put = os.fsync, ImageStore.put

    def note(file: int) -> None:
        sync(file)
        synced.add(os.fstat(file).st_ino)

    def check_synced(store: ImageStore, fingerprint: str, metadata: Path, rootfs: Path) -> None:
        assert {metadata.stat().st_ino, rootfs.stat().st_ino} <= synced
        put(store, fingerprint, metadata, rootfs)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(ImageStore, "put", check_synced)
    await setting.add(b"on", rootfs=b"e")
    assert setting.files == [ONE, f"{ONE}.rootfs"]
    assert setting.paths.images.stat().st_ino in synced


@pytest.mark.parametrize("content", [METADATA, b"- no mapping"])
async def test_a_disk_that_fails_at_the_end_leaves_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def fail(_: Upload) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(check, "check_image", lambda metadata, rootfs, stopper: content)
    monkeypatch.setattr(Upload, "sync", fail)
    with pytest.raises(OSError, match="broken"):
        await setting.add(aliases=["a"])
    assert setting.files == []
    assert await setting.database.read("test", image_rows.get_all, None) == []


async def test_a_failure_at_the_last_step_leaves_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise HostError("no")

    monkeypatch.setattr(image_rows, "set_ready", fail)
    with pytest.raises(HostError):
        await setting.add(aliases=["a"])
    assert setting.files == []
    assert await setting.database.read("test", image_rows.get_all, None) == []


async def test_concurrent_upload_of_the_same_image_is_rejected(setting: Setting) -> None:
    results = await asyncio.gather(setting.add(), setting.add(), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExists", "ImageRow"]
    assert setting.files == [ONE]


async def test_imports_and_deletions_run_in_the_background(setting: Setting) -> None:
    upload = setting.images.upload()
    await upload.receive("metadata", once(b"one"))
    operation = setting.images.create("default", upload, NewImage())
    assert operation.record().description == "Downloading image"
    await operation.wait(10)
    assert (operation.metadata["fingerprint"], operation.status) == (ONE, "Success")
    operation = await setting.images.delete("default", ONE[:9])
    assert operation.resources == {"images": [f"/1.0/images/{ONE}"]}
    await operation.wait(10)
    assert (operation.status, setting.files) == ("Success", [])
    with pytest.raises(NotFound):
        await setting.images.delete("default", ONE)


async def test_projects_share_the_files(setting: Setting) -> None:
    first = await setting.add()
    second = await setting.add(project="other", profiles=[])
    assert setting.files == [ONE]
    await setting.images.remove(first)
    assert setting.files == [ONE]
    assert setting.pools.deleted == []
    assert await setting.images.names(EVERYTHING, "default") == []
    await setting.images.remove(second)
    assert setting.files == []
    assert setting.pools.deleted == [ONE]
    assert setting.events.seen[-1] == ("image-deleted", f"/1.0/images/{ONE}?project=other")


@pytest.mark.parametrize("other", [(b"o", b"ne"), (b"one", None)])
async def test_the_same_bytes_cut_elsewhere_are_another_image(
    setting: Setting, other: tuple[bytes, bytes | None]
) -> None:
    await setting.add(b"on", rootfs=b"e")
    with pytest.raises(AlreadyExists, match="other files"):
        await setting.add(other[0], rootfs=other[1], project="other", profiles=[])
    assert setting.files == [ONE, f"{ONE}.rootfs"]
    assert (setting.paths.images / ONE).read_bytes() == b"on"
    assert await setting.images.names(EVERYTHING, "other") == []


async def test_a_pool_that_fails_does_not_keep_the_image(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    row = await setting.add()
    setting.pools.fails = True
    await setting.images.remove(row)
    assert await setting.images.names(EVERYTHING, "default") == []
    assert setting.files == []
    assert "still on a pool" in caplog.text


async def test_copies_on_pools_are_removed_after_the_row(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[str]] = []

    async def delete(fingerprint: str) -> None:
        rows.append(await setting.database.read("test", image_rows.projects_with, fingerprint))

    monkeypatch.setattr(setting.pools, "delete", delete)
    await setting.images.remove(await setting.add())
    assert rows == [[]]


async def test_resolving(setting: Setting) -> None:
    one = await setting.add(aliases=["a"])
    two = await setting.add(b"two", properties={"variant": "b"})
    resolve = setting.images.resolve
    assert await resolve("default", alias="a") == one
    assert await resolve("default", fingerprint=TWO[:8]) == two
    assert await resolve("default", properties={"variant": "b"}) == two
    assert await resolve("default", properties={"os": "Debian"}) == two  # the younger of the two
    for wrong in ({"alias": "x"}, {"fingerprint": "0" * 64}, {"properties": {"os": "x"}}):
        with pytest.raises(NotFound):
            await resolve("default", **wrong)
    with pytest.raises(NotFound):
        await resolve("other", alias="a")
    with pytest.raises(InvalidRequest, match="by alias"):
        await resolve("default")
    with pytest.raises(NotFound, match="'%'"):
        await resolve("default", fingerprint="%")


async def test_a_prefix_must_be_unique(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [b"%d" % n for n in range(17)]  # two of seventeen begin with the same digit
    for content in contents:
        await setting.add(content, public=True)
    digits = [digest(content)[0] for content in contents]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    for scope in (EVERYTHING, NOTHING):
        with pytest.raises(InvalidRequest, match="More than one image"):
            await setting.images.get(scope, "default", twice)


async def test_strangers_see_public_images_only(setting: Setting) -> None:
    await setting.add(aliases=["private"])
    public = await setting.add(b"two", public=True, aliases=["public"])
    images = setting.images
    assert await images.names(NOTHING, "default") == [("default", TWO)]
    assert [r.fingerprint for r in await images.records(NOTHING, "default")] == [TWO]
    assert await images.get(NOTHING, "default", TWO[:6]) == public
    assert [a.name for a in await images.aliases.all(NOTHING, "default")] == ["public"]
    assert (await images.aliases.get(NOTHING, "default", "public")).fingerprint == TWO
    with pytest.raises(NotFound):
        await images.get(NOTHING, "default", ONE)
    with pytest.raises(NotFound):
        await images.get(NOTHING, "default", "")
    with pytest.raises(NotFound):
        await images.aliases.get(NOTHING, "default", "private")


async def test_put_replaces(setting: Setting) -> None:
    row = await setting.add()
    await setting.images.edit(
        "default", ONE, replace_with(ImagePut(public=True, properties={"a": "b"})), any_state
    )
    changed = await setting.images.get(EVERYTHING, "default", ONE)
    assert (changed.public, changed.properties, changed.expires_at) == (True, {"a": "b"}, None)
    assert changed.profiles == ["default"]
    await setting.images.edit(
        "default",
        ONE[:9],
        replace_with(ImagePut(profiles=[], expires_at=datetime(2030, 1, 1, tzinfo=UTC))),
        any_state,
    )
    again = await setting.images.get(EVERYTHING, "default", ONE)
    assert (again.profiles, again.public) == ([], False)
    assert again.expires_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert records.editable(row) != records.editable(again)
    assert setting.events.seen[-1] == ("image-updated", f"/1.0/images/{ONE}")


async def test_patch_merges(setting: Setting) -> None:
    row = await setting.add()
    await setting.images.edit(
        "default", ONE, merge(ImagePatch(properties={"release": "", "new": "1"})), any_state
    )
    row = await setting.images.get(EVERYTHING, "default", ONE)
    assert row.properties == {"os": "Debian", "new": "1"}
    assert row.expires_at is not None
    await setting.images.edit(
        "default", ONE, merge(ImagePatch(public=True, expires_at=datetime(1970, 1, 1, tzinfo=UTC))), any_state
    )
    row = await setting.images.get(EVERYTHING, "default", ONE)
    assert (row.public, row.expires_at, row.properties["new"]) == (True, None, "1")
    with pytest.raises(InvalidRequest):
        await setting.images.edit("default", ONE, merge(ImagePatch(properties={"\0": "x"})), any_state)


async def test_aliases(setting: Setting) -> None:
    await setting.add()
    await setting.add(b"two")
    aliases = setting.images.aliases
    row = await aliases.create("default", ImageAliasesPost(name="a/b", target=ONE[:9], description="d"))
    assert row.fingerprint == ONE
    assert records.alias_url(row) == "/1.0/images/aliases/a%2Fb"
    with pytest.raises(AlreadyExists):
        await aliases.create("default", ImageAliasesPost(name="a/b", target=TWO))
    await aliases.edit("default", "a/b", merge(ImageAliasesEntryPatch(description="new")), any_state)
    row = await aliases.get(EVERYTHING, "default", "a/b")
    assert (row.description, row.fingerprint) == ("new", ONE)
    await aliases.edit("default", "a/b", replace_with(ImageAliasesEntryPut(target=TWO)), any_state)
    row = await aliases.get(EVERYTHING, "default", "a/b")
    assert (row.description, row.fingerprint) == ("", TWO)
    row = await aliases.rename("default", "a/b", "c")
    assert await aliases.all(EVERYTHING, "default") == [row]
    await aliases.delete("default", "c")
    assert await aliases.all(EVERYTHING, "default") == []
    assert [action for action, _ in setting.events.seen if "alias" in action] == [
        "image-alias-created",
        "image-alias-updated",
        "image-alias-updated",
        "image-alias-renamed",
        "image-alias-deleted",
    ]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ImageAliasesPost(name="", target=ONE), InvalidName),
        (ImageAliasesPost(name="a\n", target=ONE), InvalidName),
        (ImageAliasesPost(name=" a", target=ONE), InvalidName),
        (ImageAliasesPost(name="x" * 256, target=ONE), InvalidName),
        (ImageAliasesPost(name="a", target=""), InvalidRequest),
        (ImageAliasesPost(name="a", target="nothing"), InvalidName),
        (ImageAliasesPost(name="a", target=TWO), NotFound),
        (ImageAliasesPost(name="a", target=ONE, type="virtual-machine"), InvalidRequest),
    ],
)
async def test_aliases_that_are_refused(
    setting: Setting, request_: ImageAliasesPost, error: type[Exception]
) -> None:
    await setting.add()
    with pytest.raises(error):
        await setting.images.aliases.create("default", request_)
    assert await setting.images.aliases.all(EVERYTHING, "default") == []


async def test_the_start_brings_rows_and_files_together(setting: Setting) -> None:
    await setting.add()
    lost = await setting.add(b"two")
    half = replace(lost, id=0, fingerprint=digest(b"half"), state="creating")
    await setting.database.write("test", image_rows.insert, half)
    (setting.paths.images / TWO).unlink()
    (setting.paths.images / half.fingerprint).touch()
    (setting.paths.images / ".upload-1.metadata").touch()
    await setting.images.start()
    assert setting.files == [ONE]
    assert [row.fingerprint for row in await setting.database.read("test", image_rows.get_all, None)] == [ONE]
    await setting.images.start()
    assert setting.files == [ONE]


async def test_an_image_that_is_not_ready_is_not_found(setting: Setting) -> None:
    row = await setting.add()
    unready = replace(row, id=0, fingerprint=TWO, state="creating")
    await setting.database.write("test", image_rows.insert, unready)
    with pytest.raises(NotFound):
        await setting.images.get(EVERYTHING, "default", TWO)
    with pytest.raises(NotFound):
        await setting.images.resolve("default", fingerprint=TWO)
    with pytest.raises(NotFound):
        await setting.images.aliases.create("default", ImageAliasesPost(name="a", target=TWO))
    assert await setting.images.names(EVERYTHING, "default") == [("default", ONE)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a/b.tar", "b.tar"), ("c:\\x.tar", "x.tar"), ("..", ""), ("a\nb", ""), ("x" * 300, "")],
)
def test_file_names_lose_their_folders(given: str, kept: str) -> None:
    assert records.check_filename(given) == kept


# ---- projects and members


async def test_a_project_without_images_of_its_own_has_the_default_ones(setting: Setting) -> None:
    images = setting.images
    row = await setting.add(project="shares", aliases=["a"])
    assert row.project == "default"
    assert await images.get(EVERYTHING, "shares", ONE[:12]) == row
    assert await images.names(EVERYTHING, "shares") == [("default", ONE)]
    assert await images.resolve("shares", alias="a") == await images.resolve("shares", fingerprint=ONE) == row
    assert await images.resolve("shares", properties={"os": "Debian"}) == row
    assert [alias.name for alias in await images.aliases.all(EVERYTHING, "shares")] == ["a"]
    await images.aliases.rename("shares", "a", "b")
    assert (await images.aliases.get(EVERYTHING, "default", "b")).project == "default"
    await images.aliases.delete("shares", "b")
    held = Scope(frozenset({"shares"}))
    shared = await images.names(held, "shares")
    assert shared == [("default", ONE)], "what a project shares is there for who is held to it"
    assert await images.names(held, "default") == []
    await images.remove(await images.get(EVERYTHING, "shares", ONE))
    assert await images.names(EVERYTHING, "default") == []


async def test_a_list_has_the_records_of_single_images(setting: Setting) -> None:
    await setting.add(aliases=["b", "a"], properties={"os": "Mine", "note": 'quoted "text"'})
    await setting.add(
        b"two",
        rootfs=b"root",
        public=True,
        cached=True,
        source=ImageOrigin("https://x", "simplestreams", "", "y"),
    )
    await setting.add(b"three", project="other")
    for project in ("default", "shares", "other"):
        rows = [
            await setting.images.get(EVERYTHING, project, name)
            for _, name in await setting.images.names(EVERYTHING, project)
        ]
        single = [await setting.images.record(row) for row in rows]
        assert await setting.images.records(EVERYTHING, project) == single
    everywhere = await setting.images.records(EVERYTHING, None)
    assert [(r.project, r.fingerprint) for r in everywhere] == await setting.images.names(EVERYTHING, None)
    assert [r.project for r in everywhere] == ["default", "default", "other"]


async def test_a_list_can_be_filtered(setting: Setting) -> None:
    await setting.add(properties={"os": "Mine"})
    await setting.add(b"two", public=True)

    async def matching(text: str) -> list[str]:
        found = await setting.images.records(EVERYTHING, "default", parse_filter(text))
        return [record.fingerprint for record in found]

    assert await matching("properties.os eq mine") == [ONE]
    assert await matching("public eq true or properties.os eq mine") == sorted([ONE, TWO])
    assert await matching("size eq 3 and not public eq false") == [TWO]


async def test_images_with_unknown_codes_are_in_no_list(setting: Setting) -> None:
    await setting.add()
    await setting.add(b"two", source=ImageOrigin("https://x", "lxd", "", "y"))
    for table, column in (
        (schema.images, "type"),
        (schema.images, "architecture"),
        (schema.images_source, "protocol"),
    ):
        await setting.database.write("newer version", _set_code, table, column, 90)
        expected = [("default", ONE)] if table is schema.images_source else []
        assert await setting.images.names(EVERYTHING, "default") == expected
        listed = await setting.images.records(EVERYTHING, "default")
        assert [(r.project, r.fingerprint) for r in listed] == expected
        await setting.database.write("repair", _set_code, table, column, 0)


def _set_code(tx: Transaction, table: sa.Table, column: str, number: int) -> None:
    tx.execute(table.update().values({column: number}))


async def test_strangers_do_not_learn_which_projects_exist(setting: Setting) -> None:
    assert await setting.images.names(NOTHING, "nope") == []
    assert await setting.images.records(NOTHING, "nope") == []
    assert await setting.images.aliases.all(NOTHING, "nope") == []
    with pytest.raises(NotFound, match="Project 'nope'"):
        await setting.images.names(EVERYTHING, "nope")


async def test_files_of_an_image_deleted_by_another_member_are_removed(setting: Setting) -> None:
    kept, gone = await setting.add(b"one"), await setting.add(b"two", rootfs=b"three")
    await setting.database.write("on another member", image_rows.delete, gone.id)
    await setting.images.follow_others()
    assert setting.files == [kept.fingerprint]
    assert setting.pools.deleted == [gone.fingerprint]
    await setting.images.follow_others()
    assert setting.pools.deleted == [gone.fingerprint]


async def test_the_files_of_an_image_are_imported_on_each_member(setting: Setting) -> None:
    database, images = setting.database, setting.images
    await database.write("test", members.claim, "uuid-1", "host1")
    second = await database.write("test", members.claim, "uuid-2", "host2")
    row = await setting.add(aliases=["a"])
    await setting.add(b"two", aliases=["b"])
    database.act_as(second)
    elsewhere = await images.resolve("default", alias="a")
    with pytest.raises(OtherMember, match="are on host1 only: import it on this member, too"):
        images.check_here(elsewhere)
    with pytest.raises(OtherMember):
        await images.files(elsewhere)
    await images.start()
    assert setting.files == [], "the folder is the other member's, in this test alone"
    assert len(await images.names(EVERYTHING, "default")) == 2, "another member's images were swept"
    with pytest.raises(AlreadyExists, match="'b' already exists"):
        await setting.add(aliases=["a", "b"])
    assert setting.files == []
    again = await setting.add(aliases=["a", "c"])
    assert (again.id, again.locations) == (row.id, ("host1", "host2"))
    assert images.check_here(again).here
    assert [alias.name for alias in await images.aliases.all(EVERYTHING, "default")] == ["a", "b", "c"]
    with pytest.raises(AlreadyExists, match="same fingerprint"):
        await setting.add()
