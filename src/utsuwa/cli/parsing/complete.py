"""Shell completion: `utsuwa __complete WORD...` prints the candidates for the last word.

It must be fast and must not fail: errors result in no candidates.
"""

from __future__ import annotations

import sys

from utsuwa.cli.index import GLOBAL_FLAGS, ROOT, descend, without_alias
from utsuwa.cli.parsing.flags import BOOL, Flag, Flags
from utsuwa.client.server import instance_path, path_to
from utsuwa.client.statuses import RUNNING
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from utsuwa.cli.session import Session
    from utsuwa.client.server import Server

# Kind: path of the collection, and the field with the names.
_COLLECTIONS = {
    "instances": ("/1.0/instances", "name"),
    "networks": ("/1.0/networks", "name"),
    "pools": ("/1.0/storage-pools", "name"),
    "profiles": ("/1.0/profiles", "name"),
    "projects": ("/1.0/projects", "name"),
    "operations": ("/1.0/operations", "id"),
    "warnings": ("/1.0/warnings", "uuid"),
    "certificates": ("/1.0/certificates", "fingerprint"),
    "images": ("/1.0/images/aliases", "name"),
}
_NEXT = "\0"
_STATUSES = {"running": RUNNING, "stopped": ("Stopped", "Frozen")}


def run(words: list[str]) -> int:
    """Print the candidates for the last word, one per line."""
    try:
        found = candidates(words[:-1], words[-1] if words else "")
    except UtsuwaError:
        found = []
    sys.stdout.write("".join(f"{word}\n" for word in found))
    return 0


def candidates(before: list[str], word: str) -> list[str]:
    """Return the sorted candidates for `word`, given the words before it."""
    commands, left, rest = descend(_in_full(before))
    command, rest = commands[-1], left + rest
    flags = (*command.flags, *GLOBAL_FLAGS)
    arguments, open_flag = _walk(rest, flags)
    if open_flag is not None:
        found: Iterable[str] = _named(open_flag.complete, word)
    elif word.startswith("-") and "--" not in rest:
        found = _flag_words(word, flags)
    elif command.children and not arguments:
        found = [child.name for child in command.children]
        if command is ROOT:
            found += _alias_names(before)
    elif command.complete:
        kinds = _kinds(command.complete, arguments)
        place = min(len(arguments), len(kinds) - 1)
        found = _at(kinds[place], place, word, arguments) if kinds else []
    else:
        found = []
    return sorted({name for name in found if name.startswith(word)})


def _kinds(
    kinds: tuple[str | tuple[str, ...], ...], arguments: list[str]
) -> tuple[str | tuple[str, ...], ...]:
    """Return the kinds of arguments of a command, given those before the last word.

    Where the first may be an instance or a key of the server (`instances+server-keys`), keys of the server
    follow a server or such a key, as names of instances contain neither a dot nor `=`.
    """
    first = kinds[0]
    if not arguments or not isinstance(first, str) or "+server-key" not in first:
        return kinds
    of_server = first.partition("+")[2]
    if arguments[0].endswith(":"):
        return (first, of_server)
    if "." not in arguments[0] and "=" not in arguments[0]:
        return kinds
    return (of_server,) if of_server.endswith("-keys") else ()


def _at(kind: str | tuple[str, ...], place: int, word: str, arguments: list[str]) -> Iterable[str]:
    """Return the candidates for an argument of a kind, of which the first one is at `place`."""
    if kind == "own-snapshots":
        return _own_snapshots(arguments[0])
    if "-keys" in kind and len(arguments) > place and "=" not in arguments[-1]:  # `set web KEY VALUE`
        return [word.partition("=")[2] for word in _named(kind, f"{arguments[-1]}=", arguments)]
    if isinstance(kind, str):  # `instances+server-keys`: of either kind
        return [name for one in kind.split("+") for name in _named(one, word, arguments)]
    return kind


def _flag_words(word: str, flags: tuple[Flag, ...]) -> list[str]:
    """Return names of flags or, after `--name=`, the values of one."""
    name, equals, value = word[2:].partition("=")
    if not equals:
        return [f"--{flag.name}" for flag in flags]
    return [f"--{name}={v}" for flag in flags if flag.name == name for v in _named(flag.complete, value)]


def _in_full(words: list[str]) -> list[str]:
    """Return the words with an alias expanded, up to the position of the next word."""
    marked = without_alias([*words, _NEXT])
    return marked[: marked.index(_NEXT)] if _NEXT in marked else words


def _alias_names(before: list[str]) -> list[str]:
    """Return the possible next words of the user's aliases, which may consist of several words."""
    from utsuwa.client import remotes

    names = [name.split() for name in remotes.load().aliases]
    at = len(before)
    return [name[at] for name in names if name[:at] == before and len(name) > at]


def _walk(words: list[str], known: tuple[Flag, ...]) -> tuple[list[str], Flag | None]:
    """Return the arguments among the words, and the flag whose value is expected next."""
    arguments: list[str] = []
    by_word = {f"--{flag.name}": flag for flag in known} | {f"-{f.short}": f for f in known if f.short}
    waiting: Flag | None = None
    for i, word in enumerate(words):
        if waiting is not None:
            waiting = None
        elif word == "--":
            return arguments + words[i + 1 :], None
        elif word.startswith("-"):
            flag = by_word.get(word)
            waiting = flag if flag and flag.kind != BOOL and flag.bare is None else None
        else:
            arguments.append(word)
    return arguments, waiting


def _named(kind: str | tuple[str, ...], word: str, arguments: list[str] | None = None) -> list[str]:
    """Return the given words, or the names of a kind on the server of the word's remote.

    For devices, the arguments before it say of what, and of which type.
    """
    if not isinstance(kind, str):
        return list(kind)
    from utsuwa.cli.session import Session

    session = Session(Flags(GLOBAL_FLAGS))
    of_client: dict[str, Iterable[str]] = {
        "remotes": session.config.remotes,
        "aliases": session.config.aliases,
    }
    if kind in of_client:
        return list(of_client[kind])
    if kind.startswith("device"):
        return _of_devices(session, kind, word, arguments or [])
    if kind.startswith("volume") or kind == "pools-and-volumes":
        return _of_volumes(session, kind, word, arguments or [])
    if kind.endswith(("-key", "-keys")):
        return _keys(session, kind, word)
    if kind == "storage-drivers":
        return _storage_drivers(session)
    remote, colon, _ = word.partition(":")
    prefix = f"{remote}:" if colon else ""
    if colon:
        session.config.remote(remote)
    if kind == "instances-and-snapshots":
        instance, slash, _ = word.removeprefix(prefix).partition("/")
        if slash:
            return [f"{prefix}{instance}/{name}" for name in _own_snapshots(prefix + instance)]
        kind = "instances"
    return [prefix + name for name in _members(session, kind, remote if colon else "")]


def _own_snapshots(instance: str) -> list[str]:
    """Return the names of the snapshots of `remote:instance`."""
    from utsuwa.cli.session import Session

    server, name = Session(Flags(GLOBAL_FLAGS)).target(instance)
    return [record["name"] for record in server.get(f"{instance_path(name)}/snapshots", recursion="1")]


def _members(session: Session, kind: str, remote: str) -> list[str]:
    path, field = _COLLECTIONS["instances" if kind in _STATUSES else kind]
    found = session.server(remote).get(path, recursion="1")
    if kind == "operations":
        return [str(record[field]) for group in (found or {}).values() for record in group]
    wanted = _STATUSES.get(kind)
    return [str(record[field]) for record in found if wanted is None or record["status"] in wanted]


def _keys(session: Session, kind: str, word: str) -> list[str]:
    """Return the configuration keys from the server's metadata, for `instance-keys` etc. with `=`."""
    configs = session.server().get("/1.0/metadata/configuration")["configs"]
    groups = configs[kind.partition("-")[0]]
    return _keys_or_values(_entries(groups.values()), word, plural=kind.endswith("-keys"))


def _entries(groups: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the descriptions of keys by their names."""
    return {key: facts for group in groups for entry in group["keys"] for key, facts in entry.items()}


def _keys_or_values(entries: dict[str, dict[str, Any]], word: str, *, plural: bool) -> list[str]:
    """Return the keys, in the `plural` with `=`; after the `=` of a key, that with each of its values."""
    key, equals, _ = word.partition("=")
    if equals:
        return [f"{key}={value}" for value in entries.get(key, {}).get("choices", ())]
    return [f"{name}=" for name in entries] if plural else list(entries)


def _of_devices(session: Session, kind: str, word: str, arguments: list[str]) -> list[str]:
    """Return the names of devices (`devices of instances`), their keys, or those of a type.

    The arguments are their holder, and for keys a device or, in `device-keys of a type`, its type at last.
    """
    what, _, path = kind.partition(" of ")
    device_type = arguments[2] if path == "a type" else ""
    if path != "a type":
        server, name = session.target(arguments[0])
        record = server.get(f"/1.0/{path}/{name}")
        devices = {**(record.get("expanded_devices") or {}), **record["devices"]}
        if what == "devices":
            return list(devices)
        device_type = devices.get(arguments[1], {}).get("type", "")
    groups = session.server().get("/1.0/metadata/configuration")["configs"]["devices"]
    entries = _entries(group for name, group in groups.items() if _is_group_of(name, device_type))
    return _keys_or_values(entries, word, plural=what == "device-keys")


def _of_volumes(session: Session, kind: str, word: str, arguments: list[str]) -> list[str]:
    """Return custom volumes or keys of them, of the pool in the first argument, or its snapshots.

    `pools-and-volumes` are volumes with their pool: `default/data`.
    """
    if kind == "pools-and-volumes":
        server, path = session.target(word)
        prefix, (pool, slash, _) = word.removesuffix(path), path.partition("/")
        if not slash:
            return [f"{prefix}{name}/" for name in _names_in(server, "/1.0/storage-pools")]
        found = _names_in(server, path_to("storage-pools", pool, "volumes", "custom"))
        return [f"{prefix}{pool}/{name}" for name in found]
    server, pool = session.target(arguments[0])
    if kind.startswith("volume-key"):
        driver = server.get(path_to("storage-pools", pool))["driver"]
        groups = server.get("/1.0/metadata/configuration")["configs"][f"storage_volume_{driver}"]
        return _keys_or_values(_entries(groups.values()), word, plural=kind == "volume-keys")
    names = _names_in(server, path_to("storage-pools", pool, "volumes", "custom"))
    if kind == "volume-snapshots":
        above = f"{arguments[1]}/"
        return [name.removeprefix(above) for name in names if name.startswith(above)]
    return names


def _names_in(server: Server, url: str) -> list[str]:
    return [record["name"] for record in server.get(url, recursion="1")]


def _is_group_of(group: str, device_type: str) -> bool:
    """Groups of keys are named after a type and its driver (`nic_bridged`), or after two types."""
    types = ("unix-char", "unix-block") if group == "unix-char-block" else (group.partition("_")[0],)
    return device_type in types


def _storage_drivers(session: Session) -> list[str]:
    supported = session.server().get("/1.0")["environment"]["storage_supported_drivers"]
    return [driver["Name"] for driver in supported]
