"""Assignment of CPUs to instances with `limits.cpu`: sets as configured, numbers balanced evenly.

With `limits.cpu.nodes`, CPUs and memory are those of NUMA nodes; a set in `limits.cpu` takes precedence.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from utsuwa.core.errors import InvalidConfig, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.rollback import Rollback
from utsuwa.core.threads import in_thread
from utsuwa.core.warning_types import CPUS_NOT_ASSIGNED
from utsuwa.host.cgroups import limits as cgroup_limits
from utsuwa.host.cgroups.limits import LimitFacts
from utsuwa.instances.confinement import limits
from utsuwa.instances.context import Context
from utsuwa.instances.model import CHOSEN_NODES, CpuWish, Running

log = logging.getLogger(__name__)

Cpus = frozenset[int]
CpusOf = Mapping[InstanceRef, Cpus]


class Place(NamedTuple):
    """Where a container runs; None for everywhere."""

    cpus: Cpus | None = None
    memory_nodes: frozenset[int] | None = None


def balance(
    pools: CpusOf,
    numbers: Mapping[InstanceRef, int],
    sets: CpusOf,
    now: CpusOf,
) -> dict[InstanceRef, Cpus]:
    """Assign CPUs to the instances with `numbers` of CPUs, from their `pools`, given the `sets` of others.

    Each is assigned the CPUs with the fewest instances, preferably those it has `now`, so that few instances
    are moved. Those with the fewest to choose from choose first, then those with more CPUs; a number above
    that of the pool's CPUs means all.
    """
    load = {cpu: 0 for pool in pools.values() for cpu in pool}
    for held in sets.values():
        for cpu in held & load.keys():
            load[cpu] += 1
    found = {}
    for ref in sorted(numbers, key=lambda ref: (len(pools[ref]), -numbers[ref], ref)):
        has = now.get(ref, frozenset())
        ranked = sorted(pools[ref], key=lambda cpu: (load[cpu], cpu not in has, cpu))
        chosen = frozenset(ranked[: numbers[ref]])
        for cpu in chosen:
            load[cpu] += 1
        found[ref] = chosen
    return found


def assign(wanted: Mapping[InstanceRef, CpuWish], now: CpusOf, facts: LimitFacts) -> dict[InstanceRef, Cpus]:
    """Assign CPUs to the instances that are limited.

    CPUs and nodes that no longer exist are omitted; numbers do not include isolated CPUs, unless there are no
    others.
    """
    sets, numbers, pools = {}, {}, {}
    for ref, wish in wanted.items():
        near = frozenset[int]().union(*(facts.nodes.get(n, ()) for n in limits.nodes_named(wish.nodes)))
        pool = near or facts.cpus
        if wish.limit.isdecimal():
            numbers[ref], pools[ref] = int(wish.limit), pool - facts.isolated or pool
        elif wish.limit:
            sets[ref] = (limits.cpus_named(wish.limit) & facts.cpus) or facts.cpus
        elif wish:
            sets[ref] = pool
    return {**balance(pools, numbers, sets, now), **sets}


def least_busy_node(others: Iterable[CpuWish], facts: LimitFacts, now: str = "") -> str:
    """Return the node with the fewest instances for its number of CPUs: the one it has `now`, if several."""
    used = [limits.nodes_named(wish.nodes) for wish in others]

    def load(node: int) -> tuple[float, bool, int]:
        instances = sum(node in nodes for nodes in used)
        return instances / len(facts.nodes[node]), str(node) != now, node

    with_cpus = [node for node, cpus in facts.nodes.items() if cpus]
    return str(min(with_cpus, key=load)) if with_cpus else ""


def choose_nodes(
    ctx: Context, ref: InstanceRef, config: Mapping[str, str], facts: LimitFacts
) -> dict[str, str | None]:
    """Return the volatile key with the chosen node if `limits.cpu.nodes` is `balanced`; None removes it."""
    now = config.get(CHOSEN_NODES)
    if config.get("limits.cpu.nodes") != limits.BALANCED:
        return {} if now is None else {CHOSEN_NODES: None}
    others = [other.cpu_wish for other in ctx.runtime.all() if other.ref != ref]
    return {CHOSEN_NODES: least_busy_node(others, facts, now or "")}


def for_start(ctx: Context, ref: InstanceRef, wish: CpuWish, facts: LimitFacts) -> Place:
    """Return where a container that is about to start runs."""
    if not wish:
        return Place()
    running = ctx.runtime.all()
    wanted = {other.ref: other.cpu_wish for other in running} | {ref: wish}
    cpus = assign(wanted, {r.ref: r.cpus for r in running if r.cpus is not None}, facts)
    return Place(cpus[ref], _memory(wish, facts))


def _memory(wish: CpuWish, facts: LimitFacts) -> frozenset[int] | None:
    """Return the nodes whose memory is used; None for all, also if none of them has memory."""
    return limits.nodes_named(wish.nodes) & facts.memory_nodes or None


async def change_wish(
    ctx: Context, running: Running, config: Mapping[str, str], undo: Rollback
) -> dict[str, str | None]:
    """Note the limits of CPUs in the config to which a running container is changed, for `rebalance`.

    Returns the volatile keys to change; None removes one.
    """
    volatile: dict[str, str | None] = {}
    if config.get("limits.cpu.nodes", "") != running.config.get("limits.cpu.nodes", ""):
        facts = await in_thread(cgroup_limits.read_limit_facts)
        volatile = choose_nodes(ctx, running.ref, config, facts)
    new = {**config, **volatile}
    undo.push(setattr, running, "cpu_wish", running.cpu_wish)
    running.cpu_wish = CpuWish.of({key: value for key, value in new.items() if value is not None})
    return volatile


async def rebalance(ctx: Context, must_move: Collection[InstanceRef] = ()) -> None:
    """Reassign the CPUs of all running containers, after a start, an end or a change.

    Only containers whose CPUs change are moved. Raises InvalidConfig if one of `must_move` cannot be moved.
    """
    async with ctx.locks.hold("cpus"):
        concerned = [r for r in ctx.runtime.all() if r.cpu_wish or r.cpus is not None]
        if not concerned:
            return
        facts = await in_thread(cgroup_limits.read_limit_facts)
        cpus = assign(
            {r.ref: r.cpu_wish for r in concerned},
            {r.ref: r.cpus for r in concerned if r.cpus is not None},
            facts,
        )
        moves = [
            (r, place)
            for r in concerned
            if (place := Place(cpus.get(r.ref), _memory(r.cpu_wish, facts))) != (r.cpus, r.memory_nodes)
        ]
        failed = await in_thread(_pin_all, moves) if moves else {}
    for running, _ in moves:
        error = failed.get(running.ref)
        ctx.warnings.judge(
            CPUS_NOT_ASSIGNED,
            "" if error is None else f"cannot move instance {running.name!r} to other CPUs: {error.strerror}",
            running.subject,
        )
    for ref, error in failed.items():
        if ref in must_move:
            raise InvalidConfig(f"Cannot set 'limits.cpu' of {ref.name!r}: {error.strerror}")


async def try_to_rebalance(ctx: Context) -> None:
    """As `rebalance`, after an action that is already complete: failures are only logged."""
    try:
        await rebalance(ctx)
    except (OSError, UtsuwaError) as error:
        log.warning("cannot reassign CPUs: %s; the next change tries again", error)


def _pin_all(moves: list[tuple[Running, Place]]) -> dict[InstanceRef, OSError]:
    """Pin containers to CPUs and memory; return the errors by instance."""
    failed = {}
    for running, place in moves:
        try:
            if place.cpus != running.cpus:
                cgroup_limits.pin(running.init_pid, place.cpus)
                running.cpus = place.cpus
            if place.memory_nodes != running.memory_nodes:
                cgroup_limits.pin(running.init_pid, place.memory_nodes, "cpuset.mems")
                running.memory_nodes = place.memory_nodes
        except OSError as error:
            # Its processes stay on their CPUs; the next change tries again.
            failed[running.ref] = error
    return failed
