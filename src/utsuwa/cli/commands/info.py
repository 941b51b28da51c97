"""`utsuwa info`: state and resource usage of an instance, or information on the server."""

from __future__ import annotations

from utsuwa.cli.output import idmaps, table, values
from utsuwa.cli.output.render import natural, show_yaml
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server


def _run(session: Session, arguments: list[str], flags: Flags) -> int:
    server, name = session.target(arguments[0] if arguments else "")
    if flags.on("resources"):
        from utsuwa.cli.output.resources import describe

        session.write("".join(f"{line}\n" for line in describe(server.get("/1.0/resources"))))
    elif name and flags.on("checkpoint"):
        return _show_checkpoint(session, server, name)
    elif name:
        _show_instance(session, server, name, show_log=flags.on("show-log"))
    else:
        show_yaml(session, _lower_drivers(server.get("/1.0")), "server")
    return 0


def _lower_drivers(info: dict[str, Any]) -> dict[str, Any]:
    """Convert the field names of storage drivers, which are capitalized in the API, to lower case."""
    environment = info.get("environment") or {}
    if drivers := environment.get("storage_supported_drivers"):
        lowered = [{key.lower(): value for key, value in driver.items()} for driver in drivers]
        environment["storage_supported_drivers"] = lowered
    return info


def _show_instance(session: Session, server: Server, name: str, *, show_log: bool) -> None:
    url = path_to("instances", name)
    instance, state = server.get(url), server.get(f"{url}/state")
    snapshots = server.get(f"{url}/snapshots", recursion="1")
    session.write("".join(line + "\n" for line in _describe(instance, state)))
    if snapshots:
        header = ("NAME", "TAKEN AT", "EXPIRES AT", "STATEFUL")
        session.write(f"\nSnapshots:\n{table.table(header, list(map(_snapshot_row, snapshots)))}")
    if show_log:
        log = server.checked(server.raw("GET", f"{url}/logs/lxc.log")).read()
        session.write(f"\nLog:\n\n{log.decode(errors='replace')}\n")


def _show_checkpoint(session: Session, server: Server, name: str) -> int:
    """Print what stands in the way of saving the running state; return 1 if it cannot be saved."""
    found = server.get(f"{path_to('instances', name)}/checkpoint")
    if not found["obstacles"]:
        session.write(f"The running state of {name} can be saved (CRIU {found['criu']})\n")
        return 0
    header = ("PID", "PROCESS", "UNIT", "OBSTACLE", "REMEDY")
    session.write(table.table(header, list(map(_obstacle_row, found["obstacles"]))))
    return int(not found["possible"])


def _obstacle_row(obstacle: dict[str, Any]) -> list[str]:
    pid = str(obstacle["pid"]) if obstacle["pid"] else ""
    return [pid, obstacle["process"], obstacle["unit"], obstacle["reason"], obstacle["remedy"]]


def _snapshot_row(snapshot: dict[str, Any]) -> list[str]:
    times = [values.minute(snapshot[field]) for field in ("created_at", "expires_at")]
    return [snapshot["name"], *times, "YES" if snapshot["stateful"] else "NO"]


def _describe(instance: dict[str, Any], state: dict[str, Any]) -> Iterator[str]:
    yield f"Name: {instance['name']}"
    if instance["description"]:
        yield f"Description: {instance['description']}"
    yield f"Status: {instance['status'].upper()}"
    kind = "ephemeral" if instance["ephemeral"] else ""
    yield f"Type: {instance['type']}" + (f" ({kind})" if kind else "")
    yield f"Architecture: {instance['architecture']}"
    if state["pid"]:
        yield f"PID: {state['pid']}"
    for title, field in (("Created", "created_at"), ("Last Used", "last_used_at")):
        if time := values.minute(instance[field]):
            yield f"{title}: {time}"
    yield from idmaps.describe(instance["config"], running=bool(state["pid"]))
    if state["pid"]:
        yield ""
        yield "Resources:"
        yield f"  Processes: {state['processes']}"
        yield from _usage(state)
        yield from _networks(state.get("network") or {})


def _usage(state: dict[str, Any]) -> Iterator[str]:
    used = {name: disk["usage"] for name, disk in (state.get("disk") or {}).items() if disk["usage"] > 0}
    if used:
        yield "  Disk usage:"
        yield from (f"    {name}: {values.size(used[name])}" for name in sorted(used))
    if seconds := state["cpu"]["usage"]:
        yield "  CPU usage:"
        yield f"    CPU usage (in seconds): {seconds // 10**9}"
    titles = (
        ("Memory (current)", "usage"),
        ("Memory (peak)", "usage_peak"),
        ("Swap (current)", "swap_usage"),
        ("Swap (peak)", "swap_usage_peak"),
    )
    memory = [f"    {title}: {values.size(state['memory'][f])}" for title, f in titles if state["memory"][f]]
    if memory:
        yield "  Memory usage:"
        yield from memory


def _networks(networks: dict[str, Any]) -> Iterator[str]:
    if networks:
        yield "  Network usage:"
    for name in sorted(networks, key=natural):
        nic = networks[name]
        yield f"    {name}:"
        yield f"      Type: {nic['type']}"
        yield f"      State: {nic['state'].upper()}"
        if nic["host_name"]:
            yield f"      Host interface: {nic['host_name']}"
        if nic["hwaddr"]:
            yield f"      MAC address: {nic['hwaddr']}"
        if nic["mtu"]:
            yield f"      MTU: {nic['mtu']}"
        counters = nic["counters"]
        yield f"      Bytes received: {values.size(counters['bytes_received'])}"
        yield f"      Bytes sent: {values.size(counters['bytes_sent'])}"
        yield f"      Packets received: {counters['packets_received']}"
        yield f"      Packets sent: {counters['packets_sent']}"
        yield "      IP addresses:"
        for address in nic["addresses"]:
            family = f"{address['family']}:"
            yield f"        {family:6} {address['address']}/{address['netmask']} ({address['scope']})"


COMMAND = Command(
    "info",
    "Show instance or server information",
    _run,
    args="[<remote>:][<instance>]",
    flags=(
        Flag("resources", "Show the resources available to the server"),
        Flag("checkpoint", "Show whether the running state of the instance can be saved"),
        Flag("show-log", "Show the last lines of the instance's log"),
    ),
    example=(
        "utsuwa info web --show-log",
        "Show state, id map, resource usage, addresses and the log of web.",
    ),
    complete=("instances",),
)
