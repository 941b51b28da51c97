"""Editing of text in the user's editor."""

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
    """Pass the YAML on standard input to `apply`; on a terminal, edit `text` until `apply` succeeds.

    Raises the UtsuwaError of the parser or of `apply` if there is no terminal.
    """
    from utsuwa.cli import yaml_in

    if not sys.stdin.isatty():
        apply(yaml_in.parse(sys.stdin.read()))
        return
    while True:
        edited = run_editor(text.encode(), ".yaml").decode("utf-8", "replace")
        try:
            apply(yaml_in.parse(edited))
        except UtsuwaError as error:
            session.warn(f"Error: {error}")
            session.warn("Press enter to open the editor again or ctrl+c to abort the change")
            sys.stdin.readline()
            text = edited
        else:
            return


def run_editor(content: bytes, suffix: str) -> bytes:
    """Return the content of a file as edited by the user. Raises CommandFailed."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or _default_editor()
    descriptor, path = tempfile.mkstemp(prefix="utsuwa-", suffix=suffix)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        status = os.spawnvp(os.P_WAIT, "sh", ["sh", "-c", f"{command} {shlex.quote(path)}"])
        if status:
            raise CommandFailed(f"The editor {command!r} exited with status {status}: set $EDITOR")
        with open(path, "rb") as file:
            return file.read()
    finally:
        os.unlink(path)


def _default_editor() -> str:
    import shutil

    for name in ("editor", "nano", "vim", "vi"):
        if shutil.which(name):
            return name
    raise CommandFailed("No editor found: set $EDITOR, or pass the YAML on standard input")
