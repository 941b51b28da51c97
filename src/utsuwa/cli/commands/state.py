"""`utsuwa start`, `stop`, `restart` and `pause`."""

from __future__ import annotations

import sys

from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.parsing.command import Command, console_flag
from utsuwa.cli.parsing.flags import NUMBER, Flag
from utsuwa.client.errors import ApiError
from utsuwa.client.server import path_to
from utsuwa.client.statuses import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.command import Run
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

# The statuses that `--all` applies to.
_ACTS_ON = {
    "start": ("Stopped", "Frozen"),
    "stop": (*RUNNING, "Frozen"),
    "restart": RUNNING,
    "freeze": RUNNING,
}
_PAST = {"start": "start", "stop": "stop", "restart": "restart", "freeze": "pause"}


def _runner(action: str) -> Run:
    def run(session: Session, arguments: list[str], flags: Flags) -> int:
        return _change(session, action, arguments, flags)

    return run


def _change(session: Session, action: str, arguments: list[str], flags: Flags) -> int:
    """Start the operations of all instances, then wait for each."""
    console = flags.text("console") if "console" in flags.known else ""
    if console and (flags.on("all") or len(arguments) > 1):
        raise UsageError("--console only works with a single instance")
    names = _all_names(session, action, arguments) if flags.on("all") else arguments
    if not names and not flags.on("all"):
        raise UsageError(f"Specify at least one instance: utsuwa {_PAST[action]} INSTANCE...")
    started: list[tuple[str, Server, dict[str, Any]]] = []
    failures: list[_Failure] = []
    for text in names:
        server, name = session.target(text)
        try:
            body = _body(server, name, action, flags)
            started.append((text, server, server.put(path_to("instances", name, "state"), body)))
        except ApiError as error:
            failures.append(_Failure(text, str(error), began=False))
    for text, server, operation in started:
        try:
            session.wait(server, operation, text)
        except ApiError as error:
            failures.append(_Failure(text, str(error), began=True))
    status = _report(action, names, failures)
    if console:
        from utsuwa.cli.commands.console import attach

        attach(session, *session.target(arguments[0]), console)
    return status


def _all_names(session: Session, action: str, arguments: list[str]) -> list[str]:
    """Return the instances of a server that the action applies to. Raises UsageError."""
    if any(not argument.endswith(":") for argument in arguments):
        raise UsageError("Both --all and instance name given")
    found = []
    for prefix in arguments or [""]:
        server, _ = session.target(prefix)
        for instance in server.get("/1.0/instances", recursion="1"):
            if instance["status"] in _ACTS_ON[action]:
                found.append(f"{prefix}{instance['name']}")
    return found


def _body(server: Server, name: str, action: str, flags: Flags) -> dict[str, Any]:
    stateful = "stateful" in flags.known and flags.on("stateful")
    if action == "start":
        instance = server.get(path_to("instances", name))
        if instance["status"] == "Frozen":
            action = "unfreeze"
        else:
            stateful = instance["stateful"] and not flags.on("stateless")
    timeout = flags.number("timeout") if "timeout" in flags.known else -1
    force = "force" in flags.known and flags.on("force")
    return {
        "action": action,
        "timeout": timeout,
        "force": force,
        "stateful": stateful,
    }


class _Failure:
    """The failure of one instance; `began` if the server had accepted the request."""

    def __init__(self, name: str, message: str, *, began: bool) -> None:
        self.name = name
        self.message = message
        self.hint = f"Try `utsuwa info --show-log {name}` for more info" if began else ""


def _report(action: str, names: list[str], failures: list[_Failure]) -> int:
    """Print the errors. Raises CommandFailed."""
    hints = action == "start"
    if not failures:
        return 0
    if len(names) == 1:
        failure = failures[0]
        raise CommandFailed("\n".join(filter(None, (failure.message, failure.hint if hints else ""))))
    for failure in failures:
        sys.stderr.write(f"{failure.name}: error: {failure.message}\n")
        if hints and failure.hint:
            sys.stderr.write(f"{failure.name}: {failure.hint}\n")
    sys.stderr.write("\n")
    raise CommandFailed(f"Some instances failed to {_PAST[action]}")


_ALL = Flag("all", "Run against all instances")
_FORCE = Flag("force", "Force the instance to shutdown", "f")
_TIMEOUT = Flag("timeout", "Seconds to wait for the instance before killing it", kind=NUMBER, default="-1")
_ARGS = "[[<remote>:]<instance>...]"

START = Command(
    "start",
    "Start instances",
    _runner("start"),
    args=_ARGS,
    flags=(_ALL, console_flag(), Flag("stateless", "Ignore the instance state")),
    example=("utsuwa start web db", "Start two instances, or resume them if paused."),
    complete=("stopped",),
)
STOP = Command(
    "stop",
    "Stop instances",
    _runner("stop"),
    args=_ARGS,
    flags=(_ALL, _FORCE, Flag("stateful", "Store the instance state"), _TIMEOUT),
    example=("utsuwa stop web --timeout 30", "Shut down web, and kill it after 30 seconds."),
    complete=("running",),
)
RESTART = Command(
    "restart",
    "Restart instances",
    _runner("restart"),
    args=_ARGS,
    flags=(_ALL, console_flag(), _FORCE, _TIMEOUT),
    example=("utsuwa restart web --force", "Restart web without a clean shutdown."),
    complete=("running",),
)
PAUSE = Command(
    "pause",
    "Pause instances",
    _runner("freeze"),
    args=_ARGS,
    flags=(_ALL,),
    example=("utsuwa pause web", "Freeze all processes of web; `utsuwa start web` resumes them."),
    complete=("running",),
)
