"""Definitions of images, and what apt says about them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from utsuwa.cli.building import archive, metadata, scratch
from utsuwa.cli.building.container import failure
from utsuwa.cli.building.definition import Definition, File, load, parse
from utsuwa.cli.building.packages import explain
from utsuwa.cli.errors import CommandFailed, UsageError

MINIMAL = "distribution: debian\nrelease: bookworm\n"
IMAGES = Path(__file__).resolve().parents[2] / "scripts" / "images"


def test_minimal_definition_has_templates_of_the_name(tmp_path: Path) -> None:
    found = parse(MINIMAL, str(tmp_path))
    assert (found.distribution, found.release, found.variant) == ("debian", "bookworm", "default")
    assert [template.path for template in found.templates] == ["/etc/hostname", "/etc/hosts"]
    assert parse(f"{MINIMAL}templates: {{}}", str(tmp_path)).templates == ()


def test_file_gets_content_or_the_content_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/motd").write_bytes(b"\0\xff")
    text = """
files:
- {path: /etc/motd, source: ./files/motd, mode: 0600, owner: "1000:users"}
- {path: /etc/issue, content: hello}
"""
    assert parse(MINIMAL + text, str(tmp_path)).files == (
        File("/etc/motd", b"\0\xff", "0600", "1000:users"),
        File("/etc/issue", b"hello", "0644", "root:root"),
    )


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.yaml")), ids=lambda path: path.name)
def test_definitions_of_the_repository_are_valid(path: Path) -> None:
    assert load(str(path)).packages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distribution: debian", "The key 'release' is missing"),
        ("", "The key 'distribution' is missing"),
        ("distribution: [", "Invalid YAML"),
        ("- debian", "The YAML must be a mapping"),
        ("distribution: fedora\nrelease: x", "Unknown distribution 'fedora': use one of debian, ubuntu"),
        ("distribution: debian\nrelease: ../x", "Invalid release '../x'"),
        (f"{MINIMAL}package: [x]", "Unknown key 'package': did you mean"),
        (f"{MINIMAL}packages: systemd", "packages must be a list of texts"),
        (f"{MINIMAL}packages: [-oDir=/]", "Invalid entry of packages: '-oDir=/'"),
        (f"{MINIMAL}packages: ['a b']", "Invalid entry of packages: 'a b'"),
        (f"{MINIMAL}components: ['main\n']", "Invalid entry of components"),
        (f"{MINIMAL}properties: [a]", "properties must be a mapping"),
        (f"{MINIMAL}mirror: gopher://x", "Invalid mirror 'gopher://x'"),
        (f"{MINIMAL}sources: ['deb [trusted=yes] http://x y z']", "Invalid URI in sources: '[trusted=yes]'"),
        (f"{MINIMAL}sources: ['deb-src http://x y z']", "Invalid entry of sources"),
        (f"{MINIMAL}path-exclude: [doc]", "Invalid entry of path-exclude: 'doc'"),
        (f"{MINIMAL}files: x", "files must be a list of mappings"),
        (f"{MINIMAL}files: [{{path: etc/x, content: ''}}]", "Invalid path in files: 'etc/x'"),
        (f"{MINIMAL}files: [{{path: /etc/../x, content: ''}}]", "it must not contain '.', '..'"),
        (f"{MINIMAL}files: [{{path: /etc/x}}]", "/etc/x needs either 'content' or 'source'"),
        (f"{MINIMAL}files: [{{path: /x, content: a, source: b}}]", "/x needs either 'content' or 'source'"),
        (f"{MINIMAL}files: [{{path: /x, content: a, mode: 999}}]", "Invalid mode of /x: '999'"),
        (f"{MINIMAL}files: [{{path: /x, content: a, owner: '-R'}}]", "Invalid owner of /x: '-R'"),
        (f"{MINIMAL}files: [{{path: /x, contents: a}}]", "Unknown key 'contents' in files: /x"),
        (f"{MINIMAL}files: [{{path: /x, source: ../x}}]", "Invalid source '../x'"),
        (f"{MINIMAL}files: [{{path: /x, source: /etc/passwd}}]", "Invalid source '/etc/passwd'"),
        (f"{MINIMAL}files: [{{path: /x, source: none}}]", "Cannot read the source 'none'"),
        (f"{MINIMAL}files: [{{path: /x, source: link}}]", "The source 'link' is or passes a symlink"),
        (f"{MINIMAL}files: [{{path: /x, source: away/passwd}}]", "'away/passwd' is or passes a symlink"),
        (f"{MINIMAL}files: [{{path: /x, source: folder}}]", "The source 'folder' is not a regular file"),
        (f"{MINIMAL}templates: {{/x: {{content: a}}}}", "'when' of the template /x is a list of create"),
        (f"{MINIMAL}templates: {{/x: {{when: [boot], content: a}}}}", "'when' of the template /x"),
        (f"{MINIMAL}templates: {{/x: {{when: [copy], content: a, create_only: 3}}}}", "create_only must be"),
    ],
)
def test_error_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "away").symlink_to("/etc")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "image.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        load(str(path))
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_what_is_no_definition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        load(str(tmp_path / "none"))
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        load(str(path))
    path.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        load(str(path))


UBUNTU = "http://archive.ubuntu.com/ubuntu noble"
PORTS = "http://ports.ubuntu.com/ubuntu-ports noble"


@pytest.mark.parametrize(
    ("keys", "architecture", "lines"),
    [
        ({"mirror": "file:///srv"}, "amd64", ["file:///srv noble main universe"]),
        ({"mirror": "file:///srv", "components": ("main",)}, "amd64", ["file:///srv noble main"]),
        (
            {"sources": ("deb http://a x main", "deb http://b y z")},
            "amd64",
            ["http://a x main", "http://b y z"],
        ),
        (
            {},
            "amd64",
            [
                f"{UBUNTU} main universe",
                f"{UBUNTU}-updates main universe",
                "http://security.ubuntu.com/ubuntu noble-security main universe",
            ],
        ),
        ({}, "arm64", [f"{PORTS}{suffix} main universe" for suffix in ("", "-updates", "-security")]),
    ],
)
def test_archive_is_what_the_definition_says_or_the_official_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], architecture: str, lines: list[str]
) -> None:
    monkeypatch.setattr(archive, "_of_host", lambda *_: ())
    keyring = tmp_path / "keyring"
    keyring.write_bytes(b"\x98")
    found = archive.find(Definition("ubuntu", "noble", keyring=str(keyring), **keys), architecture)
    assert list(found.lines) == lines
    assert found.sources("/k").splitlines()[0] == f"deb [signed-by=/k] {lines[0]}"
    assert found.keyring_inside == "/etc/apt/keyrings/archive.gpg"
    keyring.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    assert archive.suffix(str(keyring)) == ".asc"


def test_metadata_depends_on_nothing_but_its_input(tmp_path: Path) -> None:
    wanted = Definition("debian", "bookworm", properties={"serial": "7"}, variant="small", name="mine")
    for name in ("one", "two"):
        metadata.write(str(tmp_path / name), wanted, "amd64", 1_700_000_000)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as tar:
        assert {member.mtime for member in tar} == {1_700_000_000}
        file = tar.extractfile("metadata.yaml")
        assert file is not None
        record = yaml.safe_load(file.read())
    assert record["creation_date"] == 1_700_000_000
    assert record["properties"] == {
        "architecture": "amd64",
        "description": "Debian bookworm amd64 (20231114_2213)",
        "name": "mine",
        "os": "Debian",
        "release": "bookworm",
        "serial": "7",
        "variant": "small",
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("E: Unable to locate package helo\n", "There is no package helo in the archive"),
        (
            "E: Unable to locate package b\nE: Unable to locate package a\n",
            "no package a in the archive; There",
        ),
        ("E: Version '7' for 'x' was not found\n", "There is no version 7 of the package x"),
        ("W: GPG error: http://x y InRelease: NO_PUBKEY 1\nE: not signed.\n", "signature of the archive"),
        ("Err:1 http://x\n  Could not connect to x\nE: Failed to fetch\n", "cannot be reached"),
        ("E: The repository 'http://x y Release' does not have a Release file.\n", "this release"),
        ("E: Something else\n", "cannot be downloaded\nSomething else"),
    ],
)
def test_what_apt_says_is_explained(said: str, message: str) -> None:
    assert message in explain(said)


def test_reason_of_a_failed_installation() -> None:
    assert (
        failure("I: x\nutsuwa: Command 1 failed\n    out\nE: setup failed\n") == "Command 1 failed\n    out"
    )
    assert failure("I: x\nE: setup failed\n") == "The installation failed:\nE: setup failed"


def test_directories_of_builds_that_are_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{scratch.PREFIX}gone" / "apt").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    with scratch.folder() as one, scratch.folder() as two:
        assert {path.name for path in tmp_path.iterdir()} == {"other", Path(one).name, Path(two).name}
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
