"""The record of a command, used by the parser, the help and shell completion."""

from __future__ import annotations

from utsuwa.cli.parsing.flags import TEXT, Flag, Flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.cli.session import Session

    Run = Callable[[Session, list[str], Flags], int | None]

FORMATS = ("table", "compact", "csv", "json", "yaml")


class Command:
    """A command or a group of commands.

    `args` is the usage after the name, which determines the number of arguments: `<a>` is required, `[a]`
    optional, and `...` means any number. `complete` contains the kind of each argument (the last entry
    applies to all further ones). `[<remote>:]` before a name is part of it.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        run: Run | None = None,
        *,
        args: str = "",
        flags: tuple[Flag, ...] = (),
        example: tuple[str, str] = ("", ""),
        details: str = "",
        aliases: tuple[str, ...] = (),
        children: tuple[Command | Entry, ...] = (),
        complete: tuple[str | tuple[str, ...], ...] = (),
    ) -> None:
        self.name = name
        self.summary = summary
        self.run = run
        self.args = args
        self.flags = flags
        self.example = example
        self.details = details
        self.aliases = aliases
        self.children = children
        self.complete = complete

    def child(self, name: str) -> Command | None:
        """Load and return a subcommand by its name or an alias."""
        for child in self.children:
            if name == child.name or name in child.aliases:
                return child.load() if isinstance(child, Entry) else child
        return None

    def limits(self) -> tuple[int, int]:
        """Return the minimum and maximum number of arguments; -1 means no limit."""
        bare = self.args.replace("[<remote>:]<", "<").replace("[<remote>:][", "[")
        words = bare.split()
        least = sum(word.startswith("<") for word in words)
        endless = any(word.endswith(("...", "...]")) for word in words)
        return least, -1 if endless else len(words)


class Entry:
    """A command that is loaded on demand: `COMMAND`, or the name after the colon, of a module."""

    __slots__ = ("aliases", "name", "summary", "where")

    def __init__(self, name: str, where: str, summary: str, aliases: tuple[str, ...] = ()) -> None:
        self.name = name
        self.where = where
        self.summary = summary
        self.aliases = aliases

    def load(self) -> Command:
        module, _, variable = self.where.partition(":")
        loaded = __import__(f"utsuwa.cli.commands.{module}", fromlist=("COMMAND",))  # importlib loads more
        found = getattr(loaded, variable or "COMMAND")
        assert isinstance(found, Command), f"{self.where} is not a command"
        return found


def console_flag() -> Flag:
    return Flag("console", "Immediately attach to the console", kind=TEXT, bare="console")


def all_projects_flag(what: str) -> Flag:
    return Flag("all-projects", f"Display {what} from all projects")


def format_flag(default: str = "table") -> Flag:
    return Flag(
        "format", "Format (csv|json|table|yaml|compact)", "f", kind=TEXT, default=default, complete=FORMATS
    )
