"""`utsuwa network`."""

from __future__ import annotations

from utsuwa.cli.commands import links, objects
from utsuwa.cli.output import values
from utsuwa.cli.output.render import list_query, show_list
from utsuwa.cli.parsing.command import Command, all_projects_flag, format_flag
from utsuwa.cli.parsing.flags import TEXT, Flag
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from utsuwa.cli.commands.links import Device
    from utsuwa.cli.output.render import Column
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

_NOUN = objects.Noun(
    "network",
    "networks",
    kind="network",
    fields=("config", "description"),
    members="networks",
    argument="network",
)

# Interfaces that are not listed.
_HIDDEN = ("loopback", "unknown")


_COLUMNS: tuple[Column, ...] = (
    ("NAME", lambda n: n["name"]),
    ("TYPE", lambda n: n["type"]),
    ("MANAGED", lambda n: "YES" if n["managed"] else "NO"),
    ("IPV4", lambda n: n["config"].get("ipv4.address", "")),
    ("IPV6", lambda n: n["config"].get("ipv6.address", "")),
    ("DESCRIPTION", lambda n: n["description"]),
    ("USED BY", lambda n: str(len(n["used_by"] or ()))),
    ("STATE", lambda n: n["status"].upper()),
)


def _list(session: Session, arguments: list[str], flags: Flags) -> None:
    server, _ = session.takes_remote(arguments)
    style = flags.text("format")
    query, columns = list_query(flags, _COLUMNS)
    found = server.get("/1.0/networks", **query)
    if style not in ("json", "yaml"):
        found = [network for network in found if network["type"] not in _HIDDEN]
    show_list(session, style, columns, found, "network")


def _create(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    body = {"name": name, "type": flags.text("type"), "config": values.pairs(arguments[1:])}
    server.post("/1.0/networks", body)
    session.say(f"Network {name} created")


def _info(session: Session, arguments: list[str], _flags: Flags) -> None:
    server, name = session.target(arguments[0])
    state = server.get(f"{_NOUN.url(name)}/state")
    session.write("".join(line + "\n" for line in _describe(name, state)))


def _describe(name: str, state: dict[str, Any]) -> Iterator[str]:
    yield f"Name: {name}"
    yield f"MAC address: {state['hwaddr']}"
    yield f"MTU: {state['mtu']}"
    yield f"State: {state['state']}"
    yield f"Type: {state['type']}"
    if state["addresses"]:
        yield ""
        yield "IP addresses:"
        for found in state["addresses"]:
            yield f"  {found['family']}\t{found['address']}/{found['netmask']} ({found['scope']})"
    counters = state["counters"]
    yield ""
    yield "Network usage:"
    yield f"  Bytes received: {values.size(counters['bytes_received'])}"
    yield f"  Bytes sent: {values.size(counters['bytes_sent'])}"
    yield f"  Packets received: {counters['packets_received']}"
    yield f"  Packets sent: {counters['packets_sent']}"
    if bridge := state.get("bridge"):
        yield ""
        yield "Bridge:"
        yield f"  ID: {bridge['id']}"
        yield f"  STP: {str(bridge['stp']).lower()}"
        yield f"  Forward delay: {bridge['forward_delay']}"
        yield f"  Default VLAN ID: {bridge['vlan_default']}"
        yield f"  VLAN filtering: {str(bridge['vlan_filtering']).lower()}"
        yield f"  Upper devices: {', '.join(bridge['upper_devices'] or ())}"


def _leases(session: Session, arguments: list[str], flags: Flags) -> None:
    server, name = session.target(arguments[0])
    show_list(
        session,
        flags.text("format"),
        [
            ("HOSTNAME", lambda lease: lease["hostname"]),
            ("MAC ADDRESS", lambda lease: lease["hwaddr"]),
            ("IP ADDRESS", lambda lease: lease["address"]),
            ("TYPE", lambda lease: lease["type"].upper()),
        ],
        server.get(f"{_NOUN.url(name)}/leases"),
        "lease",
    )


def _device(session: Session, named: list[str], more: list[str]) -> tuple[str, Device]:
    remote, network = session.config.split(named[0])
    record = session.server(remote).get(path_to("networks", network))
    device = {"type": "nic"}
    if record["managed"]:
        device["network"] = network
    else:
        device |= {"nictype": "bridged" if record["type"] == "bridge" else "macvlan", "parent": network}
    if len(more) > 1:
        device["name"] = more[1]
    return more[0] if more else network, device


def _matches(session: Session, named: list[str]) -> Callable[[Device], bool]:
    _, network = session.config.split(named[0])
    return lambda device: network in (device.get("network"), device.get("parent"))


_ATTACH, _DETACH, _ATTACH_PROFILE, _DETACH_PROFILE = links.commands(
    links.Linked(
        "network",
        "[<remote>:]<network>",
        attached="network interfaces",
        type="nic",
        last="<interface-name>",
        complete=("networks",),
        examples=(
            ("utsuwabr0 web eth1", "Add a nic eth1 on this network."),
            ("utsuwabr0 web eth1", "Remove the nic eth1."),
        ),
        device=_device,
        matches=_matches,
    ),
    "network",
)


_ONE = "[<remote>:]<network>"

COMMAND = Command(
    "network",
    "Manage and attach instances to networks",
    children=(
        _ATTACH,
        _ATTACH_PROFILE,
        Command(
            "create",
            "Create new networks",
            _create,
            args=f"{_ONE} [<key>=<value>...]",
            flags=(Flag("type", "Network type", "t", kind=TEXT),),
            example=(
                "utsuwa network create lab ipv4.address=10.0.7.1/24",
                "Create a bridge and subnet.",
            ),
        ),
        objects.delete(_NOUN),
        _DETACH,
        _DETACH_PROFILE,
        objects.edit(_NOUN),
        objects.get(_NOUN),
        Command(
            "info",
            "Get runtime information on networks",
            _info,
            args=_ONE,
            complete=("networks",),
            example=("utsuwa network info utsuwabr0", "Show addresses and counters."),
        ),
        Command(
            "list",
            "List available networks",
            _list,
            args="[<remote>:]",
            flags=(all_projects_flag("networks"), format_flag()),
            aliases=("ls",),
            example=("utsuwa network list", "List managed networks and the host's other interfaces."),
        ),
        Command(
            "list-leases",
            "List DHCP leases",
            _leases,
            args=_ONE,
            flags=(format_flag(),),
            complete=("networks",),
            example=("utsuwa network list-leases utsuwabr0", "Show the leased addresses."),
        ),
        objects.rename(_NOUN),
        objects.set_(_NOUN),
        objects.show(_NOUN),
        objects.unset(_NOUN),
    ),
)
