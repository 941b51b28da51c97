"""The steps of the guided tour, and how the visitor's own daemon tells that they are done."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from utsuwa.tryit.inside import Inside
from utsuwa.tryit.visitors import Container
from utsuwa.tryit.watch import Watch

Data = dict[str, Any]

_DOCKER_PROFILE = "docker"
_DOCKER_CONTAINERS = "/var/lib/docker/containers"
_DOCKER_ID = re.compile("[0-9a-f]{64}")
_NAME = re.compile("[A-Za-z0-9-]{1,63}")
_NEVER = "0001-"
"""How Docker's time of what has not happened begins."""
_MOST_LOOKED_AT = 20
"""Instances, and containers in them."""


@dataclass(frozen=True)
class Verdict:
    """Whether a step is done; if it is not, `hint` is a short code of what is missing."""

    done: bool
    hint: str = ""
    data: Data = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """What the check of one visitor's step may look at."""

    inside: Inside
    before: Container
    """What was in the container when its visitor came."""
    events: Watch


@dataclass(frozen=True)
class Step:
    """One step, whose texts are the page's."""

    id: str
    check: Callable[[Look], Awaitable[Verdict]]
    commands: tuple[str, ...] = field(kw_only=True)
    """What visitors are asked to run; the check accepts other names as well."""
    in_turns: bool = field(default=False, kw_only=True)
    """Whether few visitors do it at a time, as it needs much of the host."""


async def _launch(look: Look) -> Verdict:
    instances = await _instances(look)
    if not instances:
        return Verdict(False, "no-instance")
    for instance in instances:
        if _is_running(instance):
            return Verdict(True, data={"name": instance.get("name")})
    return Verdict(False, "not-running", {"name": instances[0].get("name")})


async def _exec(look: Look) -> Verdict:
    return _happened(look, "instance-exec", "no-exec")


async def _limits(look: Look) -> Verdict:
    for instance in await _instances(look):
        limits = {key: value for key, value in _own_config(instance).items() if key.startswith("limits.")}
        if limits:
            return Verdict(True, data={"name": instance.get("name"), "limits": limits})
    return Verdict(False, "no-limit")


async def _snapshot(look: Look) -> Verdict:
    for instance in await _instances(look):
        if snapshots := _entries(instance.get("snapshots")):
            return Verdict(True, data={"name": instance.get("name"), "snapshot": snapshots[-1].get("name")})
    return Verdict(False, "no-snapshot")


async def _restore(look: Look) -> Verdict:
    return _happened(look, "instance-snapshot-restored", "no-restore")


async def _profile(look: Look) -> Verdict:
    (found,) = await look.inside.ask("/1.0/profiles?recursion=1")
    own = [profile for profile in _entries(found) if profile.get("name") not in look.before.profiles]
    for profile in own:
        if profile.get("used_by"):
            return Verdict(True, data={"name": profile.get("name")})
    return (
        Verdict(False, "profile-unused", {"name": own[0].get("name")})
        if own
        else Verdict(False, "no-profile")
    )


async def _images(look: Look) -> Verdict:
    (found,) = await look.inside.ask("/1.0/images?recursion=1")
    for image in _entries(found):
        if image.get("fingerprint") not in look.before.images:
            aliases = [alias.get("name") for alias in _entries(image.get("aliases"))]
            return Verdict(True, data={"fingerprint": image.get("fingerprint"), "aliases": aliases})
    return Verdict(False, "no-image")


async def _copy(look: Look) -> Verdict:
    """A copy has the config of its source, which was given a limit, and what is launched has none."""
    seen: list[Data] = []
    for instance in await _instances(look):
        config = _own_config(instance)
        if config and config in seen:
            return Verdict(True, data={"name": instance.get("name")})
        seen.append(config)
    return Verdict(False, "no-copy")


async def _docker(look: Look) -> Verdict:
    """A container of Docker is a directory of its instance, with a file that says when it was started."""
    running = [instance for instance in await docker_instances(look.inside) if _is_running(instance)]
    if not running:
        return Verdict(False, "no-docker")
    names = [str(instance.get("name")) for instance in running]
    folders = [f"/1.0/instances/{name}/files?path={_DOCKER_CONTAINERS}" for name in names]
    files = [
        f"{folder}/{id}/config.v2.json"
        for folder, ids in zip(folders, await look.inside.ask(*folders), strict=True)
        for id in (ids if isinstance(ids, list) else [])
        if _DOCKER_ID.fullmatch(str(id))
    ]
    for described in await look.inside.read(*files[:_MOST_LOOKED_AT]) if files else []:
        match described:
            case {"State": {"StartedAt": str(started)}} if not started.startswith(_NEVER):
                return Verdict(True, data={"name": names[0]})
    return Verdict(False, "no-docker-run", {"name": names[0]})


async def docker_instances(inside: Inside) -> list[Data]:
    """Return the instances with the profile `docker`, whatever their state. Raises Unavailable."""
    (found,) = await inside.ask("/1.0/instances?recursion=1")
    instances = [entry for entry in _entries(found) if _NAME.fullmatch(str(entry.get("name")))]
    with_docker = [entry for entry in instances if _DOCKER_PROFILE in _strings(entry.get("profiles"))]
    return with_docker[:_MOST_LOOKED_AT]


def _is_running(instance: Data) -> bool:
    return instance.get("status") == "Running"


def _happened(look: Look, action: str, hint: str) -> Verdict:
    return Verdict(True) if action in look.events else Verdict(False, hint)


async def _instances(look: Look) -> list[Data]:
    """Return all instances with their snapshots, oldest first."""
    (found,) = await look.inside.ask("/1.0/instances?recursion=2")
    return sorted(_entries(found), key=lambda entry: str(entry.get("created_at")))


def _entries(value: object) -> list[Data]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _strings(value: object) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _own_config(instance: Data) -> Data:
    """Return the config that was set on an instance itself."""
    config = instance.get("config")
    if not isinstance(config, dict):
        return {}
    return {key: value for key, value in config.items() if not key.startswith(("volatile.", "image."))}


STEPS = (
    Step("launch", _launch, commands=("utsuwa launch busybox first", "utsuwa list")),
    Step(
        "exec",
        _exec,
        commands=(
            "utsuwa exec first -- ps",
            "utsuwa exec first -- sh -c 'echo hello > /root/note'",
            "utsuwa exec first -- cat /root/note",
        ),
    ),
    Step(
        "limits",
        _limits,
        commands=("utsuwa config set first limits.memory=64MiB", "utsuwa list -c n,s,m,limits.memory"),
    ),
    Step("snapshot", _snapshot, commands=("utsuwa snapshot first before", "utsuwa list")),
    Step(
        "restore",
        _restore,
        commands=(
            "utsuwa exec first -- rm /root/note",
            "utsuwa restore first before",
            "utsuwa exec first -- cat /root/note",
        ),
    ),
    Step(
        "profile",
        _profile,
        commands=(
            "utsuwa profile create small",
            "utsuwa profile set small limits.processes=100",
            "utsuwa profile add first small",
            "utsuwa list -c nsP",
        ),
    ),
    Step(
        "images",
        _images,
        commands=(
            "utsuwa publish first/before --alias mine",
            "utsuwa image list -c lfs",
            "utsuwa launch mine second",
        ),
    ),
    Step("copy", _copy, commands=("utsuwa copy first twin", "utsuwa start twin", "utsuwa list")),
    Step(
        "docker",
        _docker,
        commands=(
            "utsuwa launch docker box -p default -p docker",
            "utsuwa exec box -- docker load --input /root/busybox.tar",
            "utsuwa exec box -- docker run busybox echo hello from Docker",
            "utsuwa exec box -- docker ps --all",
        ),
        in_turns=True,
    ),
)
BY_ID = {step.id: step for step in STEPS}
