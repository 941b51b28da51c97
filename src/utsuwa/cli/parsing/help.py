"""The output of `--help`, generated from a command's record."""

from __future__ import annotations

from utsuwa.cli.index import GLOBAL_FLAGS
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import BOOL, Flag


def render(command: Command, path: list[str]) -> str:
    """Return the complete help of a command, with a final line break."""
    name = " ".join(path)
    parts = [_section("Description", command.summary + (f"\n\n{command.details}" if command.details else ""))]
    usage = [f"{name} {command.args} [flags]".replace("  ", " ")] if command.run else []
    usage += [f"{name} [command]"] if command.children else []
    parts.append(_section("Usage", "\n".join(usage)))
    if command.aliases:
        parts.append(_section("Aliases", ", ".join((command.name, *command.aliases))))
    if command.example[0]:
        line, meaning = command.example
        parts.append(_section("Example", f"{line}\n    {meaning}"))
    if command.children:
        rows = [(child.name, child.summary) for child in command.children]
        parts.append(_section("Commands", _columns(rows)))
    if command.flags:
        parts.append(_section("Flags", _flags(command.flags)))
    parts.append(_section("Global flags", _flags(GLOBAL_FLAGS)))
    if command.children:
        parts.append(f'Use "{name} [command] --help" for more information about a command.\n')
    return "\n".join(parts)


def _section(title: str, text: str) -> str:
    return f"{title}:\n" + "".join(f"  {line}".rstrip() + "\n" for line in text.split("\n"))


def _flags(flags: tuple[Flag, ...]) -> str:
    return _columns([(spelled(flag), meaning(flag)) for flag in flags])


def spelled(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else "    "
    value = f'[="{flag.bare}"]' if flag.bare is not None else "" if flag.kind == BOOL else f" <{flag.kind}>"
    return f"{short}--{flag.name}{value}"


def meaning(flag: Flag) -> str:
    return f'{flag.help} (default "{flag.default}")' if flag.default else flag.help


def _columns(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}   {meaning}" for name, meaning in rows)
