"""Commands common to all configurable objects: show, get, set, unset, edit, rename, delete."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.output import values
from utsuwa.cli.output.records import settings
from utsuwa.cli.output.render import show_yaml
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.command import Run
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


class Noun:
    """A type of object.

    `word` is its name for users, `path` its collection below /1.0, `kind` its record in
    `utsuwa.cli.output.records`, `fields` the editable fields, `members` its kind in completion, `keys` that
    of its configuration keys, and `sample` a name for examples.
    """

    def __init__(
        self,
        word: str,
        path: str,
        *,
        kind: str,
        fields: tuple[str, ...],
        members: str,
        argument: str,
        keys: str = "",
        sample: str = "default",
    ) -> None:
        self.word = word
        self.path = path
        self.kind = kind
        self.fields = fields
        self.members = members
        self.keys = keys
        self.sample = sample
        self.argument = f"[<remote>:]<{argument}>"

    @property
    def title(self) -> str:
        return self.word.capitalize()

    def url(self, name: str) -> str:
        return path_to(self.path, name)

    def put(self, server: Server, name: str, record: dict[str, Any], etag: str) -> None:
        """Store the editable part of a record."""
        body = {field: record[field] for field in self.fields if field in record}
        server.put(self.url(name), body, etag)

    def has_moved(self, session: Session, text: str, new: str) -> None:
        """Adapt the client's own configuration after `text` was renamed, or deleted if `new` is empty."""


def show(noun: Noun, flags: tuple[Flag, ...] = (), *, in_order: bool = True) -> Command:
    """Return the command; `in_order` sorts the users of the object, as `lxc` does for most types."""

    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        server, name = session.target(arguments[0])
        record = server.get(noun.url(name))
        if in_order and record.get("used_by"):
            record["used_by"] = sorted(record["used_by"])
        show_yaml(session, settings(record, noun.kind), noun.kind)

    return _command(noun, "show", f"Show {noun.word} configurations", run, flags=flags)


def get(noun: Noun) -> Command:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        server, name = session.target(arguments[0])
        session.write(f"{server.get(noun.url(name))['config'].get(arguments[1], '')}\n")

    return _command(noun, "get", f"Get values for {noun.word} configuration keys", run, " <key>")


def set_(noun: Noun) -> Command:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        server, name = session.target(arguments[0])
        changes = values.changes(arguments[1:])
        record, etag = server.get_with_etag(noun.url(name))
        record["config"] |= changes
        noun.put(server, name, record, etag)

    return _command(
        noun,
        "set",
        f"Set {noun.word} configuration keys",
        run,
        " <key>=<value>...",
        example="user.owner=ann",
        meaning="Set the key user.owner; `KEY VALUE` is accepted too, `KEY=-` reads standard input.",
    )


def unset(noun: Noun, *, lenient: bool = False) -> Command:
    """Return the command; with `lenient`, the key need not be set, as in `lxc` for some types."""

    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        server, name = session.target(arguments[0])
        record, etag = server.get_with_etag(noun.url(name))
        if not lenient or arguments[1] in record["config"]:
            remove_key(record["config"], arguments[1])
        noun.put(server, name, record, etag)

    return _command(noun, "unset", f"Unset {noun.word} configuration keys", run, " <key>")


def edit(noun: Noun) -> Command:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        from utsuwa.cli import editor
        from utsuwa.cli.output import yaml_out
        from utsuwa.cli.output.records import arrange

        server, name = session.target(arguments[0])
        record, etag = server.get_with_etag(noun.url(name))
        text = yaml_out.dump(arrange(settings(record, noun.kind), noun.kind))
        note = f"# The configuration of the {noun.word} {name}. Lines starting with # are ignored.\n"
        editor.edit(session, note + text, lambda changed: noun.put(server, name, changed, etag))

    return _command(
        noun,
        "edit",
        f"Edit {noun.word} configurations as YAML",
        run,
        example=f"< {noun.argument.split('<')[-1].rstrip('>')}.yaml",
        meaning="Read the new configuration from a file; without one, an editor is opened.",
    )


def rename(noun: Noun) -> Command:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        server, name = session.target(arguments[0])
        session.settle(server, server.post(noun.url(name), {"name": arguments[1]}))
        noun.has_moved(session, arguments[0], arguments[1])
        session.say(f"{noun.title} {name} renamed to {arguments[1]}")

    return _command(noun, "rename", f"Rename {noun.word}s", run, " <new-name>", aliases=("mv",))


def delete(noun: Noun) -> Command:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        server, name = session.target(arguments[0])
        session.settle(server, server.delete(noun.url(name)))
        noun.has_moved(session, arguments[0], "")
        session.say(f"{noun.title} {name} deleted")

    return _command(noun, "delete", f"Delete {noun.word}s", run, aliases=("rm",))


def remove_key(config: dict[str, str], key: str) -> None:
    """Remove a key. Raises CommandFailed if it is not set."""
    if key not in config:
        raise CommandFailed(f"Can't unset key '{key}', it's not currently set")
    del config[key]


def _command(
    noun: Noun,
    verb: str,
    summary: str,
    run: Run,
    more: str = "",
    *,
    flags: tuple[Flag, ...] = (),
    aliases: tuple[str, ...] = (),
    example: str = "",
    meaning: str = "",
) -> Command:
    place = {"storage-pools": "storage", "certificates": "config trust"}.get(noun.path, noun.word)
    words = {" <key>": "user.owner", " <new-name>": "other"}.get(more, example)
    line = f"utsuwa {place} {verb} {noun.sample} {words}".rstrip()
    keys = noun.keys if "=" in more else noun.keys.removesuffix("s") if "<key>" in more else ""
    return Command(
        verb,
        summary,
        run,
        args=noun.argument + more,
        flags=flags,
        aliases=aliases,
        example=(line, meaning or f"{summary}."),
        complete=(noun.members, keys or ()),
    )
