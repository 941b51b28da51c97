"""`utsuwa alias`: the user's command aliases."""

from __future__ import annotations

from utsuwa.cli.output.render import show_list
from utsuwa.cli.parsing.command import Command, format_flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _add(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.config.add_alias(arguments[0], arguments[1])
    session.config.save()


def _list(session: Session, _arguments: list[str], flags: Flags) -> None:
    show_list(
        session,
        flags.text("format"),
        [("ALIAS", lambda a: a["alias"]), ("TARGET", lambda a: a["target"])],
        [{"alias": name, "target": target} for name, target in session.config.aliases.items()],
        "",
    )


def _remove(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.config.remove_alias(arguments[0])
    session.config.save()


def _rename(session: Session, arguments: list[str], _flags: Flags) -> None:
    session.config.rename_alias(arguments[0], arguments[1])
    session.config.save()


COMMAND = Command(
    "alias",
    "Manage command aliases",
    details="""\
An alias is replaced by its target, even if a command of the same name exists. Further arguments are
appended, or replace @ARGS@ in the target. `shell` is an alias of `exec @ARGS@ -- su -l`.""",
    children=(
        Command(
            "add",
            "Add new aliases",
            _add,
            args="<alias> <target>",
            example=(
                'utsuwa alias add list "list -c ns46S"',
                "From now on, `utsuwa list` shows these columns.",
            ),
        ),
        Command(
            "list",
            "List aliases",
            _list,
            flags=(format_flag(),),
            aliases=("ls",),
            example=("utsuwa alias list", "The aliases in the client's config.yml."),
        ),
        Command(
            "remove",
            "Remove aliases",
            _remove,
            args="<alias>",
            aliases=("rm",),
            complete=("aliases",),
            example=("utsuwa alias remove list", "Restore the original command."),
        ),
        Command(
            "rename",
            "Rename aliases",
            _rename,
            args="<alias> <new-name>",
            aliases=("mv",),
            complete=("aliases", ()),
            example=("utsuwa alias rename list ls46", "Use another name for the alias."),
        ),
    ),
)
