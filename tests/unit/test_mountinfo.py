"""Parsing of mountinfo."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from utsuwa.host.mounts.mounts import parse_mountinfo

PLAIN = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n"


def test_optional_fields_are_skipped() -> None:
    (mount,) = parse_mountinfo(PLAIN)
    assert (mount.id, mount.parent, mount.root, mount.target) == (36, 35, "/mnt1", Path("/mnt2"))
    assert (mount.fstype, mount.source, mount.options) == ("ext3", "/dev/root", "rw,noatime")
    assert mount.super_options == "rw,errors=continue"


def test_a_line_that_was_cut_off_is_left_out() -> None:
    assert len(parse_mountinfo(PLAIN + PLAIN[:40])) == 1
    assert parse_mountinfo(PLAIN.replace(b" - ext3 /dev/root", b" - ext3")[:-30]) == []


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_mount_target_round_trip(name: str) -> None:
    """The kernel escapes space, tab, newline and backslash in octal."""
    target = f"/x{name}"
    escaped = target
    for character in "\\ \t\n":
        escaped = escaped.replace(character, f"\\{ord(character):03o}")
    line = b"1 2 0:1 / " + escaped.encode() + b" rw - tmpfs none rw\n"
    if len(line.splitlines()) == 1:
        (mount,) = parse_mountinfo(line)
        assert mount.target == Path(target)
