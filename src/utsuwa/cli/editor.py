"""Letting people edit a text, in the editor of their choice."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile

from utsuwa.cli.errors import CommandFailed
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from utsuwa.cli.session import Session


def edit(session: Session, text: str, apply: Callable[[dict[str, Any]], None]) -> None:
    """Hand what standard input holds to `apply`; on a terminal let people edit `text` until it is applied.

    Raises UtsuwaError of the parser or of `apply` where nobody can correct it.
    """
    from utsuwa.cli import yaml_in

    if not sys.stdin.isatty():
        apply(yaml_in.parse(sys.stdin.read()))
        return
    while True:
        edited = _run_editor(text)
        try:
            apply(yaml_in.parse(edited))
        except UtsuwaError as error:
            session.warn(f"Error: {error}")
            session.warn("Press enter to open the editor again or ctrl+c to abort the change")
            sys.stdin.readline()
            text = edited
        else:
            return


def _run_editor(text: str) -> str:
    """The text as the user's editor leaves it. Raises CommandFailed."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or _default_editor()
    descriptor, path = tempfile.mkstemp(prefix="utsuwa-", suffix=".yaml")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        status = os.spawnvp(os.P_WAIT, "sh", ["sh", "-c", f"{command} {shlex.quote(path)}"])
        if status:
            raise CommandFailed(f"The editor {command!r} ended with status {status}: set $EDITOR to another")
        with open(path, encoding="utf-8") as file:
            return file.read()
    finally:
        os.unlink(path)


def _default_editor() -> str:
    import shutil

    for name in ("editor", "nano", "vim", "vi"):
        if shutil.which(name):
            return name
    raise CommandFailed("There is no editor: set $EDITOR, or give the YAML on standard input")
