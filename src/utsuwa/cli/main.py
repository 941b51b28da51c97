"""The entry point of `utsuwa`: runs a command line and returns the exit status."""

from __future__ import annotations

import os
import sys

from utsuwa.cli.errors import UsageError
from utsuwa.cli.index import GLOBAL_FLAGS, descend, without_alias
from utsuwa.cli.parsing.flags import Flags, parse
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from utsuwa.cli.parsing.command import Command

# The exit statuses of `sh` for processes killed by signals 2 and 13.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(words: list[str] | None = None) -> int:
    """Run a command line (by default the arguments of the process) and return the exit status."""
    _fill_descriptors()
    try:
        status = run(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
    except UtsuwaError as error:
        sys.stdout.flush()
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Error: Interrupted\n")
        return _INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return _BROKEN_PIPE
    return status


def program() -> NoReturn:
    """Run the command line of the process and end it at once.

    An orderly end of the interpreter would take a tenth of the time of most commands.
    """
    status = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            pass  # nobody reads it any more
    os._exit(status)


def run(words: list[str]) -> int:
    """As `main`, but raises errors."""
    if words and words[0] == "__complete":
        from utsuwa.cli.parsing import complete

        return complete.run(words[1:])
    command, path, rest = find(words)
    arguments, flags = parse(rest, (*command.flags, *GLOBAL_FLAGS))
    if flags.on("version"):
        from utsuwa.version import __version__

        sys.stdout.write(f"{__version__}\n")
        return 0
    if flags.on("help"):
        return _show_help(command, path)
    if command.run is None:
        if arguments:
            raise _unknown(arguments[0], command, path)
        return _show_help(command, path)
    least, most = command.limits()
    if len(arguments) < least or 0 <= most < len(arguments):
        _show_help(command, path)
        if not arguments:
            return 0
        raise UsageError("Invalid number of arguments")
    return _call(command, arguments, flags)


def find(words: list[str]) -> tuple[Command, list[str], list[str]]:
    """Return the command named by the words, its path, and the remaining words.

    Flags may appear before and between the names of commands.
    """
    commands, left, rest = descend(without_alias(words))
    while len(commands) == 1 and rest[:1] == ["help"]:
        commands, left, rest = descend([*left, "--help", *rest[1:]])
    path = [command.name for command in commands]
    if commands[-1].children and rest and rest[0] != "--":
        raise _unknown(rest[0], commands[-1], path)
    return commands[-1], path, left + rest


def _unknown(word: str, command: Command, path: list[str]) -> UsageError:
    from utsuwa.cli.parsing.nearest import suggestion

    known = [name for child in command.children for name in (child.name, *child.aliases)]
    return UsageError(f'unknown command "{word}" for "{" ".join(path)}"{suggestion(word, known)}')


def _call(command: Command, arguments: list[str], flags: Flags) -> int:
    from utsuwa.cli.session import Session

    assert command.run is not None, "a group of commands cannot run"
    return command.run(Session(flags), arguments, flags) or 0


def _show_help(command: Command, path: list[str]) -> int:
    from utsuwa.cli.parsing import help

    sys.stdout.write(help.render(command, path))
    return 0


def _fill_descriptors() -> None:
    """Open /dev/null for closed standard streams, so that no other file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _close_stdout() -> None:
    """Prevent an error message when the interpreter flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
