"""Application of a preseed to a daemon, completely or not at all.

Existing objects are changed by key, as in LXD: other keys are kept. The server config is changed last,
because the daemon changes it atomically (the listener moves with it, and a replaced password cannot be
restored).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec

from utsuwa.core.errors import Cancelled, InvalidRequest, UtsuwaError
from utsuwa.core.names import DEFAULT_PROJECT
from utsuwa.core.urls import object_url
from utsuwa.daemon.init.preseed import Preseed
from utsuwa.daemon.init.state import is_pending
from utsuwa.daemon.local_api import LocalApi


@dataclass(frozen=True)
class Kind:
    """A type of object: its name, its collection, and the field that cannot be changed."""

    name: str
    collection: str
    fixed: str = ""
    editable: tuple[str, ...] = ("description", "config")


POOL = Kind("storage pool", "storage-pools", "driver")
NETWORK = Kind("network", "networks", "type")
PROJECT = Kind("project", "projects")
PROFILE = Kind("profile", "profiles", editable=("description", "config", "devices"))


def apply(api: LocalApi, preseed: Preseed) -> None:
    """Apply a preseed. On failure, restores everything and raises the error, whose message says so.

    Interrupts are handled between steps, never in the middle of one.
    """
    with _deferred_interrupts() as stop_if_asked:
        undo: list[_Undo] = []
        try:
            for kind, seed in _in_order(preseed):
                stop_if_asked()
                _ensure(api, kind, seed, undo)
            stop_if_asked()
            if preseed.config:
                body = {"config": preseed.config}
                _named("Cannot change the server config", api.request, "PATCH", "/1.0", body)
        except UtsuwaError as error:
            error.message = f"{error.message}. {_put_back(undo)}"
            raise
        except BaseException:
            _put_back(undo)
            raise


def _in_order(preseed: Preseed) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Yield the objects in order of dependencies: profiles use all others."""
    default = [network for network in preseed.networks if network.project == DEFAULT_PROJECT]
    others = [network for network in preseed.networks if network.project != DEFAULT_PROJECT]
    yield from ((POOL, msgspec.to_builtins(seed)) for seed in preseed.storage_pools)
    yield from ((NETWORK, msgspec.to_builtins(seed)) for seed in default)
    yield from ((PROJECT, msgspec.to_builtins(seed)) for seed in preseed.projects)
    yield from ((NETWORK, msgspec.to_builtins(seed)) for seed in others)
    yield from ((PROFILE, msgspec.to_builtins(seed)) for seed in preseed.profiles)


@dataclass(frozen=True)
class _Undo:
    what: str
    step: Callable[[], object]


def _ensure(api: LocalApi, kind: Kind, seed: dict[str, Any], undo: list[_Undo]) -> None:
    """Create or change one object, and record how to revert that."""
    name, project = seed["name"], seed.pop("project", DEFAULT_PROJECT)
    url = object_url(kind.collection, name, project=project)
    what = f"{kind.name} {name!r}"
    found = api.find(url)
    if found is None or is_pending(found.metadata):
        body = {key: value for key, value in seed.items() if key != kind.fixed or value}
        collection = object_url(kind.collection, project=project)
        _named(f"Cannot create {what}", api.request, "POST", collection, body)
        undo.append(_Undo(what, lambda: api.request("DELETE", url)))
        return
    old = {key: found.metadata[key] for key in kind.editable}
    _check_fixed(kind, what, found.metadata, seed)
    new = merged(old, seed)
    if new != old:
        _named(f"Cannot change {what}", api.request, "PUT", url, new, etag=found.etag)
        undo.append(_Undo(what, lambda: api.request("PUT", url, old)))


def _check_fixed(kind: Kind, what: str, found: dict[str, Any], seed: dict[str, Any]) -> None:
    wanted = seed.get(kind.fixed)
    if wanted and wanted != found[kind.fixed]:
        raise InvalidRequest(
            f"The {what} has {kind.fixed} {found[kind.fixed]!r}, which cannot be changed to {wanted!r}"
        )


def merged(old: dict[str, Any], seed: dict[str, Any]) -> dict[str, Any]:
    """Merge a preseed by key, also within devices; an empty description is ignored."""
    new = {**old, "config": {**old["config"], **seed["config"]}}
    if seed["description"]:
        new["description"] = seed["description"]
    if "devices" in old:
        changed = {name: {**old["devices"].get(name, {}), **keys} for name, keys in seed["devices"].items()}
        new["devices"] = {**old["devices"], **changed}
    return new


def _named(what: str, call: Callable[..., object], *arguments: object, **options: object) -> None:
    """Call, prefixing errors with `what`."""
    try:
        call(*arguments, **options)
    except UtsuwaError as error:
        error.message = f"{what}: {error.message}"
        raise


def _put_back(undo: list[_Undo]) -> str:
    """Revert every step, last first; return a message about the result."""
    problems = []
    for done in reversed(undo):
        try:
            done.step()
        except UtsuwaError as error:
            problems.append(f"{done.what} ({error.message})")
    if problems:
        return f"These could not be restored: {'; '.join(problems)}"
    return "All changes were reverted"


@contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Within the block, SIGINT and SIGTERM only make the yielded function raise Cancelled."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    def stop_if_asked() -> None:
        if asked:
            raise Cancelled("Interrupted")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_if_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
