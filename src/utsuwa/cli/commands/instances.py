"""`utsuwa list`: list instances with filters and columns."""

from __future__ import annotations

from utsuwa.cli.errors import UsageError
from utsuwa.cli.output.render import natural, show_list, unsorted
from utsuwa.cli.parsing.command import Command, format_flag
from utsuwa.cli.parsing.flags import BOOL, TEXT, Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from utsuwa.cli.output.render import Column
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

    Instance = dict[str, Any]

_DEFAULT = "ns46tS"
_FAST = "nsacPt"


def _state(instance: Instance) -> dict[str, Any]:
    """Return the state; empty if the instance is stopped."""
    found = instance.get("state")
    return found if found and instance["status"] != "Stopped" else {}


def _addresses(family: str, instance: Instance) -> str:
    """Return `10.0.0.2 (eth0)`, one per line."""
    lines = []
    for name, nic in (_state(instance).get("network") or {}).items():
        if nic["type"] == "loopback":
            continue
        for found in nic["addresses"]:
            if found["family"] == family and found["scope"] not in ("link", "local"):
                lines.append(f"{found['address']} ({name})")
    return "\n".join(sorted(lines, key=natural, reverse=True))


def _time(field: str, instance: Instance) -> str:
    from utsuwa.cli.output.values import minute

    return minute(instance[field])


def _type(instance: Instance) -> str:
    kind = "VIRTUAL-MACHINE" if instance["type"] == "virtual-machine" else "CONTAINER"
    return f"{kind} (EPHEMERAL)" if instance["ephemeral"] else kind


def _root_disk(instance: Instance) -> tuple[str, dict[str, str]]:
    for name, device in instance["expanded_devices"].items():
        if device.get("type") == "disk" and device.get("path") == "/" and device.get("pool"):
            return name, device
    return "", {}


def _disk_usage(instance: Instance) -> str:
    from utsuwa.cli.output.values import size

    used = ((instance.get("state") or {}).get("disk") or {}).get(_root_disk(instance)[0])
    return size(used["usage"]) if used and used["usage"] > 0 else ""


def _memory(instance: Instance) -> str:
    from utsuwa.cli.output.values import size

    used = (_state(instance).get("memory") or {}).get("usage", 0)
    return size(used) if used else ""


def _memory_percent(instance: Instance) -> str:
    memory = _state(instance).get("memory") or {}
    used, total = memory.get("usage", 0), memory.get("total", 0)
    return f"{used / total * 100:.1f}%" if used and total else ""


def _positive(field: str, instance: Instance) -> str:
    count = _state(instance).get(field, 0)
    return str(count) if count > 0 else ""


def _cpu(instance: Instance) -> str:
    used = (_state(instance).get("cpu") or {}).get("usage", 0)
    return f"{used // 10**9}s" if used else ""


def _image(instance: Instance) -> str:
    return str(instance["config"].get("volatile.base_image", ""))


# Letter: header, cell, whether it needs the state.
_COLUMNS: dict[str, tuple[str, Callable[[Instance], str], bool]] = {
    "4": ("IPV4", lambda i: _addresses("inet", i), True),
    "6": ("IPV6", lambda i: _addresses("inet6", i), True),
    "a": ("ARCHITECTURE", lambda i: str(i["architecture"]), False),
    "b": ("STORAGE POOL", lambda i: _root_disk(i)[1].get("pool", ""), False),
    "c": ("CREATED AT", lambda i: _time("created_at", i), False),
    "d": ("DESCRIPTION", lambda i: str(i["description"]), False),
    "D": ("DISK USAGE", _disk_usage, True),
    "e": ("PROJECT", lambda i: str(i["project"]), False),
    "f": ("BASE IMAGE", lambda i: _image(i)[:12], False),
    "F": ("BASE IMAGE", _image, False),
    "l": ("LAST USED AT", lambda i: _time("last_used_at", i), False),
    "m": ("MEMORY USAGE", _memory, True),
    "M": ("MEMORY USAGE%", _memory_percent, True),
    "n": ("NAME", lambda i: str(i["name"]), False),
    "N": ("PROCESSES", lambda i: _positive("processes", i), True),
    "p": ("PID", lambda i: _positive("pid", i), True),
    "P": ("PROFILES", lambda i: "\n".join(i["profiles"] or ()), False),
    "s": ("STATE", lambda i: str(i["status"]).upper(), False),
    "S": ("SNAPSHOTS", lambda i: str(len(i.get("snapshots") or ())), True),
    "t": ("TYPE", _type, False),
    "u": ("CPU USAGE", _cpu, True),
}


def columns(text: str) -> tuple[list[Column], bool]:
    """Parse `-c`; return the columns, and whether any of them needs the instances' state.

    Raises UsageError.
    """
    found: list[Column] = []
    needs_state = False
    for part in text.split(","):
        if not part:
            raise UsageError(f"Empty column entry (redundant, leading or trailing command) in '{text}'")
        if "." in part or ":" in part:
            found.append(_custom(part))
            continue
        for letter in part:
            if letter == "L":
                raise UsageError("Can't specify column L when not clustered")
            if letter not in _COLUMNS:
                raise UsageError(f"Unknown column shorthand char '{letter}' in '{part}'")
            name, cell, state = _COLUMNS[letter]
            found.append((name, cell))
            needs_state = needs_state or state
    return found, needs_state


def _custom(part: str) -> Column:
    """`[config:|devices:]key[:name][:maxWidth]`."""
    fields = part.split(":")
    section = fields.pop(0) if fields[0] in ("config", "devices") and len(fields) > 1 else "config"
    key = fields[0]
    if not key or len(fields) > 3:
        raise UsageError(f"Invalid config key column format '{part}'")
    if section == "devices" and "." not in key:
        raise UsageError(f"Invalid config key column format '{part}': use <device>.<key>")
    name = fields[1] if len(fields) > 1 and fields[1] else key.replace(".", " ").upper()
    if len(fields) > 1 and not fields[1] and len(fields) == 3:
        name = ""
    limit = _width(fields[2], part, name) if len(fields) == 3 else -1

    def cell(instance: Instance) -> str:
        value = _value(instance, section, key)
        return value[:limit] if limit > 0 else value

    return name, cell


def _width(text: str, part: str, name: str) -> int:
    try:
        limit = int(text)
    except ValueError:
        raise UsageError(f"Invalid max width (must be an integer) '{text}' in '{part}'") from None
    if limit < -1:
        raise UsageError(f"Invalid max width (must -1, 0 or a positive integer) '{text}' in '{part}'")
    return len(name) if limit == 0 else limit


def _value(instance: Instance, section: str, key: str) -> str:
    if section == "config":
        return str(instance["expanded_config"].get(key, ""))
    device, _, name = key.partition(".")
    return str(instance["expanded_devices"].get(device, {}).get(name, ""))


def run(session: Session, arguments: list[str], flags: Flags) -> int:
    if flags.on("fast") and flags.given("columns"):
        raise UsageError("Can't specify --fast with --columns")
    server, filters = session.takes_remote(arguments)
    style = flags.text("format")
    everywhere = flags.on("all-projects")
    wanted = _FAST if flags.on("fast") else flags.text("columns")
    if everywhere and not flags.given("columns"):
        wanted = f"e{wanted}"
    chosen, needs_state = columns(wanted)
    needs_state = needs_state or style in ("json", "yaml") or any(f.startswith("ipv") for f in filters)
    query = {"recursion": "2" if needs_state else "1"} | ({"all_projects": "true"} if everywhere else {})
    found = server.get("/1.0/instances", **query)
    if filters:
        from utsuwa.cli.instance_filters import matches

        found = [instance for instance in found if matches(instance, filters)]
    if style not in ("json", "yaml"):
        found.sort(key=lambda i: (natural(i["project"]) if everywhere else [], natural(i["name"])))
    show_list(session, style, chosen, found, "instance", order=unsorted)
    return 0


COMMAND = Command(
    "list",
    "List instances",
    run,
    args="[<remote>:] [<filter>...]",
    flags=(
        Flag("all-projects", "Display instances from all projects", kind=BOOL),
        Flag("columns", "Columns", "c", kind=TEXT, default=_DEFAULT),
        Flag("fast", f"Fast mode (same as --columns={_FAST})"),
        format_flag(),
    ),
    aliases=("ls",),
    example=(
        "utsuwa list web status=running -c ns4,user.owner:OWNER",
        "List running instances whose names start with web, with a column for user.owner.",
    ),
    details=f"""\
Filters: the prefix of a name, a regular expression for a name, key=value of the configuration
(namespaces may be abbreviated: u.owner=ann; the value may be a regular expression), or
type=, status=, architecture=, location=, ipv4=, ipv6= with values separated by commas (addresses may
be networks: ipv4=10.0.3.0/24). Instances that match all filters are shown.

Columns (-c, letters with or without commas in between):
    4 - IPv4 address            l - Last used date          P - Profiles
    6 - IPv6 address            m - Memory usage            s - State
    a - Architecture            M - Memory usage (%)        S - Number of snapshots
    b - Storage pool            n - Name                    t - Type (persistent or ephemeral)
    c - Creation date           N - Number of processes     u - CPU usage (in seconds)
    d - Description             p - PID of the init         f - Base image fingerprint (short)
    D - Disk usage              e - Project name            F - Base image fingerprint (long)
or [config:|devices:]KEY[:NAME][:MAXWIDTH] for a key of the configuration or <device>.<key>.
The default is {_DEFAULT}.""",
    complete=("instances",),
)
