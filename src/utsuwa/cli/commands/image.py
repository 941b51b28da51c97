"""`utsuwa image`: images and their properties."""

from __future__ import annotations

from utsuwa.cli import sources
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.output import values
from utsuwa.cli.output.records import arrange, settings
from utsuwa.cli.output.render import by_columns, list_query, show_list, show_yaml
from utsuwa.cli.parsing.command import Command, Entry, all_projects_flag, format_flag
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from utsuwa.cli.output.render import Column
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

    Image = dict[str, Any]

_KIND = "image-settings"
_DEFAULT = "lfpdatsu"


def _shortest_alias(image: Image) -> str:
    names = sorted((alias["name"] for alias in image["aliases"] or ()), key=lambda name: (len(name), name))
    if not names:
        return ""
    return f"{names[0]} ({len(names) - 1} more)" if len(names) > 1 else str(names[0])


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _size(image: Image) -> str:
    return f"{image['size'] / 2**20:.2f}MB"


_upload_dates: dict[str, str] = {}
"""By the time in the API, as thousands of images of a server have the same few dates."""


def _upload_date(time: str) -> str:
    if time not in _upload_dates:
        _upload_dates[time] = values.clock(values.local_time(time))
    return _upload_dates[time]


_COLUMNS: dict[str, tuple[str, Callable[[Image], str]]] = {
    "l": ("ALIAS", _shortest_alias),
    "L": ("ALIASES", lambda i: "\n".join(alias["name"] for alias in i["aliases"] or ())),
    "f": ("FINGERPRINT", lambda i: str(i["fingerprint"])[:12]),
    "F": ("FINGERPRINT", lambda i: str(i["fingerprint"])),
    "p": ("PUBLIC", lambda i: _yes(i["public"])),
    "d": ("DESCRIPTION", lambda i: str(i["properties"].get("description", ""))),
    "a": ("ARCHITECTURE", lambda i: str(i["architecture"])),
    "s": ("SIZE", _size),
    "t": ("TYPE", lambda i: str(i["type"]).upper()),
    "u": ("UPLOAD DATE", lambda i: _upload_date(i["uploaded_at"])),
}


def _columns(text: str) -> list[Column]:
    found = []
    for part in text.split(","):
        for letter in part:
            if letter not in _COLUMNS:
                raise UsageError(f"Unknown column shorthand char '{letter}' in '{part}'")
            found.append(_COLUMNS[letter])
    return found


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, filters = session.takes_remote(arguments)
    query, columns = list_query(flags, _columns(flags.text("columns")))
    found = [image for image in server.get("/1.0/images", **query) if _fits(image, filters)]
    show_list(session, flags.text("format"), columns, found, "image", order=by_columns)


def _fits(image: Image, filters: list[str]) -> bool:
    """Return whether an image matches all filters: properties, or parts of fingerprint or alias."""
    for text in filters:
        key, equals, value = text.partition("=")
        if equals:
            if not _property_fits(image, key, value):
                return False
        elif text not in image["fingerprint"] and not any(text in a["name"] for a in image["aliases"] or ()):
            return False
    return True


def _property_fits(image: Image, key: str, value: str) -> bool:
    import re

    had = str(image["type"] if key == "type" else image["properties"].get(key, ""))
    try:
        return had == value or bool(had and re.fullmatch(value, had))
    except re.error:
        return False


class _Found:
    """An image found by alias or fingerprint prefix. Raises ApiError."""

    def __init__(self, session: Session, text: str) -> None:
        self.server, name = session.target(text)
        if not name:
            raise UsageError("Specify an image")
        self.url = path_to("images", sources.fingerprint(self.server, name))
        self.image, self.etag = self.server.get_with_etag(self.url)

    def put(self, image: Image) -> None:
        self.server.put(self.url, settings(image, _KIND), self.etag)


def _show(session: Session, arguments: list[str], _flags: Flags) -> None:
    show_yaml(session, settings(_Found(session, arguments[0]).image, _KIND), _KIND)


def _info(session: Session, arguments: list[str], _flags: Flags) -> None:
    image = _Found(session, arguments[0]).image
    session.write("".join(line + "\n" for line in _describe(image)))


def _describe(image: Image) -> Iterator[str]:
    yield f"Fingerprint: {image['fingerprint']}"
    yield f"Size: {_size(image)}"
    yield f"Architecture: {image['architecture']}"
    yield f"Type: {image['type']}"
    yield f"Public: {_yes(image['public'])}"
    yield "Timestamps:"
    if created := values.minute(image["created_at"]):
        yield f"    Created: {created}"
    yield f"    Uploaded: {values.minute(image['uploaded_at'])}"
    yield f"    Expires: {values.minute(image['expires_at']) or 'never'}"
    yield f"    Last used: {values.minute(image['last_used_at']) or 'never'}"
    yield "Properties:"
    yield from (f"    {key}: {image['properties'][key]}" for key in sorted(image["properties"]))
    yield "Aliases:"
    for alias in image["aliases"] or ():
        yield f"    - {alias['name']}" + (f" ({alias['description']})" if alias["description"] else "")
    yield f"Cached: {_yes(image['cached'])}"
    yield f"Auto update: {'enabled' if image['auto_update'] else 'disabled'}"
    if source := image.get("update_source"):
        yield "Source:"
        yield from (f"    {title}: {source[key]}" for title, key in _SOURCE if source.get(key))
    yield "Profiles:" if image["profiles"] else "Profiles: []"
    yield from (f"    - {profile}" for profile in image["profiles"] or ())


_SOURCE = (("Server", "server"), ("Protocol", "protocol"), ("Alias", "alias"))


def _edit(session: Session, arguments: list[str], _flags: Flags) -> None:
    from utsuwa.cli import editor
    from utsuwa.cli.output import yaml_out

    found = _Found(session, arguments[0])
    note = "# The editable part of an image. Lines starting with # are ignored.\n"
    text = note + yaml_out.dump(arrange(settings(found.image, _KIND), _KIND))
    editor.edit(session, text, found.put)


def _get_property(session: Session, arguments: list[str], _flags: Flags) -> None:
    found = _Found(session, arguments[0])
    if arguments[1] not in found.image["properties"]:
        raise CommandFailed("Property not found")
    session.write(f"{found.image['properties'][arguments[1]]}\n")


def _set_property(session: Session, arguments: list[str], _flags: Flags) -> None:
    found = _Found(session, arguments[0])
    found.image["properties"][arguments[1]] = arguments[2]
    found.put(found.image)


def _unset_property(session: Session, arguments: list[str], _flags: Flags) -> None:
    found = _Found(session, arguments[0])
    if arguments[1] not in found.image["properties"]:
        raise CommandFailed("Property not found")
    del found.image["properties"][arguments[1]]
    found.put(found.image)


def _delete(session: Session, arguments: list[str], _flags: Flags) -> None:
    for text in arguments:
        server, name = session.target(text)
        url = path_to("images", sources.fingerprint(server, name))
        session.settle(server, server.delete(url), f"Deleting {name}")


_IMAGE = "[<remote>:]<image>"
_COMPLETE = ("images", ())


def _command(name: str, summary: str, run: Any, more: str, example: str, meaning: str) -> Command:
    return Command(name, summary, run, args=_IMAGE + more, example=(example, meaning), complete=_COMPLETE)


COMMAND = Command(
    "image",
    "Manage images",
    details="Images are specified by alias, fingerprint, or a unique prefix of the fingerprint.",
    children=(
        Entry("alias", "image_alias", "Manage image aliases"),
        Entry("build", "image_build", "Build images from definitions"),
        Entry("copy", "image_copy:COPY", "Copy images between servers", ("cp",)),
        Command(
            "delete",
            "Delete images",
            _delete,
            args="[<remote>:]<image> [[<remote>:]<image>...]",
            aliases=("rm",),
            complete=("images",),
            example=(
                "utsuwa image delete debian/12",
                "Instances created from it are kept.",
            ),
        ),
        _command(
            "edit",
            "Edit image properties",
            _edit,
            "",
            "utsuwa image edit debian/12 < image.yaml",
            "Read the new settings from a file, or open an editor.",
        ),
        Entry("export", "image_transfer:EXPORT", "Export and download images"),
        Entry("export-tree", "image_tree", "Write images as the tree of an image server"),
        _command(
            "get-property",
            "Get image properties",
            _get_property,
            " <key>",
            "utsuwa image get-property debian/12 release",
            "Show one property.",
        ),
        Entry("import", "image_transfer:IMPORT", "Import image into the image store"),
        _command(
            "info",
            "Show useful information about images",
            _info,
            "",
            "utsuwa image info debian/12",
            "Show size, dates, properties and aliases.",
        ),
        Command(
            "list",
            "List images",
            _list,
            args="[<remote>:] [<filter>...]",
            flags=(
                all_projects_flag("images"),
                Flag("columns", "Columns", "c", kind=TEXT, default=_DEFAULT),
                format_flag(),
            ),
            aliases=("ls",),
            details="""\
Filters are <key>=<value> for properties, parts of a fingerprint or of an alias.
Columns: l - shortest alias (and number of others), L - all aliases, f - fingerprint (short),
F - fingerprint (long), p - public, d - description, a - architecture, s - size, u - upload date,
t - type.""",
            complete=("images",),
            example=(
                "utsuwa image list os=debian -c lsu",
                "Alias, size and upload date of Debian images.",
            ),
        ),
        Entry("refresh", "image_copy:REFRESH", "Refresh images"),
        _command(
            "set-property",
            "Set image properties",
            _set_property,
            " <key> <value>",
            "utsuwa image set-property debian/12 release bookworm",
            "Set one property.",
        ),
        _command(
            "show",
            "Show image properties",
            _show,
            "",
            "utsuwa image show debian/12",
            "Show the editable part of the image as YAML.",
        ),
        _command(
            "unset-property",
            "Unset image properties",
            _unset_property,
            " <key>",
            "utsuwa image unset-property debian/12 release",
            "Remove one property.",
        ),
    ),
)
