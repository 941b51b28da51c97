"""The commands `attach`, `detach`, `attach-profile` and `detach-profile` of networks and of volumes."""

from __future__ import annotations

from utsuwa.cli.commands.devices import Holder
from utsuwa.cli.errors import CommandFailed
from utsuwa.cli.parsing.command import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.cli.parsing.command import Run
    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session

    Device = dict[str, str]
    Example = tuple[str, str]


class Linked:
    """What can be attached to instances and profiles as a device.

    It is named by the first `count` arguments, of which the first one may have a remote; those of the
    instance or profile and of the device follow.
    """

    def __init__(
        self,
        what: str,
        args: str,
        *,
        attached: str,
        type: str,
        last: str,
        details: str = "",
        complete: tuple[str, ...],
        examples: tuple[Example, Example],
        device: Callable[[Session, list[str], list[str]], tuple[str, Device]],
        matches: Callable[[Session, list[str]], Callable[[Device], bool]],
    ) -> None:
        self.what = what
        """As in "No device found for this network"."""
        self.args = args
        self.attached = attached
        """What is attached and detached, as `network interfaces`."""
        self.type = type
        """The type of the device."""
        self.last = last
        """The argument of `attach` that follows the name of the device."""
        self.details = details
        self.complete = complete
        self.examples = examples
        """Of `attach` and `detach`: the arguments, and what that does."""
        self.device = device
        """Returns the default name and the device, by the arguments that name it, and the last ones."""
        self.matches = matches
        """Returns what tells whether a device is this one."""

    @property
    def count(self) -> int:
        return len(self.args.split())


def commands(linked: Linked, group: str) -> tuple[Command, Command, Command, Command]:
    """Return attach and detach for instances, and for profiles; `group` is their place, as `network`."""
    return (
        *_pair(linked, group, "instances", "instance", ""),
        *_pair(linked, group, "profiles", "profile", "-profile"),
    )


def _pair(linked: Linked, group: str, path: str, noun: str, suffix: str) -> tuple[Command, Command]:
    args = f"{linked.args} <{noun}> [<device-name>]"
    complete: tuple[str | tuple[str, ...], ...] = (*linked.complete, path, ())
    (attached, attaches), (detached, detaches) = linked.examples
    return (
        Command(
            f"attach{suffix}",
            f"Attach {linked.attached} to {noun}s",
            _attach(linked, path),
            args=f"{args} [{linked.last}]",
            details=linked.details,
            complete=complete,
            example=(f"utsuwa {group} attach{suffix} {attached}", attaches),
        ),
        Command(
            f"detach{suffix}",
            f"Detach {linked.attached.removeprefix('new ')} from {noun}s",
            _detach(linked, path),
            args=args,
            complete=complete,
            example=(f"utsuwa {group} detach{suffix} {detached}", detaches),
        ),
    )


def _holder(linked: Linked, session: Session, path: str, arguments: list[str]) -> Holder:
    """Return the instance or profile, which is on the server of what is attached."""
    remote, _ = session.config.split(arguments[0])
    return Holder(session, path, f"{remote}:{arguments[linked.count]}")


def _attach(linked: Linked, path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        name, device = linked.device(session, arguments[: linked.count], arguments[linked.count + 1 :])
        holder = _holder(linked, session, path, arguments)
        holder.add(name, device)
        holder.save()

    return run


def _detach(linked: Linked, path: str) -> Run:
    def run(session: Session, arguments: list[str], _flags: Flags) -> None:
        matches = linked.matches(session, arguments[: linked.count])
        holder = _holder(linked, session, path, arguments)
        named = arguments[linked.count + 1 :]
        name = named[0] if named else _only_device(linked, holder, matches)
        device = holder.own(
            name, "removed from individual instance. Override device or modify profile instead"
        )
        if device.get("type") != linked.type:
            raise CommandFailed(
                f"The device {name} is not a {linked.type}: it is of type {device.get('type')}"
            )
        del holder.devices[name]
        holder.save()

    return run


def _only_device(linked: Linked, holder: Holder, matches: Callable[[Device], bool]) -> str:
    found = [name for name, device in holder.devices.items() if matches(device)]
    if not found:
        raise CommandFailed(f"No device found for this {linked.what}")
    if len(found) > 1:
        raise CommandFailed("More than one device matches, specify the device name")
    return found[0]
