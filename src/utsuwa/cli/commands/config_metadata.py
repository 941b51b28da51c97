"""`utsuwa config metadata`: the metadata that an instance got from its image."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.output.render import show_yaml
from utsuwa.cli.parsing.command import Command
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session


def _url(instance: str) -> str:
    return path_to("instances", instance, "metadata")


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    show_yaml(session, _sorted(server.get(_url(name))), "metadata")


def _edit(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.cli import editor
    from utsuwa.cli.output import yaml_out
    from utsuwa.cli.output.records import arrange

    server, name = session.target(arguments[0])
    record, etag = server.get_with_etag(_url(name))
    note = f"# The metadata of the instance {name}. Lines starting with # are ignored.\n"
    text = note + yaml_out.dump(arrange(_sorted(record), "metadata"))
    editor.edit(session, text, lambda changed: server.put(_url(name), _body(changed), etag))


def _sorted(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"templates": dict(sorted(record["templates"].items()))}


def _body(record: dict[str, Any]) -> dict[str, Any]:
    """Return metadata whose values are all texts with dates and switches. Raises UsageError."""
    from utsuwa.cli.yaml_in import switch

    for name in ("creation_date", "expiry_date"):
        if name in record:
            record[name] = _date(name, record[name])
    templates = record.get("templates", {})
    for path, template in templates.items() if isinstance(templates, dict) else ():
        if isinstance(template, dict):
            template["create_only"] = switch(f"create_only of {path}", template.get("create_only", ""))
            for name in ("properties", "when"):
                if not template.get(name):
                    template.pop(name, None)
    return record


def _date(name: str, text: str) -> int:
    try:
        return int(text or 0)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number of seconds since 1970, not {text!r}") from None


COMMAND = Command(
    "metadata",
    "Manage instance metadata files",
    children=(
        Command(
            "edit",
            "Edit instance metadata files",
            _edit,
            args="[<remote>:]<instance>",
            complete=("instances",),
            example=("utsuwa config metadata edit web < metadata.yaml", "Replace the metadata of web."),
        ),
        Command(
            "show",
            "Show instance metadata files",
            _show,
            args="[<remote>:]<instance>",
            complete=("instances",),
            example=("utsuwa config metadata show web", "Show image properties and templates of web."),
        ),
    ),
)
