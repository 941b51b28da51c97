"""The man pages and docs/commands.md, which are written from the tables of commands."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa import manual
from utsuwa.cli.index import ROOT
from utsuwa.cli.parsing.command import Command

PAGES = manual.pages(date(2026, 1, 2))
COMMANDS = dict(manual.commands())
DOCS = Path(__file__).resolve().parents[2] / "docs"


def plain(page: str) -> str:
    """A page as it is read, without the escapes of roff."""
    for escape, character in (
        ("\\-", "-"),
        ("\\(aq", "'"),
        ("\\(dq", '"'),
        ("\\(ti", "~"),
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
    ):
        page = page.replace(escape, character)
    return page


def page_of(name: str) -> str:
    words = name.split()
    return plain(PAGES[f"man1/{'-'.join(words[:2])}.1"])


def test_reference_is_up_to_date() -> None:
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert written == manual.reference(), (
        "docs/commands.md is out of date: run .venv/bin/python -m utsuwa.manual reference docs/commands.md"
    )


def test_each_top_level_command_has_a_page() -> None:
    names = {f"man1/utsuwa-{child.name}.1" for child in ROOT.children}
    assert PAGES.keys() == names | {"man1/utsuwa.1", "man8/utsuwad.8"}


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.run])
def test_page_and_reference_have_usage_flags_and_example(name: str) -> None:
    command = COMMANDS[name]
    page, reference = page_of(name), manual.reference()
    assert f"{name} {command.args}".strip() in page
    assert command.example[0] in page
    for flag in command.flags:
        assert f"--{flag.name}" in page
    assert f"    {name} {command.args} [flags]".replace("  [", " [") in reference
    assert f"    {command.example[0]}\n" in reference


def test_daemon_page_has_all_subcommands_with_their_own_options() -> None:
    page = plain(PAGES["man8/utsuwad.8"])
    for name in ("activateifneeded", "check", "init", "shutdown", "sql", "version", "waitready"):
        assert f'.SS "utsuwad {name}"' in page
    assert "--raise-limits" in page
    assert page.count("--logfile") == 1, "options of all subcommands are described once"


@pytest.mark.processes
def test_pages_are_valid(tmp_path: Path) -> None:
    assert manual.main(["pages", str(tmp_path)]) == 0
    files = sorted(tmp_path.glob("man*/*"))
    assert {str(file.relative_to(tmp_path)) for file in files} == PAGES.keys()
    linted = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", *files], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.processes
def test_page_is_shown_as_written(tmp_path: Path) -> None:
    """Dots, quotes and backslashes at any place are text, and tables keep their lines."""
    command = Command(
        "odd",
        "Show '.odd' \\characters",
        lambda *_: None,
        args="<a>",
        example=("utsuwa odd .x '-y' \\n", "Print ~ and ^."),
        details=".First line\n'second' line\n\nColumns:\n  a - b\n  .c - d",
    )
    file = tmp_path / "odd.1"
    file.write_text(manual._command_page("utsuwa-odd", command, date(2026, 1, 2)))
    shown = subprocess.run(
        ["mandoc", "-Tascii", "-O", "width=100", file], capture_output=True, text=True, check=True
    )
    text = "".join(c for i, c in enumerate(shown.stdout) if c != "\b" and shown.stdout[i + 1 : i + 2] != "\b")
    for line in (
        "utsuwa odd .x '-y' \\n",
        "Print ~ and ^.",
        ".First line 'second' line",
        "  a - b\n",
        "  .c - d\n",
    ):
        assert line in text


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=200))
def test_no_text_is_taken_for_a_macro(text: str) -> None:
    assert not any(line.startswith((".", "'")) for line in manual._text(text).splitlines())


def test_markdown_escapes_what_is_not_code() -> None:
    assert manual._markdown("<a>|b_c `<d>|e_f`") == "\\<a\\>\\|b\\_c `<d>|e_f`"
