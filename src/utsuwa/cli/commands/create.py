"""`utsuwa init` and `utsuwa launch`."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.output.values import override_devices, pairs
from utsuwa.cli.parsing.command import Command, console_flag
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _init(session: Session, arguments: list[str], flags: Flags) -> int:
    _create(session, arguments, flags)
    return 0


def _launch(session: Session, arguments: list[str], flags: Flags) -> int:
    from utsuwa.client.errors import ApiError

    server, name = _create(session, arguments, flags)
    session.say(f"Starting {name}")
    body = {"action": "start", "timeout": -1, "force": False, "stateful": False}
    try:
        session.wait(server, server.put(path_to("instances", name, "state"), body), f"Starting {name}")
    except ApiError:
        session.warn(f"Try `utsuwa info --show-log {name}` for more info")
        raise
    if flags.given("console"):
        from utsuwa.cli.commands.console import attach

        attach(session, server, name, flags.text("console"))
    return 0


def _create(session: Session, arguments: list[str], flags: Flags) -> tuple[Server, str]:
    """Create the instance; return its server and its name."""
    image, name_argument = _split(arguments, flags)
    server, name = session.target(name_argument)
    session.say(f"Creating {name}" if name else "Creating the instance")
    body = _request(session, server, flags) | {"name": name, "source": _source(session, image, server)}
    record = session.wait(server, server.post("/1.0/instances", body), "Creating")
    if not name:
        name = made_name(record)
        session.say(f"Instance name is: {name}")
    return server, name


def _split(arguments: list[str], flags: Flags) -> tuple[str, str]:
    """Return the image and the instance's name, either of which may be empty."""
    if flags.on("empty"):
        if len(arguments) > 1:
            raise UsageError("--empty cannot be combined with an image name")
        return "", arguments[0] if arguments else ""
    if not arguments:
        raise UsageError("Specify an image: utsuwa launch IMAGE [NAME]")
    return arguments[0], arguments[1] if len(arguments) > 1 else ""


def _source(session: Session, image: str, server: Server) -> dict[str, Any]:
    from utsuwa.cli import sources

    return sources.image(session, image, server) if image else {"type": "none"}


def _request(session: Session, server: Server, flags: Flags) -> dict[str, Any]:
    """Return the request: the YAML on standard input, overridden by the flags."""
    from utsuwa.cli import piped_yaml

    given = piped_yaml.given()
    config = dict(given.get("config") or {}) | pairs(flags.many("config"))
    devices = _devices(session, server, flags, given)
    body = {
        "architecture": given.get("architecture", ""),
        "config": config,
        "devices": devices,
        "description": given.get("description", ""),
        "ephemeral": flags.on("ephemeral") or bool(given.get("ephemeral")),
        "profiles": _profiles(flags, given),
        "stateful": False,
        "instance_type": flags.text("type"),
        "type": "virtual-machine" if flags.on("vm") else "container",
    }
    return {key: value for key, value in body.items() if value is not None}


def _profiles(flags: Flags, given: dict[str, Any]) -> list[str] | None:
    """Return the profiles; None means those of the image, or the default profile."""
    if flags.on("no-profiles"):
        return []
    if flags.many("profile"):
        return flags.many("profile")
    return given.get("profiles")


def _devices(
    session: Session, server: Server, flags: Flags, given: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Return the devices of YAML, `--network`, `--storage` and `--device`; later ones take precedence."""
    devices = {name: dict(device) for name, device in (given.get("devices") or {}).items()}
    if network := flags.text("network"):
        found = server.get(path_to("networks", network))
        link = {"network": network} if found.get("managed") else {"nictype": "bridged", "parent": network}
        devices[network] = {"type": "nic", "name": "eth0", **link}
    if pool := flags.text("storage"):
        devices["root"] = {"type": "disk", "path": "/", "pool": pool}
    override_devices(devices, flags.many("device"), lambda name: _inherited(server, flags, given, name))
    return devices


def _inherited(server: Server, flags: Flags, given: dict[str, Any], name: str) -> dict[str, str]:
    """Return a device of the instance's profiles, in order to override some of its keys."""
    profiles = _profiles(flags, given)
    for profile in reversed(["default"] if profiles is None else profiles):
        devices = server.get(path_to("profiles", profile))["devices"]
        if name in devices:
            return dict(devices[name])
    return {}


def made_name(record: dict[str, Any]) -> str:
    """Return the name chosen by the server."""
    return str(record["resources"]["instances"][0]).rsplit("/", 1)[-1].split("?")[0]


_FLAGS = (
    Flag("config", "Config key/value to apply to the new instance", "c", kind=MANY, complete="instance-keys"),
    Flag("device", "New key/value to apply to a specific device", "d", kind=MANY),
    Flag("empty", "Create an empty instance"),
    Flag("ephemeral", "Ephemeral instance", "e"),
    Flag("network", "Network name", "n", kind=TEXT, complete="networks"),
    Flag("no-profiles", "Create the instance with no profiles applied"),
    Flag("profile", "Profile to apply to the new instance", "p", kind=MANY, complete="profiles"),
    Flag("storage", "Storage pool name", "s", kind=TEXT, complete="pools"),
    Flag("type", "Instance type", "t", kind=TEXT),
    Flag("vm", "Create a virtual machine"),
)
_DETAILS = "YAML on standard input may also set config, devices, profiles, description and ephemeral."

INIT = Command(
    "init",
    "Create instances from images",
    _init,
    args="[<remote>:][<image>] [<remote>:][<name>]",
    flags=_FLAGS,
    details=_DETAILS,
    example=("utsuwa init debian/12 web < web.yaml", "Create web with the configuration from web.yaml."),
    complete=("images", ()),
)
LAUNCH = Command(
    "launch",
    "Create and start instances from images",
    _launch,
    args="[<remote>:][<image>] [<remote>:][<name>]",
    flags=(*_FLAGS, console_flag()),
    details=_DETAILS,
    example=(
        "utsuwa launch debian/12 web -c limits.memory=512MiB",
        "Create and start web with a memory limit of 512 MiB.",
    ),
    complete=("images", ()),
)
