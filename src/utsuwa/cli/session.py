"""The context of a running command: servers, output and global flags."""

from __future__ import annotations

import sys

from utsuwa.client import remotes
from utsuwa.client.connect import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.client.server import Server


class Session:
    """One invocation of the command."""

    def __init__(self, flags: Flags) -> None:
        self.config = remotes.load()
        if flags.on("force-local"):
            self.config.default = remotes.LOCAL
        self.project = flags.text("project")
        self.quiet = flags.on("quiet")
        self.debug = flags.on("debug")
        self._servers: dict[str, Server] = {}

    # Output.

    def say(self, text: str) -> None:
        """Print a message, unless `--quiet` is given."""
        if not self.quiet:
            self.write(text + "\n")
            sys.stdout.flush()

    def write(self, text: str) -> None:
        """Write the output of the command unchanged."""
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.flush()
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))

    def warn(self, text: str) -> None:
        sys.stderr.write(text + "\n")

    @property
    def shows_progress(self) -> bool:
        return not self.quiet and sys.stdout.isatty()

    # Servers.

    def server(self, remote: str = "") -> Server:
        """Return the server of a remote, by default the default remote. Raises NotFound."""
        name = remote or self.config.default
        if name not in self._servers:
            trace = self.warn if self.debug else None
            self._servers[name] = connect(self.config, name, project=self.project, trace=trace)
        return self._servers[name]

    def target(self, text: str) -> tuple[Server, str]:
        """Return the server and the name of `remote:name`. Raises NotFound."""
        remote, name = self.config.split(text)
        return self.server(remote), name

    def takes_remote(self, arguments: list[str]) -> tuple[Server, list[str]]:
        """Return the server of an optional leading `remote:`, and the other arguments, for lists."""
        if arguments and ":" in arguments[0] and "=" not in arguments[0]:
            remote, name = self.config.split(arguments[0])
            return self.server(remote), ([name] if name else []) + arguments[1:]
        return self.server(), arguments

    def settle(self, on: Server, answer: Any, label: str = "") -> None:
        """Wait if the response to a change is an operation. Raises ApiError."""
        if isinstance(answer, dict) and answer.get("class") == "task":
            self.wait(on, answer, label)

    def wait(self, on: Server, operation: dict[str, Any], label: str = "") -> dict[str, Any]:
        """Wait for an operation, showing its progress. Raises ApiError; an interrupt cancels it."""
        from utsuwa.cli.output import progress

        return progress.wait(on, operation, label, show=self.shows_progress)
