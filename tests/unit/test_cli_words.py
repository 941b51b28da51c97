"""Command lines: the grammar of flags, the tables of commands, help and completion."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utsuwa.cli.errors import UsageError
from utsuwa.cli.index import GLOBAL_FLAGS, ROOT
from utsuwa.cli.main import find, main, run
from utsuwa.cli.parsing import complete, help
from utsuwa.cli.parsing.command import Command, Entry, format_flag
from utsuwa.cli.parsing.flags import BOOL, MANY, NUMBER, TEXT, Flag, parse
from utsuwa.cli.streams import Detached, Escape
from utsuwa.version import __version__

KNOWN = (
    Flag("all", "", "a", kind=BOOL),
    Flag("config", "", "c", kind=MANY),
    Flag("console", "", kind=TEXT, bare="console"),
    Flag("name", "", "n", kind=TEXT, default="none"),
    Flag("wait", "", "w", kind=NUMBER, default="-1"),
    format_flag(),
)


def test_flags_are_accepted_anywhere_before_two_dashes() -> None:
    arguments, flags = parse(["x", "-a", "y", "--name=z", "--", "-a", "--name"], KNOWN)
    assert arguments == ["x", "y", "-a", "--name"]
    assert flags.on("all")
    assert flags.text("name") == "z"


@pytest.mark.parametrize(
    "words", [["-c", "a=b", "-c=d"], ["-ca=b", "-ac=d"], ["--config", "a=b", "--config=d"]]
)
def test_many_spellings(words: list[str]) -> None:
    arguments, flags = parse(words, KNOWN)
    assert arguments == []
    assert flags.many("config") == ["a=b", "d"]


def test_defaults_and_bare_values() -> None:
    arguments, flags = parse(["--console", "x", "-"], KNOWN)
    assert arguments == ["x", "-"]
    assert flags.text("console") == "console"
    assert (flags.text("name"), flags.number("wait"), flags.on("all")) == ("none", -1, False)
    assert not flags.given("name")
    assert not parse(["--all=false"], KNOWN)[1].on("all")
    assert parse(["-w", "-5"], KNOWN)[1].number("wait") == -5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "unknown flag: --bogus"),
        (["-la"], "unknown shorthand flag: 'l' in -la"),
        (["-az"], "unknown shorthand flag: 'z' in -az"),
        (["--name"], "flag needs an argument: --name"),
        (["-n"], "flag needs an argument: 'n' in -n"),
        (["--all=maybe"], "true or false"),
        (["--wait", "long"], "whole number"),
        (["-f", "xml"], 'Invalid format "xml"'),
    ],
)
def test_wrong_flags(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse(words, KNOWN)


# ---- the tables


def every(command: Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Command]]:
    yield path, command
    for child in command.children:
        loaded = child.load() if isinstance(child, Entry) else child
        assert loaded.name == child.name
        assert loaded.summary == child.summary
        yield from every(loaded, (*path, child.name))


COMMANDS = dict(every(ROOT, ("utsuwa",)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_command_has_summary_sorted_children_unique_flags_and_example(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    text = help.render(command, list(path))
    assert command.summary in text
    names = [child.name for child in command.children]
    assert names == sorted(names)
    assert len({name for child in command.children for name in (child.name, *child.aliases)}) == len(
        names
    ) + sum(len(child.aliases) for child in command.children)
    if command.run is None:
        assert command.children
        return
    flags = (*command.flags, *GLOBAL_FLAGS)
    assert len({flag.name for flag in flags}) == len(flags)
    shorts = [flag.short for flag in flags if flag.short]
    assert len(set(shorts)) == len(shorts)
    assert "Example:" in text
    assert command.example[1].endswith((".", "other.", '"'))


@pytest.mark.parametrize(
    "path", [p for p, c in COMMANDS.items() if c.run and "<(" not in c.example[0]], ids=" ".join
)
def test_each_example_can_be_read(path: tuple[str, ...]) -> None:
    import shlex

    command = COMMANDS[path]
    words = shlex.split(command.example[0].split(" < ")[0])
    assert words[0] == "utsuwa"
    found, called, rest = find(words[1:])
    assert called == list(path)
    arguments, _ = parse(rest, (*found.flags, *GLOBAL_FLAGS))
    least, most = found.limits()
    assert least <= len(arguments) <= (most if most >= 0 else 1000)


@pytest.mark.parametrize(
    ("args", "limits"),
    [
        ("", (0, 0)),
        ("[<remote>:]", (0, 1)),
        ("[<remote>:] [<filter>...]", (0, -1)),
        ("[<remote>:]<pool> <driver> [<key>=<value>...]", (2, -1)),
        ("[<remote>:][<instance>] <key>", (1, 2)),
        ("[<remote>:]<instance> [--] <command> [<argument>...]", (2, -1)),
    ],
)
def test_numbers_of_arguments(args: str, limits: tuple[int, int]) -> None:
    assert Command("x", "", args=args).limits() == limits


# ---- main


@pytest.fixture(autouse=True)
def _no_remotes(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("UTSUWA_CONF", str(tmp_path_factory.mktemp("conf")))
    monkeypatch.setenv("UTSUWA_SOCKET", "/nowhere/unix.socket")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["lunch"], '"launch"'),
        (["Launch"], '"launch"'),
        (["strat"], '"start", "storage" or "restart"'),
        (["inf"], '"info"'),
        (["conf", "show"], '"config"'),
        (["profile", "shw"], '"show"'),
        (["config", "device", "ad"], '"add"'),
        (["config", "trust", "lst"], '"list" or "ls"'),
        (["list", "--colums", "n"], '"--columns"'),
        (["launch", "x", "--profil", "y"], '"--profile" or "--no-profiles"'),
        (["list", "--formt=csv"], '"--format"'),
    ],
    ids=str,
)
def test_unknown_word_suggests_similar_names(words: list[str], meant: str) -> None:
    with pytest.raises(UsageError) as raised:
        run(words)
    said = str(raised.value)
    assert said.startswith(("unknown command ", "unknown flag: --"))
    assert said.partition(": did you mean ")[2] == f"{meant}?"


@pytest.mark.parametrize("words", [["xyzzy"], ["x"], ["list", "--qqq"], ["profile", "foo"]], ids=str)
def test_unknown_word_without_similar_names_has_no_suggestion(words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        run(words)
    assert "did you mean" not in str(raised.value)


@pytest.mark.processes
def test_valid_commands_do_not_load_difflib() -> None:
    """difflib takes longer to import than most commands to run."""
    command = [sys.executable, "-X", "importtime", "-m", "utsuwa.cli.main", "list", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "difflib" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["foo"], 'unknown command "foo" for "utsuwa"'),
        (["profile", "foo"], 'unknown command "foo" for "utsuwa profile"'),
        (["list", "--bogus"], "unknown flag: --bogus"),
        (["rename", "a"], "Invalid number of arguments"),
        (["rename", "a", "b", "c"], "Invalid number of arguments"),
        (["list"], "Cannot connect to the socket /nowhere/unix.socket"),
        (["list", "zz:"], 'The remote "zz" doesn\'t exist'),
        (["list", "-c", "nZ"], "Unknown column shorthand char 'Z' in 'nZ'"),
        (["list", "-c", "nL"], "Can't specify column L when not clustered"),
        (["list", "--fast", "-c", "n"], "Can't specify --fast with --columns"),
        (["start"], "Specify at least one instance"),
        (["exec", "a", "-tT", "b"], "at the same time"),
        (["exec", "a", "--mode", "odd", "b"], "Unknown mode 'odd'"),
        (["completion", "csh"], "Unknown shell 'csh'"),
        (["query", "x"], "must start with /"),
        (["--project", "p", "query", "/1.0"], "cannot be used"),
        (["monitor", "--loglevel=info"], "pretty format"),
        (["remote", "add", "x", "http://y"], "is not a server address"),
        (["remote", "remove", "nope"], "doesn't exist"),
        (["remote", "import-lxc", "/nowhere"], "/nowhere/config.yml does not exist"),
        (["image", "import", "/nowhere/x"], "Cannot read /nowhere/x"),
        (["config", "trust", "add", "--type=server"], "Unknown certificate type 'server'"),
    ],
)
def test_errors_are_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["profile"], ["rename"], ["help", "list"], ["list", "-h"]])
def test_help_is_no_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "Usage:" in printed.out
    assert not printed.err


def test_global_flags_may_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    command, path, rest = find(["--project", "lab", "-q", "profile", "list", "--format=csv"])
    assert path == ["utsuwa", "profile", "list"]
    assert parse(rest, (*command.flags, *GLOBAL_FLAGS))[1].text("project") == "lab"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


ALIASES = {
    "sh": "exec web --",
    "list": "list -c ns46S",
    "list images": "image list",
    "run": "exec @ARGS@ -- sh -c 'echo \"a  b\"'",
    "broken": "exec 'web",
}


@pytest.fixture
def aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yml").write_text(json.dumps({"aliases": ALIASES}))
    monkeypatch.setenv("UTSUWA_CONF", str(tmp_path))


@pytest.mark.usefixtures("aliases")
@pytest.mark.parametrize(
    ("words", "path", "rest"),
    [
        (["sh", "ls", "-l"], "exec", ["web", "--", "ls", "-l"]),
        (["list", "web"], "list", ["-c", "ns46S", "web"]),
        (["list", "images", "-f", "csv"], "image list", ["-f", "csv"]),
        (["run", "web", "-t"], "exec", ["web", "-t", "--", "sh", "-c", 'echo "a  b"']),
        (["shell", "web"], "exec", ["web", "--", "su", "-l"]),
        (["-q", "sh"], None, []),
    ],
)
def test_aliases_of_the_user(words: list[str], path: str | None, rest: list[str]) -> None:
    if path is None:
        with pytest.raises(UsageError, match='unknown command "sh"'):
            find(words)
        return
    found = find(words)
    assert (" ".join(found[1]), found[2]) == (f"utsuwa {path}", rest)


@pytest.mark.usefixtures("aliases")
def test_an_alias_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broken"]) == 1
    assert "No closing quotation" in capsys.readouterr().err


@pytest.mark.usefixtures("aliases")
def test_aliases_are_kept_as_lxc_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alias", "add", "list containers", "remote list"]) == 0
    assert main(["alias", "add", "sh", "x"]) == 1
    assert main(["alias", "add", "alias", "list"]) == 1
    assert main(["alias", "add", "x", " "]) == 1
    assert main(["alias", "rename", "nope", "x"]) == 1
    assert main(["alias", "rename", "run", "sh"]) == 1
    assert main(["alias", "remove", "nope"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["Error"] * 6
    assert errors[0] == errors[4] == "Error: Alias sh already exists"
    assert errors[3] == errors[5] == "Error: Alias nope doesn't exist"
    for name in set(ALIASES) - {"sh"}:
        assert main(["alias", "remove", name]) == 0
    assert main(["alias", "rename", "sh", "s"]) == 0
    assert main(["alias", "list", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "list containers,remote list\ns,exec web --\n"
    stored = json.loads((tmp_path / "config.yml").read_text())["aliases"]
    assert stored == {"list containers": "remote list", "s": "exec web --"}


# ---- completion


@pytest.mark.parametrize(
    ("before", "word", "found"),
    [
        ([], "la", ["launch"]),
        ([], "st", ["start", "stop", "storage"]),
        (["profile"], "un", ["unset"]),
        (["config", "device"], "o", ["override"]),
        (["list"], "--f", ["--fast", "--force-local", "--format"]),
        (["list", "--format"], "", ["compact", "csv", "json", "table", "yaml"]),
        (["list", "-f"], "c", ["compact", "csv"]),
        (["list"], "--format=c", ["--format=compact", "--format=csv"]),
        (["completion"], "", ["bash", "fish", "zsh"]),
        (["remote", "switch"], "", ["images", "local", "ubuntu", "ubuntu-daily"]),
        (["config", "device", "add", "web", "eth0"], "n", ["nic", "none"]),
        (["exec", "web", "--"], "--", []),
        ([], "sh", ["sh"]),
        (["list", "images"], "--f", ["--force-local", "--format"]),
        (["alias", "remove"], "l", ["list", "list images"]),
    ],
)
@pytest.mark.usefixtures("aliases")
def test_completion(before: list[str], word: str, found: list[str]) -> None:
    assert complete.candidates(before, word) == found


def test_completion_is_silent_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["__complete", "start", ""]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ""


# ---- keys of the console


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ([b"ls\r"], b"ls\r"),
        ([b"\x01", b"\x01"], b"\x01"),
        ([b"\x01\x01q"], b"\x01q"),
        ([b"a\x01x"], b"a\x01x"),
        ([b"\x01", b"x"], b"\x01x"),
        ([b"a\x01q"], None),
        ([b"a\x01", b"q"], None),
    ],
)
def test_the_keys_that_detach(typed: list[bytes], sent: bytes | None) -> None:
    escape = Escape()
    if sent is None:
        with pytest.raises(Detached):
            [escape(piece) for piece in typed]
        return
    assert b"".join(escape(piece) for piece in typed) == sent
