"""Which CPUs each instance with `limits.cpu` runs on: sets as they are asked for, numbers spread evenly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import TypeVar

from utsuwa.core.errors import InvalidConfig, UtsuwaError
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.instances.confinement import limits
from utsuwa.instances.context import Context
from utsuwa.instances.model import Running

log = logging.getLogger(__name__)

Name = TypeVar("Name", bound=tuple[str, ...])
Cpus = frozenset[int]


def balance(
    cpus: Cpus, numbers: Mapping[Name, int], sets: Mapping[Name, Cpus], now: Mapping[Name, Cpus]
) -> dict[Name, Cpus]:
    """CPUs for the instances that want `numbers` of them, beside those that name their `sets`.

    Each gets the CPUs that the fewest others are on, among equals those it has `now`, so that as little
    as possible moves; a number above what there is means all. Large ones choose first.
    """
    load = {cpu: sum(cpu in held for held in sets.values()) for cpu in cpus}
    found = {}
    for name in sorted(numbers, key=lambda name: (-numbers[name], name)):
        has = now.get(name, frozenset())
        ranked = sorted(cpus, key=lambda cpu: (load[cpu], cpu not in has, cpu))
        chosen = frozenset(ranked[: numbers[name]])
        for cpu in chosen:
            load[cpu] += 1
        found[name] = chosen
    return found


def assign(wanted: Mapping[Name, str], now: Mapping[Name, Cpus], facts: LimitFacts) -> dict[Name, Cpus]:
    """CPUs by the values of `limits.cpu`. CPUs that have gone since are left out; numbers take no
    isolated ones, unless there are no others."""
    sets = {
        name: (limits.cpus_named(value) & facts.cpus) or facts.cpus
        for name, value in wanted.items()
        if value and not value.isdecimal()
    }
    numbers = {name: int(value) for name, value in wanted.items() if value.isdecimal()}
    return {**balance(facts.cpus - facts.isolated or facts.cpus, numbers, sets, now), **sets}


def for_start(ctx: Context, key: tuple[str, str], value: str, facts: LimitFacts) -> Cpus | None:
    """The CPUs that a container which is about to start shall have; None where nothing limits it."""
    if not value:
        return None
    running = ctx.runtime.all()
    wanted = {other.key: other.cpu_limit for other in running} | {key: value}
    return assign(wanted, {r.key: r.cpus for r in running if r.cpus is not None}, facts)[key]


async def rebalance(ctx: Context, must_move: Collection[tuple[str, str]] = ()) -> None:
    """Hand out the CPUs anew among all running containers: after a start, an end or a change.

    Only containers whose CPUs become others are touched. Raises InvalidConfig where one of `must_move`
    cannot be moved.
    """
    async with ctx.locks.hold("cpus"):
        concerned = [r for r in ctx.runtime.all() if r.cpu_limit or r.cpus is not None]
        if not concerned:
            return
        facts = await asyncio.to_thread(cgroup_limits.read_limit_facts)
        found = assign(
            {r.key: r.cpu_limit for r in concerned},
            {r.key: r.cpus for r in concerned if r.cpus is not None},
            facts,
        )
        moves = [(r, found.get(r.key)) for r in concerned if r.cpus != found.get(r.key)]
        failed = await asyncio.to_thread(_pin_all, moves) if moves else {}
    for key, error in failed.items():
        if key in must_move:
            raise InvalidConfig(f"Cannot set 'limits.cpu' of {key[1]!r}: the kernel says {error.strerror}")


async def try_to_rebalance(ctx: Context) -> None:
    """As `rebalance`, after what has come to its end by then: a failure is told in the log alone."""
    try:
        await rebalance(ctx)
    except (OSError, UtsuwaError) as error:
        log.warning("the CPUs were not handed out anew: %s; the next change tries again", error)


def _pin_all(moves: list[tuple[Running, Cpus | None]]) -> dict[tuple[str, str], OSError]:
    """Gives what went wrong, by instance."""
    failed = {}
    for running, cpus in moves:
        try:
            cgroup_limits.pin(running.init_pid, cpus)
        except OSError as error:
            # Its processes run on where they are; the next change tries again.
            log.warning("cannot move instance %r to other CPUs: %s", running.name, error)
            failed[running.key] = error
        else:
            running.cpus = cpus
    return failed
