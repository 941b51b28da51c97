"""Parsing of command lines as in the `lxc` client: flags anywhere before `--`, short ones in groups.

argparse does not support this grammar (a flag like `--console` whose optional value must be joined by `=`,
errors for unknown flags), and importing it would take a tenth of the time of a `utsuwa list`.
"""

from __future__ import annotations

from utsuwa.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BOOL, TEXT, NUMBER, MANY = "bool", "text", "number", "many"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Flag:
    """One flag. `bare` is the value of a text flag that is given without one (`--console`).

    `default` is returned by `Flags.text` if a TEXT flag is absent; `complete` contains the possible values:
    words, or one of the kinds of `utsuwa.cli.parsing.complete`.
    """

    __slots__ = ("bare", "complete", "default", "help", "kind", "name", "short")

    def __init__(
        self,
        name: str,
        help: str,
        short: str = "",
        *,
        kind: str = BOOL,
        default: str = "",
        bare: str | None = None,
        complete: str | tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.kind = kind
        self.default = default
        self.bare = bare
        self.complete = complete


class Flags:
    """The given flags, and the defaults of the others."""

    def __init__(self, known: Iterable[Flag]) -> None:
        self.known = {flag.name: flag for flag in known}
        self._given: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        self._given.setdefault(name, []).append(value)

    def given(self, name: str) -> bool:
        return name in self._given

    def on(self, name: str) -> bool:
        """Return the value of a BOOL flag."""
        return name in self._given and self._given[name][-1] in _TRUE

    def text(self, name: str) -> str:
        """Return the value of a TEXT flag, or its default."""
        return self._given[name][-1] if name in self._given else self.known[name].default

    def number(self, name: str) -> int:
        """Return the value of a NUMBER flag, or its default."""
        return int(self.text(name))

    def many(self, name: str) -> list[str]:
        """Return the values of a MANY flag, in order."""
        return self._given.get(name, [])


def parse(words: Sequence[str], known: Iterable[Flag]) -> tuple[list[str], Flags]:
    """Return arguments and flags. Raises UsageError."""
    flags = Flags(known)
    short = {flag.short: flag for flag in flags.known.values() if flag.short}
    arguments: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        if word.startswith("--"):
            _take_long(word, rest, flags)
        elif word.startswith("-") and word != "-":
            _take_short(word, rest, flags, short)
        else:
            arguments.append(word)
    return arguments, flags


def _take_long(word: str, rest: list[str], flags: Flags) -> None:
    name, joined, value = word[2:].partition("=")
    flag = flags.known.get(name)
    if flag is None:
        from utsuwa.cli.parsing.nearest import suggestion

        raise UsageError(f"unknown flag: --{name}{suggestion(name, flags.known, '--')}")
    if joined:
        _set(flags, flag, value)
    elif flag.kind == BOOL:
        flags.add(name, "true")
    elif flag.bare is not None:
        flags.add(name, flag.bare)
    elif rest:
        _set(flags, flag, rest.pop(0))
    else:
        raise UsageError(f"flag needs an argument: --{name}")


def _take_short(word: str, rest: list[str], flags: Flags, short: dict[str, Flag]) -> None:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = short.get(letter)
        if flag is None:
            raise UsageError(f"unknown shorthand flag: {letter!r} in {word}")
        if letters.startswith("="):
            _set(flags, flag, letters[1:])
            return
        if flag.kind == BOOL:
            flags.add(flag.name, "true")
        elif letters:
            _set(flags, flag, letters)
            return
        elif flag.bare is not None:
            flags.add(flag.name, flag.bare)
        elif rest:
            _set(flags, flag, rest.pop(0))
        else:
            raise UsageError(f"flag needs an argument: {letter!r} in {word}")


def _set(flags: Flags, flag: Flag, value: str) -> None:
    if flag.kind == BOOL and value not in _TRUE + _FALSE:
        raise UsageError(f"--{flag.name} must be true or false, not {value!r}")
    if flag.kind == NUMBER:
        try:
            int(value)
        except ValueError:
            raise UsageError(f"--{flag.name} must be a whole number, not {value!r}") from None
    if flag.kind != MANY and flag.complete and isinstance(flag.complete, tuple) and flag.name == "format":
        _check_format(flag, value)
    flags.add(flag.name, value)


def _check_format(flag: Flag, value: str) -> None:
    if value not in flag.complete:
        raise UsageError(f'Invalid format "{value}": use one of {", ".join(flag.complete)}')
