"""`utsuwa config`: configuration of instances, or of the server if no instance is given."""

from __future__ import annotations

from utsuwa.cli.commands import devices
from utsuwa.cli.commands.objects import remove_key
from utsuwa.cli.errors import UsageError
from utsuwa.cli.output import values
from utsuwa.cli.output.records import arrange, settings
from utsuwa.cli.output.render import show_yaml
from utsuwa.cli.parsing.command import Command, Entry
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.server import instance_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


class _Owner:
    """An instance, or the server itself."""

    def __init__(self, session: Session, text: str) -> None:
        self._session = session
        self.server, self.name = session.target(text)
        self.url = instance_path(self.name) if self.name else "/1.0"
        self.kind = "instance-settings" if self.name else "server-settings"
        if "/" in self.name:
            self.kind = "snapshot-settings"

    def read(self) -> tuple[dict[str, Any], str]:
        """Return the editable settings and the ETag."""
        record, etag = self.server.get_with_etag(self.url)
        return settings(record, self.kind), etag

    def write(self, record: dict[str, Any], etag: str = "") -> None:
        answer = self.server.put(self.url, settings(record, self.kind), etag)
        self._session.settle(self.server, answer)


def _show(session: Session, arguments: list[str], flags: Flags) -> None:
    owner = _Owner(session, arguments[0] if arguments else "")
    record = owner.server.get(owner.url)
    if "/" in owner.name:
        _show_snapshot(session, record, expanded=flags.on("expanded"))
        return
    found = settings(record, owner.kind)
    if flags.on("expanded"):
        if not owner.name:
            raise UsageError("--expanded can only be used with instances")
        found["config"], found["devices"] = record["expanded_config"], record["expanded_devices"]
    show_yaml(session, found, owner.kind)


def _show_snapshot(session: Session, record: dict[str, Any], *, expanded: bool) -> None:
    hidden = () if expanded else ("expanded_config", "expanded_devices")
    show_yaml(session, {name: value for name, value in record.items() if name not in hidden}, "snapshot")


def _get(session: Session, arguments: list[str], flags: Flags) -> None:
    owner = _Owner(session, arguments[0] if len(arguments) > 1 else "")
    key = arguments[-1]
    if flags.on("expanded") and not owner.name:
        raise UsageError("--expanded can only be used with instances")
    field = "expanded_config" if flags.on("expanded") else "config"
    value = owner.server.get(owner.url)[field].get(key, "")
    session.write(f"{_text(value)}\n")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _set(session: Session, arguments: list[str], _flags: Flags) -> None:
    """The pairs may be preceded by the name of an instance, or by `remote:` for a server."""
    first, rest = arguments[0], arguments[1:]
    is_server = "=" in first or (len(arguments) == 2 and "=" not in rest[0] and not first.endswith(":"))
    if is_server:
        first, rest = "", arguments
    if not rest:
        raise UsageError(f"Specify what to set: utsuwa config set {first} KEY=VALUE")
    _apply(_changeable(session, first), values.changes(rest))


def _changeable(session: Session, text: str) -> _Owner:
    owner = _Owner(session, text)
    if "/" in owner.name:
        raise UsageError(
            "The configuration of a snapshot never changes: only its description and its expiry do, with "
            f"`utsuwa config edit {text}`"
        )
    return owner


def _apply(owner: _Owner, changes: dict[str, str]) -> None:
    if not owner.name:
        owner.server.patch("/1.0", {"config": changes})
        return
    record, etag = owner.read()
    record["config"] |= changes
    owner.write(record, etag)


def _unset(session: Session, arguments: list[str], _flags: Flags) -> None:
    owner = _changeable(session, arguments[0] if len(arguments) > 1 else "")
    record, etag = owner.read()
    remove_key(record["config"], arguments[-1])
    if owner.name:
        owner.write(record, etag)
    else:
        owner.server.patch("/1.0", {"config": {arguments[-1]: ""}}, etag)


def _edit(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.cli import editor
    from utsuwa.cli.output import yaml_out

    owner = _Owner(session, arguments[0] if arguments else "")
    record, etag = owner.read()
    what = f"the instance {owner.name}" if owner.name else "the server"
    note = f"# The configuration of {what}. Lines starting with # are ignored.\n"
    text = note + yaml_out.dump(arrange(record, owner.kind))
    editor.edit(session, text, lambda changed: owner.write(changed, etag))


_EXPANDED = "e"

COMMAND = Command(
    "config",
    "Manage instance and server configuration options",
    children=(
        devices.group("instances", "instance", "config"),
        Command(
            "edit",
            "Edit instance or server configurations as YAML",
            _edit,
            args="[<remote>:][<instance>[/<snapshot>]]",
            complete=("instances-and-snapshots",),
            example=("utsuwa config edit web < web.yaml", "Replace the configuration by that in a file."),
        ),
        Command(
            "get",
            "Get values for instance or server configuration keys",
            _get,
            args="[<remote>:][<instance>] <key>",
            flags=(Flag("expanded", "Access the expanded configuration", _EXPANDED),),
            complete=("instances+server-key", "instance-key"),
            example=("utsuwa config get web limits.memory", "Show the value of limits.memory of web."),
        ),
        Entry("metadata", "config_metadata", "Manage instance metadata files"),
        Command(
            "set",
            "Set instance or server configuration keys",
            _set,
            args="[<remote>:][<instance>] <key>=<value>...",
            complete=("instances+server-keys", "instance-keys"),
            example=(
                "utsuwa config set web limits.cpu=2 limits.memory=1GiB",
                "Set keys of web; without an instance, those of the server (core.https_address=:8443).",
            ),
        ),
        Command(
            "show",
            "Show instance or server configurations",
            _show,
            args="[<remote>:][<instance>[/<snapshot>]]",
            flags=(Flag("expanded", "Show the expanded configuration", _EXPANDED),),
            complete=("instances-and-snapshots",),
            example=(
                "utsuwa config show web --expanded",
                "Include the configuration of its profiles.",
            ),
        ),
        Entry("template", "config_template", "Manage instance file templates"),
        Entry("trust", "config_trust", "Manage trusted clients"),
        Command(
            "unset",
            "Unset instance or server configuration keys",
            _unset,
            args="[<remote>:][<instance>] <key>",
            complete=("instances+server-key", "instance-key"),
            example=("utsuwa config unset web limits.memory", "Reset the key to its default."),
        ),
    ),
)
