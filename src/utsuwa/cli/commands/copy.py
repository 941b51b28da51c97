"""`utsuwa copy` and `utsuwa move`."""

from __future__ import annotations

from utsuwa.cli.commands.create import made_name
from utsuwa.cli.commands.delete import delete
from utsuwa.cli.downtime import FLAG, Downtime, reasons
from utsuwa.cli.errors import CommandFailed, UsageError
from utsuwa.cli.migrating import MODES, RELAY, Migration
from utsuwa.cli.output.values import override_devices, pairs
from utsuwa.cli.parsing.command import Command
from utsuwa.cli.parsing.flags import MANY, TEXT, Flag
from utsuwa.client.errors import ApiError
from utsuwa.client.server import instance_path, path_to
from utsuwa.client.statuses import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from utsuwa.cli.parsing.flags import Flags
    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

# The flags that change the configuration.
_OVERRIDES = ("config", "device", "profile", "no-profiles")
# Volatile keys that a copy takes over.
_KEPT = ("volatile.base_image", "volatile.last_state.idmap")


def _copy(session: Session, arguments: list[str], flags: Flags) -> None:
    remote, name = session.config.split(arguments[0])
    to, new = session.config.split(arguments[1]) if len(arguments) > 1 else (remote, "")
    source, target = session.server(remote), session.server(to)
    _check(flags)
    project, refresh = flags.text("target-project"), flags.on("refresh")
    if "/" in name and refresh:
        raise UsageError("--refresh can only be used with instances")
    if refresh and flags.on("no-profiles"):
        raise UsageError("--no-profiles cannot be used with --refresh")
    record = source.get(instance_path(name))
    settings = _settings(record, flags)
    where = {"project": project} if project else {}
    if refresh and new:
        _check_pool(_named_pool(record, settings, flags), _existing(target, new, where))
    if target is not source:
        new = new or _same_name(name)
        _send(session, (remote, name), (to, new), record, settings, flags)
    else:
        new = _copy_here(session, source, name, new, record, settings, flags)
    if refresh:
        there = target.get(instance_path(new), **where)
        _stay_on_pool(settings["devices"], record, there)
        kept = _with_volatile_of(there["config"], settings["config"])
        answer = target.put(path_to("instances", new), settings | {"config": kept}, **where)
        session.settle(target, answer, f"Refreshing {new}")


def _settings(record: dict[str, Any], flags: Flags) -> dict[str, Any]:
    """Return the configuration of the copy."""
    return {
        "architecture": record["architecture"],
        "config": _config(record, flags),
        "devices": _devices(record, flags),
        "profiles": _profiles(record, flags),
        "ephemeral": _given(flags, "ephemeral"),
        "description": record.get("description", ""),
    }


def _given(flags: Flags, name: str) -> bool:
    """Whether a flag is on that only `copy` has."""
    return name in flags.known and flags.on(name)


def _copy_here(
    session: Session,
    server: Server,
    name: str,
    new: str,
    record: dict[str, Any],
    settings: dict[str, Any],
    flags: Flags,
) -> str:
    """Copy on one server; return the name of the copy."""
    project, refresh = flags.text("target-project"), flags.on("refresh")
    if not new and not project and "/" not in name:
        session.say("The copy gets a name that the server chooses")
    new = new or (name if project and "/" not in name else "")
    body = settings | {
        "name": new,
        "type": "container",
        "stateful": _with_state(name, record, flags),
        "source": {
            "type": "copy",
            "source": name,
            "project": server.project or "default",
            "instance_only": flags.on("instance-only"),
            "refresh": refresh,
            "allow_inconsistent": flags.on("allow-inconsistent"),
        },
    }
    where = {"project": project} if project else {}
    done = session.wait(server, server.post("/1.0/instances", body, **where), f"Copying {name}")
    if not new:
        session.say(f"Instance name is: {made_name(done)}")
    return new


def _with_state(name: str, record: dict[str, Any], flags: Flags) -> bool:
    """Whether what is copied is a snapshot whose running state the copy goes on with."""
    return "/" in name and record["stateful"] and not flags.on("stateless")


def _same_name(name: str) -> str:
    if "/" in name:
        raise UsageError("Specify the name of the new instance, such as far:web")
    return name


def _send(
    session: Session,
    source: tuple[str, str],
    target: tuple[str, str],
    record: dict[str, Any],
    settings: dict[str, Any],
    flags: Flags,
    downtime: Downtime | None = None,
) -> None:
    """Copy from a server to another one."""
    (remote, name), (to, new) = source, target
    refresh = _given(flags, "refresh")
    running = record.get("status") in RUNNING and not refresh
    live = running and not flags.on("stateless") and downtime is None
    with_state = _with_state(name, record, flags)
    shared: dict[str, Any] = {"instance_only": flags.on("instance-only"), "live": live or with_state}
    if live and flags.text("mode") == RELAY:
        raise UsageError("A running instance needs --mode pull or push, or --stateless")
    offer = shared | {"migration": True, "allow_inconsistent": flags.on("allow-inconsistent")}
    if with_state:
        offer, settings = offer | {"name": new}, settings | {"stateful": True}
    if downtime is not None:
        offer, settings = offer | {"planned_downtime": True}, settings | {"start": True}
    base = record["config"].get("volatile.base_image", "")
    body = settings | {
        "name": new,
        "type": "container",
        "source": shared | {"refresh": refresh, "base-image": base},
    }
    project = flags.text("target-project")
    where = {"project": project} if project else {}
    wanted = to, "/1.0/instances", body
    migration = Migration(session, (remote, instance_path(name), offer), wanted, downtime)
    migration.run(flags.text("mode"), f"Copying {name}", **where)


def _check(flags: Flags) -> None:
    """Check the flags of transfers, which make no difference on one server."""
    if flags.text("mode") not in MODES:
        raise UsageError(f"Unknown mode {flags.text('mode')!r}: use {', '.join(MODES)}")
    if flags.text("target"):
        raise CommandFailed("To use --target, the destination remote must be a cluster")


def _config(record: dict[str, Any], flags: Flags) -> dict[str, str]:
    own = {k: v for k, v in record["config"].items() if not k.startswith("volatile.") or k in _KEPT}
    return own | pairs(flags.many("config"))


def _moved(config: dict[str, str]) -> dict[str, str]:
    """Leave out what concerns the source alone: LXD refuses keys that it does not know."""
    return {
        key: value
        for key, value in config.items()
        if key in _KEPT or not key.startswith(("volatile.last_state.", "volatile.cpu."))
    }


def _devices(record: dict[str, Any], flags: Flags) -> dict[str, dict[str, str]]:
    """Return the devices of the source, changed by `--device` and `--storage`, also those of profiles."""
    devices = {name: dict(device) for name, device in record["devices"].items()}
    expanded = record["expanded_devices"]
    override_devices(devices, flags.many("device"), lambda name: expanded.get(name, {}))
    if pool := flags.text("storage"):
        root = _root_of(record)
        if root not in devices:
            devices[root] = dict(expanded.get(root, {"type": "disk", "path": "/"}))
        devices[root]["pool"] = pool
    return devices


def _root_of(record: dict[str, Any]) -> str:
    """Return the name of the root disk of an instance."""
    expanded = record["expanded_devices"]
    return next((n for n, d in expanded.items() if d["type"] == "disk" and d.get("path") == "/"), "root")


def _with_volatile_of(there: dict[str, str], config: dict[str, str]) -> dict[str, str]:
    """Return a configuration for a copy, which keeps its own volatile keys: LXD wants to be told them."""
    kept = {key: value for key, value in there.items() if key.startswith("volatile.")}
    return {key: value for key, value in config.items() if not key.startswith("volatile.")} | kept


def _existing(server: Server, name: str, where: dict[str, str]) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = server.get(instance_path(name), **where)
    except ApiError as error:
        if error.code != 404:
            raise
        return None
    return found


def _named_pool(record: dict[str, Any], settings: dict[str, Any], flags: Flags) -> str:
    """Return the pool that flags name; empty if they name none, or by `--device` that of the source."""
    root = _root_of(record)
    wanted: str = settings["devices"].get(root, {}).get("pool", "")
    changed = wanted != record["expanded_devices"].get(root, {}).get("pool")
    return flags.text("storage") or (wanted if changed else "")


def _check_pool(wanted: str, there: dict[str, Any] | None) -> None:
    """Raise CommandFailed if an existing copy is on another pool than the one that is wanted, if any."""
    if there is None or not wanted:
        return
    pool = there["expanded_devices"].get(_root_of(there), {}).get("pool")
    if wanted != pool:
        name = there["name"]
        raise CommandFailed(
            f"{name} is on the pool {pool}, and a refresh does not move it to {wanted}: move it first with "
            f"`utsuwa move {name} --storage {wanted}`, or name no pool"
        )


def _stay_on_pool(devices: dict[str, dict[str, str]], record: dict[str, Any], there: dict[str, Any]) -> None:
    """Leave the root disk of an existing copy on the pool where it is, with the settings of the source's."""
    root, name = _root_of(record), _root_of(there)
    if name in there["devices"] or root in devices:
        found = there["expanded_devices"][name]
        wanted = record["expanded_devices"].get(root, found) | devices.pop(root, {})
        devices[name] = wanted | {"pool": found["pool"]}


def _profiles(record: dict[str, Any], flags: Flags) -> list[str]:
    if flags.on("no-profiles"):
        return []
    return flags.many("profile") or list(record["profiles"])


def _move(session: Session, arguments: list[str], flags: Flags) -> None:
    remote, name = session.config.split(arguments[0])
    to, new = session.config.split(arguments[1]) if len(arguments) > 1 else (remote, "")
    source, target = session.server(remote), session.server(to)
    project, pool = flags.text("target-project"), flags.text("storage")
    if "/" in name:
        _rename_snapshot(session, source, name, target, new)
        return
    _check(flags)
    if target is not source:
        _move_away(session, (remote, name), (to, new or name), flags)
        return
    overrides = any(flags.given(flag) for flag in _OVERRIDES)
    if not (project or pool or overrides) and new in ("", name):
        raise UsageError("Specify a new name, or --storage, or --target-project")
    body: dict[str, Any] = {"name": new or name}
    if project or pool or overrides:
        body |= {"migration": True, "pool": pool, "project": project, "live": not flags.on("stateless")}
        body |= {"instance_only": flags.on("instance-only")} | _overrides(source, name, flags)
    session.wait(source, source.post(path_to("instances", name), body), f"Moving {name}")


def _move_away(session: Session, source: tuple[str, str], target: tuple[str, str], flags: Flags) -> None:
    """Move to another server: a copy that keeps its identity, then the deletion of the source."""
    server, name = session.server(source[0]), source[1]
    record = server.get(instance_path(name))
    if record["expanded_config"].get("security.protection.delete") in ("true", "1", "yes", "on"):
        raise CommandFailed(f"{name} is protected: unset security.protection.delete first")
    settings = _settings(record, flags)
    settings["config"] = _moved(record["config"]) | pairs(flags.many("config"))
    settings["ephemeral"] = record["ephemeral"]
    settings["stateful"] = record["stateful"] and not flags.on("stateless")
    downtime = _downtime(session, server, session.server(target[0]), (name, target[1]), record, flags)
    _send(session, source, target, record, settings, flags, downtime)
    if downtime is None:
        delete(session, server, name)


def _downtime(
    session: Session,
    source: Server,
    target: Server,
    names: tuple[str, str],
    record: dict[str, Any],
    flags: Flags,
) -> Downtime | None:
    """Return the downtime that a move needs, None for one without."""
    agreed = flags.on(FLAG)
    if record.get("status") not in RUNNING:
        if agreed:
            raise UsageError(f"--{FLAG} is for running instances")
        return None
    if flags.on("stateless"):
        return None
    why = [] if agreed else reasons(source, target, names[0])
    if not (agreed or why):
        return None
    found = Downtime(session, names, why, agreed=agreed)
    found.check(source, target)
    return found


def _overrides(source: Server, name: str, flags: Flags) -> dict[str, Any]:
    """Return what the flags change of the configuration."""
    found: dict[str, Any] = {"config": pairs(flags.many("config"))}
    if flags.given("device"):
        expanded = source.get(instance_path(name))["expanded_devices"]
        found["devices"] = {}
        override_devices(found["devices"], flags.many("device"), lambda device: expanded.get(device, {}))
    if flags.given("profile") or flags.on("no-profiles"):
        found["profiles"] = [] if flags.on("no-profiles") else flags.many("profile")
    return found


def _rename_snapshot(session: Session, source: Server, name: str, target: Server, new: str) -> None:
    """Snapshots stay with their instance: moving one renames it."""
    instance, _, _ = name.partition("/")
    owner, slash, snapshot = new.partition("/")
    if not slash or owner != instance or target is not source:
        raise UsageError("A snapshot can only be renamed: `utsuwa move web/old web/new`, or copied")
    session.wait(source, source.post(instance_path(name), {"name": snapshot}), f"Renaming {name}")


_FLAGS = (
    Flag("allow-inconsistent", "Ignore copy errors for volatile files"),
    Flag("config", "Config key/value to apply to the new instance", "c", kind=MANY, complete="instance-keys"),
    Flag("device", "New key/value to apply to a specific device", "d", kind=MANY),
    Flag("instance-only", "Leave out the snapshots"),
    Flag(
        "mode",
        "Transfer mode between servers (pull, push, relay)",
        kind=TEXT,
        default="pull",
        complete=MODES,
    ),
    Flag("no-profiles", "Apply no profiles to the new instance"),
    Flag("profile", "Profile to apply to the new instance", "p", kind=MANY, complete="profiles"),
    Flag("stateless", "Leave out the running state of a stateful instance or snapshot"),
    Flag("storage", "Storage pool name", "s", kind=TEXT, complete="pools"),
    Flag("target", "Member of a cluster", kind=TEXT),
    Flag("target-project", "Another project as the destination", kind=TEXT, complete="projects"),
)

COPY = Command(
    "copy",
    "Copy instances",
    _copy,
    args="[<remote>:]<source>[/<snapshot>] [[<remote>:]<destination>]",
    flags=(
        *_FLAGS,
        Flag("ephemeral", "Ephemeral instance", "e"),
        Flag("refresh", "Perform an incremental copy"),
    ),
    aliases=("cp",),
    example=("utsuwa copy web/before-update test", "Create test from a snapshot of web."),
    complete=("instances-and-snapshots", ()),
)
MOVE = Command(
    "move",
    "Move or rename instances, or rename snapshots",
    _move,
    args="[<remote>:]<instance>[/<snapshot>] [[<remote>:]<instance>[/<snapshot>]]",
    flags=(
        *_FLAGS,
        Flag(FLAG, "Stop a running instance for the rest of a move to another server, and start it there"),
    ),
    aliases=("mv",),
    example=("utsuwa move web --storage fast", "Move the files of a stopped instance to another pool."),
    complete=("instances-and-snapshots", ()),
)
