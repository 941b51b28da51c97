"""Make a daemon what a preseed says, as a whole or not at all.

What is there is changed key by key, as LXD does: keys that the preseed does not name stay. The server's
config comes last: the daemon changes it as a whole or not at all by itself (the listener moves with it,
and a password that is replaced could not be read back).
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
from utsuwa.daemon.local_api import LocalApi


@dataclass(frozen=True)
class Kind:
    """One kind of object: how it is called, where it is, and which field cannot be changed."""

    name: str
    collection: str
    fixed: str = ""
    editable: tuple[str, ...] = ("description", "config")


POOL = Kind("storage pool", "storage-pools", "driver")
NETWORK = Kind("network", "networks", "type")
PROJECT = Kind("project", "projects")
PROFILE = Kind("profile", "profiles", editable=("description", "config", "devices"))


def apply(api: LocalApi, preseed: Preseed) -> None:
    """Raises the first problem, after everything was put back as it was; the message says so.

    An interrupt is obeyed between two steps, never in the middle of one.
    """
    with _interrupts_noted() as stop_if_asked:
        undo: list[_Undo] = []
        try:
            for kind, seed in _in_order(preseed):
                stop_if_asked()
                _ensure(api, kind, seed, undo)
            stop_if_asked()
            if preseed.config:
                body = {"config": preseed.config}
                _named("Cannot change the server's config", api.request, "PATCH", "/1.0", body)
        except UtsuwaError as error:
            error.message = f"{error.message}. {_put_back(undo)}"
            raise
        except BaseException:
            _put_back(undo)
            raise


def _in_order(preseed: Preseed) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Projects may restrict themselves to networks of the default one; profiles use all the others."""
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
    """Create or change one object, and note how to take that back."""
    name, project = seed["name"], seed.pop("project", DEFAULT_PROJECT)
    url = object_url(kind.collection, name, project=project)
    what = f"{kind.name} {name!r}"
    found = api.find(url)
    if found is None:
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
            f"There is a {what} with {kind.fixed} {found[kind.fixed]!r}, which cannot become {wanted!r}"
        )


def merged(old: dict[str, Any], seed: dict[str, Any]) -> dict[str, Any]:
    """The editable part after a preseed: key by key, devices too; an empty description changes nothing."""
    new = {**old, "config": {**old["config"], **seed["config"]}}
    if seed["description"]:
        new["description"] = seed["description"]
    if "devices" in old:
        changed = {name: {**old["devices"].get(name, {}), **keys} for name, keys in seed["devices"].items()}
        new["devices"] = {**old["devices"], **changed}
    return new


def _named(what: str, call: Callable[..., object], *arguments: object, **options: object) -> None:
    """Call, and let an error say what could not be done."""
    try:
        call(*arguments, **options)
    except UtsuwaError as error:
        error.message = f"{what}: {error.message}"
        raise


def _put_back(undo: list[_Undo]) -> str:
    """Take back every step, the last first; tells how that went."""
    problems = []
    for done in reversed(undo):
        try:
            done.step()
        except UtsuwaError as error:
            problems.append(f"{done.what} ({error.message})")
    if problems:
        return f"These could not be put back as they were: {'; '.join(problems)}"
    return "Everything is as it was before"


@contextmanager
def _interrupts_noted() -> Iterator[Callable[[], None]]:
    """While inside, SIGINT and SIGTERM only make the given function raise Cancelled."""
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
