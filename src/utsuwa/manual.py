"""The manual, written from the tables of commands: man pages, and docs/commands.md.

    python3 -m utsuwa.manual pages FOLDER      # man1/utsuwa.1, man1/utsuwa-launch.1 ..., man8/utsuwad.8 in it
    python3 -m utsuwa.manual reference FILE    # docs/commands.md

The quick start installs the pages. What they say is that of `--help`: change the records of commands instead.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from utsuwa.cli.index import GLOBAL_FLAGS, ROOT
from utsuwa.cli.parsing import help
from utsuwa.cli.parsing.command import Command, Entry
from utsuwa.cli.parsing.flags import Flag
from utsuwa.daemon.main import make_parser
from utsuwa.version import __version__

Named = tuple[str, Command]
"""A command with its complete name, such as `utsuwa config set`."""

_CLIENT_FILES = (
    (
        "$UTSUWA_CONF, ~/.config/utsuwa",
        "The client's directory: config.yml, client.crt, client.key, servercerts/",
    ),
    ("$UTSUWA_SOCKET", "The socket of the remote 'local', by default unix.socket in the state directory"),
    ("$UTSUWA_DIR, /var/lib/utsuwa", "The daemon's state directory"),
)
_DAEMON_FILES = (
    ("$UTSUWA_DIR, /var/lib/utsuwa", "The state directory"),
    ("database.yaml", "In the state directory: 'url' and 'member' of a database that several daemons share"),
    ("logs/<instance>/", "In the state directory: the logs of an instance's start, and its console"),
)
_EXIT_STATUS = (
    ("0", "The command succeeded."),
    ("1", "The command failed; a single message on standard error says why."),
    (
        "126, 127, 128+N",
        "Of `utsuwa exec`: the program could not be run, was not found, was killed by signal N.",
    ),
)


def commands(command: Command = ROOT, name: str = ROOT.name) -> Iterator[Named]:
    """Yield a command and all below it, groups first."""
    yield name, command
    for child in command.children:
        yield from commands(child.load() if isinstance(child, Entry) else child, f"{name} {child.name}")


# ---- man pages, in the macros of man(7)


def pages(day: date) -> dict[str, str]:
    """Return all pages by their path below the directory of manuals, such as `man1/utsuwa.1`."""
    found = {"man1/utsuwa.1": _client_page(day), "man8/utsuwad.8": _daemon_page(day)}
    for entry in ROOT.children:
        name = f"{ROOT.name}-{entry.name}"
        command = entry.load() if isinstance(entry, Entry) else entry
        found[f"man1/{name}.1"] = _command_page(name, command, day)
    return found


def _client_page(day: date) -> str:
    return "".join(
        (
            _title(ROOT.name, 1, day, ROOT.summary),
            _section("SYNOPSIS", f"{_bold(ROOT.name)} {_italic('command')} [{_italic('argument')} ...]"),
            _section("DESCRIPTION", _text(f"{ROOT.summary}. {ROOT.details}")),
            _section(
                "COMMANDS", _definitions((f"{ROOT.name}-{c.name}(1)", c.summary) for c in ROOT.children)
            ),
            _section("GLOBAL FLAGS", _flags(GLOBAL_FLAGS)),
            _section("FILES", _definitions(_CLIENT_FILES)),
            _section("EXIT STATUS", _definitions(_EXIT_STATUS)),
            _section("SEE ALSO", _text("utsuwad(8)")),
        )
    )


def _command_page(page: str, command: Command, day: date) -> str:
    name = f"{ROOT.name} {command.name}"
    parts = [_title(page, 1, day, command.summary), _section("SYNOPSIS", _synopsis(name, command))]
    parts.append(_section("DESCRIPTION", _about(command)))
    for below, child in commands(command, name):
        if child is not command and child.run is not None:
            parts += [_subsection(below), _synopsis(below, child), ".PP\n", _about(child)]
    parts.append(_section("SEE ALSO", _text("utsuwa(1), which describes the global flags; utsuwad(8)")))
    return "".join(parts)


def _about(command: Command) -> str:
    """Return what follows the synopsis: the description, the flags, an example."""
    parts = [_text(command.summary + ".")]
    parts += [
        _preformatted(paragraph) if _is_aligned(paragraph) else f".PP\n{_text(paragraph)}"
        for paragraph in _paragraphs(command)
    ]
    if command.aliases:
        parts.append(f".PP\n{_text('Also: ' + ', '.join(command.aliases))}")
    if command.flags:
        parts += [".PP\nFlags:\n", _flags(command.flags)]
    line, meaning = command.example
    if line:
        parts += [f".PP\n{_text(f'Example: {meaning}')}", _preformatted(line)]
    return "".join(parts)


def _paragraphs(command: Command) -> list[str]:
    return [paragraph for paragraph in command.details.split("\n\n") if paragraph]


def _is_aligned(paragraph: str) -> bool:
    """Whether a paragraph is a table, whose lines must not be filled."""
    return any(line.startswith(" ") for line in paragraph.split("\n"))


def _preformatted(text: str) -> str:
    lines = "".join(map(_line, text.split("\n")))
    return f".PP\n.RS 4\n.nf\n{lines}.fi\n.RE\n"


def _daemon_page(day: date) -> str:
    parser = make_parser()
    # argparse has no public way to list what a parser accepts.
    subcommands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    usual = {option for action in parser._actions for option in action.option_strings}
    parts = [
        _title("utsuwad", 8, day, str(parser.description).partition(".")[0]),
        _section("SYNOPSIS", f"{_bold('utsuwad')} [{_italic('option')} ...] [{_italic('command')}]"),
        _section("DESCRIPTION", _text(f"{parser.description} {parser.epilog}")),
        _section("OPTIONS", _options(parser._actions)),
        _section("COMMANDS"),
    ]
    for choice in subcommands._choices_actions:
        own = [
            action
            for action in subcommands.choices[choice.dest]._actions
            if not usual.intersection(action.option_strings)
        ]
        parts += [_subsection(f"utsuwad {choice.dest}"), _text(_sentence(str(choice.help))), _options(own)]
    parts.append(_section("FILES", _definitions(_DAEMON_FILES)))
    parts.append(_section("SEE ALSO", _text("utsuwa(1)")))
    return "".join(parts)


def _options(actions: Iterable[argparse.Action]) -> str:
    found = []
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        value = action.metavar or ("|".join(action.choices) if action.choices else "")
        names = ", ".join(action.option_strings) or action.dest
        shown = f"{names} {value}" if value and action.option_strings else names
        found.append((shown, _sentence(str(action.help or names.strip("-").rpartition("--")[2]))))
    return _definitions(found)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _title(name: str, section: int, day: date, summary: str) -> str:
    head = f'.TH {name.upper()} {section} "{day.isoformat()}" "Utsuwa {__version__}"\n'
    return head + _section("NAME", f"{_roff(name)} \\- {_roff(summary[:1].lower() + summary[1:])}")


def _section(name: str, body: str = "") -> str:
    return f".SH {name}\n{body}" + ("" if body.endswith("\n") or not body else "\n")


def _subsection(name: str) -> str:
    return f'.SS "{_roff(name)}"\n'


def _synopsis(name: str, command: Command) -> str:
    if command.run is None:
        return f"{_bold(name)} {_italic('command')} [{_italic('argument')} ...]\n"
    return f"{_bold(name)} {_roff(command.args)} ".replace("  ", " ") + f"[{_italic('flags')}]\n"


def _flags(flags: Sequence[Flag]) -> str:
    return _definitions((help.spelled(flag).strip(), help.meaning(flag)) for flag in flags)


def _definitions(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f".TP\n{_bold(term)}\n{_text(meaning)}" for term, meaning in rows)


def _text(text: str) -> str:
    """Return text that is filled when it is shown, in short lines as man(7) advises."""
    words = " ".join(text.split("\n"))
    return "".join(map(_line, textwrap.wrap(words, 76, break_long_words=False, break_on_hyphens=False)))


def _line(text: str) -> str:
    """Return a line that is no macro, as it would be with a dot at its beginning."""
    return f"\\&{_roff(text)}\n" if text.startswith(".") else f"{_roff(text)}\n"


_ESCAPES = str.maketrans(
    {"\\": "\\e", "-": "\\-", '"': "\\(dq", "'": "\\(aq", "`": "\\(ga", "~": "\\(ti", "^": "\\(ha"}
)


def _roff(text: str) -> str:
    """Escape text, so that it can be copied from the page into a shell."""
    return text.translate(_ESCAPES)


def _bold(text: str) -> str:
    return f"\\fB{_roff(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_roff(text)}\\fR"


# ---- docs/commands.md

_HEAD = """# Commands

What `utsuwa COMMAND --help` and the man pages show. [client.md](client.md) introduces the client.

<!-- Written by `python3 -m utsuwa.manual reference docs/commands.md` from the tables of commands. -->
"""


def reference() -> str:
    """Return docs/commands.md."""
    parts = [_HEAD, "## Global flags\n", _flag_table(GLOBAL_FLAGS)]
    for name, command in commands():
        if command is ROOT:
            continue
        if name.count(" ") == 1:
            parts += [f"## {name}\n", f"{command.summary}.\n"]
        elif command.run is not None:
            parts += [f"### {name}\n", f"{command.summary}.\n"]
        if command.run is not None:
            parts.append(_usage(name, command))
    return "\n".join(parts)


def _usage(name: str, command: Command) -> str:
    parts = [f"    {name} {command.args} [flags]\n".replace("  [flags]", " [flags]")]
    for paragraph in _paragraphs(command):
        aligned = _is_aligned(paragraph)
        parts.append(textwrap.indent(paragraph, "    ") if aligned else _markdown(paragraph))
        parts.append("")
    if command.aliases:
        parts.append(f"Also: {', '.join(f'`{alias}`' for alias in command.aliases)}.\n")
    if command.flags:
        parts.append(_flag_table(command.flags))
    line, meaning = command.example
    if line:
        parts.append(f"Example: {_markdown(meaning)}\n\n    {line}\n")
    return "\n".join(parts)


def _flag_table(flags: Sequence[Flag]) -> str:
    rows = [f"| `{help.spelled(flag).strip()}` | {_markdown(help.meaning(flag))} |\n" for flag in flags]
    return "| flag | meaning |\n|---|---|\n" + "".join(rows)


def _markdown(text: str) -> str:
    """Escape what is not in backticks: `<name>` would be HTML, `|` the end of a table's cell."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<>|*_])", r"\\\1", p) for p in parts)


# ---- writing


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="utsuwa.manual", description="Write man pages, or docs/commands.md."
    )
    parser.add_argument("what", choices=("pages", "reference"))
    parser.add_argument("path", type=Path, help="directory of manuals, or the file")
    options = parser.parse_args(arguments)
    if options.what == "reference":
        options.path.write_text(reference(), encoding="utf-8")
        return 0
    for name, text in pages(datetime.now(UTC).date()).items():
        file = options.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
