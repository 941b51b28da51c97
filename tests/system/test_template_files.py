"""Files made from templates: where they land, whose they are, and what keeps a template from leading out."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from utsuwa.core.errors import InvalidImage
from utsuwa.core.idmap import IdMap
from utsuwa.instances.templates import files as templates
from utsuwa.instances.templates.process import TemplateProcess
from utsuwa.instances.templates.variables import Facts, Trigger

pytestmark = pytest.mark.root


@dataclass
class Instance:
    folder: Path

    @property
    def rootfs(self) -> Path:
        return self.folder / "rootfs"

    def describe(self, **entries: Any) -> None:
        """Write metadata.yaml; the keys are paths below /etc."""
        content = {
            "architecture": "x86_64",
            "creation_date": 1700000000,
            "templates": {f"/etc/{name}": entry for name, entry in entries.items()},
        }
        (self.folder / "metadata.yaml").write_text(json.dumps(content))

    def template(self, name: str, text: str) -> None:
        (self.folder / "templates" / name).write_text(text)

    async def apply(self, trigger: Trigger) -> None:
        facts = Facts("c1", "x86_64", False, False, {"user.x": "y"}, {})
        target = templates.Target(self.folder, self.rootfs, IdMap(), facts)
        process = TemplateProcess()
        try:
            await templates.apply([trigger], target, process)
        finally:
            process.close()

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.rootfs / "etc").iterdir())

    def read(self, name: str) -> str:
        return (self.rootfs / "etc" / name).read_text()


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "templates").mkdir()
    made = Instance(tmp_path)
    made.template("name.tpl", "{{ container.name }} {{ trigger }}\n")
    return made


def entry(*when: str, **more: Any) -> dict[str, Any]:
    return {"when": list(when), "template": "name.tpl"} | more


async def test_triggers(instance: Instance) -> None:
    instance.describe(a=entry("create"), b=entry("start", "copy"), c=entry("rename"))
    await instance.apply("create")
    assert instance.files() == ["a"]
    await instance.apply("start")
    await instance.apply("rename")
    assert [instance.read(name) for name in "abc"] == ["c1 create\n", "c1 start\n", "c1 rename\n"]


async def test_owners_and_modes(instance: Instance) -> None:
    old = instance.rootfs / "etc/old"
    old.write_text("longer than what comes now\n")
    old.chmod(0o600)
    os.chown(old, 5, 6)
    instance.describe(**{"old": entry("start"), "deep/er/new": entry("start")})
    await instance.apply("start")
    assert instance.read("old") == "c1 start\n"
    was = old.stat()
    assert (stat.S_IMODE(was.st_mode), was.st_uid, was.st_gid) == (0o600, 5, 6)
    new = (instance.rootfs / "etc/deep/er/new").stat()
    assert (stat.S_IMODE(new.st_mode), new.st_uid, new.st_gid) == (0o644, 0, 0)
    assert stat.S_IMODE((instance.rootfs / "etc/deep").stat().st_mode) == 0o755


async def test_create_only_keeps_existing_files(instance: Instance) -> None:
    (instance.rootfs / "etc/kept").write_text("mine\n")
    instance.describe(kept=entry("start", create_only=True), made=entry("start", create_only=True))
    await instance.apply("start")
    assert (instance.read("kept"), instance.read("made")) == ("mine\n", "c1 start\n")


async def test_properties_and_config(instance: Instance) -> None:
    instance.template("p.tpl", '{{ properties.a }}{{ config_get("user.x", "") }}')
    instance.describe(p=entry("start", template="p.tpl", properties={"a": "b"}))
    await instance.apply("start")
    assert instance.read("p") == "by"


async def test_instances_without_metadata_have_no_templates(instance: Instance) -> None:
    await instance.apply("start")
    assert instance.files() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ bad", "not closed"),
        ("{% for a in trigger %}{{ a|nope }}{% endfor %}", "filter 'nope'"),
        ("{{ '" + "x" * 70000 + "' }}", "larger than"),
    ],
)
async def test_a_failing_template_is_named(instance: Instance, text: str, message: str) -> None:
    instance.template("bad.tpl", text)
    instance.describe(f=entry("start", template="bad.tpl"))
    with pytest.raises(InvalidImage, match=rf"'bad\.tpl' for /etc/f failed: .*{message}"):
        await instance.apply("start")
    assert instance.files() == []


async def test_files_before_one_that_fails_are_generated(instance: Instance) -> None:
    instance.template("upper.tpl", "{{ container.name|upper }}")
    instance.template("bad.tpl", "{% for a in trigger %}{{ a|nope }}{% endfor %}")
    instance.describe(
        a=entry("start", template="upper.tpl"),
        b=entry("start", template="bad.tpl"),
        c=entry("start", template="upper.tpl"),
    )
    with pytest.raises(InvalidImage, match=r"'bad\.tpl' for /etc/b failed"):
        await instance.apply("start")
    assert instance.files() == ["a"]
    assert instance.read("a") == "C1"


async def test_templates_that_are_missing_or_no_text(instance: Instance) -> None:
    instance.describe(f=entry("start", template="none.tpl"))
    with pytest.raises(InvalidImage, match="does not contain it"):
        await instance.apply("start")
    (instance.folder / "templates/none.tpl").write_bytes(b"\xff")
    with pytest.raises(InvalidImage, match="not UTF-8"):
        await instance.apply("start")


async def test_links_are_not_followed_on_the_daemons_side(instance: Instance, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:*\n")
    instance.describe(f=entry("start", template="link.tpl"))
    (instance.folder / "templates/link.tpl").symlink_to(secret)
    with pytest.raises(InvalidImage, match="cannot be read"):
        await instance.apply("start")
    (instance.folder / "templates/link.tpl").unlink()
    os.mkfifo(instance.folder / "templates/link.tpl")
    with pytest.raises(InvalidImage, match="not a regular file"):
        await instance.apply("start")
    (instance.folder / "metadata.yaml").rename(tmp_path / "elsewhere")
    (instance.folder / "metadata.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidImage, match="metadata"):
        await instance.apply("start")


async def test_links_of_the_container_stay_inside(instance: Instance, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("host\n")
    (instance.rootfs / "etc/f").symlink_to(outside)
    instance.describe(f=entry("start"))
    with pytest.raises(InvalidImage, match="does not exist"):
        await instance.apply("start")
    assert outside.read_text() == "host\n"
    (instance.rootfs / "etc/f").unlink()
    os.mkfifo(instance.rootfs / "etc/f")
    with pytest.raises(InvalidImage, match="not a regular file"):
        await instance.apply("start")


async def test_oversized_metadata(instance: Instance) -> None:
    (instance.folder / "metadata.yaml").write_text("#" * (templates.MAX_METADATA + 1))
    with pytest.raises(InvalidImage, match="larger than"):
        await instance.apply("start")
