"""Shell completion: `utsuwa __complete WORD...` prints the candidates for the last word.

It must be fast and must not fail: errors result in no candidates.
"""

from __future__ import annotations

import sys

from utsuwa.cli.index import GLOBAL_FLAGS, ROOT, descend, without_alias
from utsuwa.cli.parsing.flags import BOOL, Flag, Flags
from utsuwa.core.errors import UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from utsuwa.cli.session import Session

# Kind: path of the collection, and the field with the names.
_COLLECTIONS = {
    "instances": ("/1.0/instances", "name"),
    "networks": ("/1.0/networks", "name"),
    "pools": ("/1.0/storage-pools", "name"),
    "profiles": ("/1.0/profiles", "name"),
    "projects": ("/1.0/projects", "name"),
    "operations": ("/1.0/operations", "id"),
    "certificates": ("/1.0/certificates", "fingerprint"),
    "images": ("/1.0/images/aliases", "name"),
}
_NEXT = "\0"
_STATUSES = {"running": ("Running",), "stopped": ("Stopped", "Frozen")}


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
        place = min(len(arguments), len(command.complete) - 1)
        found = _named(command.complete[place], word)
    else:
        found = []
    return sorted({name for name in found if name.startswith(word)})


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


def _named(kind: str | tuple[str, ...], word: str) -> list[str]:
    """Return the given words, or the names of a kind on the server of the word's remote."""
    if not isinstance(kind, str):
        return list(kind)
    from utsuwa.cli.session import Session

    session = Session(Flags(GLOBAL_FLAGS))
    if kind == "remotes":
        return list(session.config.remotes)
    if kind == "aliases":
        return list(session.config.aliases)
    if kind in ("instance-keys", "server-keys"):
        return _keys(session, kind)
    if kind == "storage-drivers":
        return _storage_drivers(session)
    remote, colon, _ = word.partition(":")
    prefix = f"{remote}:" if colon else ""
    if colon:
        session.config.remote(remote)
    return [prefix + name for name in _members(session, kind, remote if colon else "")]


def _members(session: Session, kind: str, remote: str) -> list[str]:
    path, field = _COLLECTIONS["instances" if kind in _STATUSES else kind]
    found = session.server(remote).get(path, recursion="1")
    if kind == "operations":
        return [str(record[field]) for group in (found or {}).values() for record in group]
    wanted = _STATUSES.get(kind)
    return [str(record[field]) for record in found if wanted is None or record["status"] in wanted]


def _keys(session: Session, kind: str) -> list[str]:
    """Return the configuration keys from the server's metadata."""
    configs = session.server().get("/1.0/metadata/configuration")["configs"]
    groups = configs["instance" if kind == "instance-keys" else "server"]
    return [f"{key}=" for group in groups.values() for entry in group["keys"] for key in entry]


def _storage_drivers(session: Session) -> list[str]:
    supported = session.server().get("/1.0")["environment"]["storage_supported_drivers"]
    return [driver["Name"] for driver in supported]
