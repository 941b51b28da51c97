"""The `device` commands of instances and of profiles."""

from __future__ import annotations

from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.output import values
from utsuwa.cli.output.render import natural
from utsuwa.cli.parsing.command import Command
from utsuwa.client.server import path_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.command import Run
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

TYPES = (
    "disk",
    "nic",
    "none",
    "unix-char",
    "unix-block",
    "unix-hotplug",
    "proxy",
    "usb",
    "gpu",
    "infiniband",
)


class Holder:
    """The owner of devices, an instance or a profile, loaded for a change."""

    def __init__(self, session: Session, path: str, text: str) -> None:
        self.session = session
        self.server, self.name = session.target(text)
        self.url = path_to(path, self.name)
        self.record, self.etag = self.server.get_with_etag(self.url)
        self.devices: dict[str, dict[str, str]] = self.record["devices"]
        self.inherited: dict[str, dict[str, str]] = self.record.get("expanded_devices") or {}

    def own(self, name: str, what: str) -> dict[str, str]:
        """Return a local device. Raises CommandFailed, whose message says that others cannot be `what`."""
        if name in self.devices:
            return self.devices[name]
        if name in self.inherited:
            raise CommandFailed(f"Device from profile(s) cannot be {what}")
        raise CommandFailed("Device doesn't exist")

    def add(self, name: str, device: dict[str, str]) -> None:
        if name in self.devices:
            raise CommandFailed("The device already exists")
        self.devices[name] = device

    def save(self) -> None:
        fields = ("architecture", "config", "devices", "ephemeral", "profiles", "stateful", "description")
        body = {field: self.record[field] for field in fields if field in self.record}
        self.session.settle(self.server, self.server.put(self.url, body, self.etag))


_MODIFIED = "modified for individual instance. Override device or modify profile instead"


def _add(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        holder = Holder(session, path, arguments[0])
        name, kind = arguments[1:3]
        holder.add(name, {**values.pairs(arguments[3:]), "type": kind})
        holder.save()
        session.say(f"Device {name} added to {holder.name}")

    return run


def _remove(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        holder = Holder(session, path, arguments[0])
        what = "removed from individual instance. Override device or modify profile instead"
        for name in arguments[1:]:
            holder.own(name, what)
            del holder.devices[name]
        holder.save()
        for name in arguments[1:]:
            session.say(f"Device {name} removed from {holder.name}")

    return run


def _get(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        holder = Holder(session, path, arguments[0])
        device = holder.own(arguments[1], "retrieved for individual instance")
        session.write(f"{device.get(arguments[2], '')}\n")

    return run


def _set(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        holder = Holder(session, path, arguments[0])
        holder.own(arguments[1], _MODIFIED).update(values.changes(arguments[2:]))
        holder.save()

    return run


def _unset(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        holder = Holder(session, path, arguments[0])
        holder.own(arguments[1], _MODIFIED).pop(arguments[2], None)
        holder.save()

    return run


def _show(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        from utsuwa.cli.output import yaml_out
        from utsuwa.cli.output.records import sorted_map

        session.write(yaml_out.dump(sorted_map(Holder(session, path, arguments[0]).devices)))

    return run


def _list(path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        names = sorted(Holder(session, path, arguments[0]).devices, key=natural)
        session.write("\n".join(names) + "\n")

    return run


def _override(session: Session, arguments: list[str], _flags: Flags) -> None:
    holder = Holder(session, "instances", arguments[0])
    name = arguments[1]
    if name in holder.devices:
        raise CommandFailed("The device already exists")
    if name not in holder.inherited:
        raise CommandFailed("The profile device doesn't exist")
    holder.add(name, {**holder.inherited[name], **values.pairs(arguments[2:])})
    holder.save()
    session.say(f"Device {name} overridden for {holder.name}")


def group(path: str, argument: str, place: str) -> Command:
    """The `device` commands for instances (`config`) or profiles."""
    holder = f"[<remote>:]<{argument}>"
    call = f"utsuwa {place} device"
    device, keys = f"devices of {path}", f"device-keys of {path}"

    def command(
        name: str,
        summary: str,
        run: Run,
        more: str,
        example: str,
        *complete: str | tuple[str, ...],
        **rest: Any,
    ) -> Command:
        return Command(
            name,
            summary,
            run,
            args=holder + more,
            example=(f"{call} {name} web {example}".rstrip(), f"{summary}."),
            complete=(path, *complete),
            **rest,
        )

    children = [
        command(
            "add",
            f"Add {argument} devices",
            _add(path),
            " <device> <type> [<key>=<value>...]",
            "data disk source=/srv/data path=/mnt",
            (),
            TYPES,
            "device-keys of a type",
        ),
        command(
            "get",
            "Get values for device configuration keys",
            _get(path),
            " <device> <key>",
            "data path",
            device,
            f"device-key of {path}",
        ),
        command("list", f"List {argument} devices", _list(path), "", "", (), aliases=("ls",)),
        command(
            "remove",
            f"Remove {argument} devices",
            _remove(path),
            " <device>...",
            "data",
            device,
            aliases=("rm",),
        ),
        command(
            "set",
            "Set device configuration keys",
            _set(path),
            " <device> <key>=<value>...",
            "data readonly=true",
            device,
            keys,
        ),
        command("show", "Show full device configuration", _show(path), "", "", ()),
        command(
            "unset",
            "Unset device configuration keys",
            _unset(path),
            " <device> <key>",
            "data readonly",
            device,
            f"device-key of {path}",
        ),
    ]
    if path == "instances":
        summary = "Copy profile inherited devices and override configuration keys"
        more = " <device> [<key>=<value>...]"
        children.append(
            command("override", summary, _override, more, "eth0 ipv4.address=10.0.3.7", device, keys)
        )
    return Command("device", "Manage devices", children=tuple(sorted(children, key=lambda c: c.name)))
