"""Restoring the running state of a container: CRIU, run by liblxc, with what it needs of the host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utsuwa.core import faults
from utsuwa.core.errors import HostError, InvalidRequest, ProcessFailed, StartFailed
from utsuwa.core.idmap import IdMap
from utsuwa.core.rollback import Rollback
from utsuwa.core.tasks import finish
from utsuwa.host import lxc
from utsuwa.host.cgroups import io_limits
from utsuwa.host.cgroups import moves as cgroup_moves
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.checkpoint import commands, console, places
from utsuwa.host.checkpoint.program import Criu, failure_in, kill_all
from utsuwa.host.files.filetree import remove_tree
from utsuwa.host.network import veth
from utsuwa.host.network.veth import Pair
from utsuwa.host.processes import pidfds
from utsuwa.host.processes.run import PATH, spawn
from utsuwa.instances.confinement import limits
from utsuwa.instances.confinement.host_facts import read_host_facts
from utsuwa.instances.confinement.lxcconf import ContainerSpec
from utsuwa.instances.context import Context
from utsuwa.instances.lifecycle import orphans
from utsuwa.instances.model import Loaded, Running, RuntimePaths
from utsuwa.instances.running_state.saved import USED, Saved
from utsuwa.security import idmap

_TTY_GROUP = 5
"""The group `tty` of every Linux distribution."""
_PROFILE = "lxc.apparmor.profile"
_TIMEOUT = 600.0
_PID = "criu.pid"
_PAUSE = 0.05
"""Seconds between looks for CRIU's pid."""


def check(instance: Loaded, saved: Saved, ids: IdMap, nics: Sequence[str]) -> None:
    """Raise InvalidRequest if an instance is no longer as it was when its state was saved."""
    name = instance.name
    again = f"undo that change, or start it without the state: `utsuwa start --stateless {name}`"
    if idmap.to_json(ids) != saved.record.idmap:
        raise InvalidRequest(f"The instance {name!r} has other ids than when its state was saved: {again}")
    if sorted(nics) != sorted(saved.record.nics):
        raise InvalidRequest(
            f"The instance {name!r} had the network interfaces {', '.join(saved.record.nics) or 'none'} when "
            f"its state was saved, and has {', '.join(sorted(nics)) or 'none'} now: {again}"
        )


def sources(saved: Saved, spec: ContainerSpec, name: str) -> dict[str, str]:
    """Return the host's paths for what the container had of the host. Blocking.

    They are those of the instance's configuration now: nothing is taken from the saved files. Raises
    InvalidRequest if one is missing.
    """
    facts = read_host_facts()
    given = {str(path): str(path) for path in facts.folders}
    given |= {f"/{inside}": str(source) for source, inside in spec.nodes}
    if facts.lxcfs is not None:
        given |= {f"/{file}": str(facts.lxcfs / file) for file in facts.lxcfs_files}
        given["/var/lib/lxcfs"] = str(facts.lxcfs)
    given |= {mount.target: str(mount.source) for mount in spec.mounts}
    wanted = [path for path in saved.record.mounts if path != commands.CONSOLE]
    found, missing = places.sources(wanted, given)
    if missing:
        raise InvalidRequest(
            f"The state of {name!r} needs what was mounted at {', '.join(missing[:5])}, and neither the "
            f"instance nor the host has that now: bring it back, or use `utsuwa start --stateless {name}`"
        )
    return found


def profile(spec: ContainerSpec) -> str:
    """Return the AppArmor profile of a container that is restored; empty to leave it as it was saved.

    The profile's name contains that of the instance, which may have been renamed since.
    """
    if _PROFILE in spec.config.get("raw.lxc", ""):
        return ""
    name = dict(spec.apparmor).get(_PROFILE, "")
    return "" if name == "unchanged" else name


@dataclass(frozen=True)
class Resumption:
    """One restore of a container that is prepared as for a start."""

    ctx: Context
    instance: Loaded
    spec: ContainerSpec
    saved: Saved
    criu: Criu

    @property
    def _paths(self) -> RuntimePaths:
        return self.ctx.runtime_paths(self.instance)

    async def run(self, undo: Rollback) -> tuple[int, int | None]:
        """Restore the container; return the pids of its init and of liblxc's monitor. Raises StartFailed."""
        mounts = await asyncio.to_thread(sources, self.saved, self.spec, self.instance.name)
        nics = await self._prepare_nics(self.spec.nics, undo)
        folder = self._paths.restore
        await asyncio.to_thread(remove_tree, folder)
        await asyncio.to_thread(folder.mkdir, mode=0o700)
        ids = self.spec.idmap
        owner = (ids.host_uid(0), ids.host_gid(_TTY_GROUP))
        stack = contextlib.ExitStack()
        try:
            terminal = await asyncio.to_thread(
                stack.enter_context, console.kept(self._paths.folder, self._paths.console, owner)
            )
            await asyncio.to_thread(self._write_programs, mounts, nics, terminal.name)
            faults.point("state is about to be restored")
            async with cgroup_moves.kept_warm():
                code = await self._run_liblxc(terminal.life)
        finally:
            await asyncio.to_thread(stack.close)
        name, lxcpath = self.instance.ref.storage_name, self.ctx.paths.containers
        pid = await self.ctx.helper.init_pid(name, lxcpath) if code == 0 else None
        if pid is None:
            await finish(kill_all(self.saved.folder))
            raise StartFailed(
                f"Failed to restore the running state of {self.instance.name!r}: "
                f"{await asyncio.to_thread(self._reason)}: correct this, or start it without the state with "
                f"`utsuwa start --stateless {self.instance.name}`"
            )
        return pid, await asyncio.to_thread(lxc.monitor_pid, pid)

    async def _prepare_nics(self, pairs: Sequence[Pair], undo: Rollback) -> dict[str, str]:
        """Create pairs of interfaces; return the ends for the container by their names inside."""
        ends = {}
        for pair in pairs:
            end = f"veth{secrets.token_hex(4)}"
            undo.push(veth.delete, pair.host_name)
            await asyncio.to_thread(veth.prepare, pair, end)
            ends[pair.name] = end
        return ends

    @property
    def _used(self) -> Path:
        """The file that CRIU's action creates when the processes begin to run."""
        return (self.saved.folder if self.saved.own else self._paths.restore) / USED

    def _write_programs(self, mounts: Mapping[str, str], nics: Mapping[str, str], terminal: str) -> None:
        folder, ids, unified = self._paths.restore, self.spec.idmap, cgroups.unified_mount()
        actions = commands.Actions(
            init_file=self._paths.restored_init,
            used=self._used,
            cgroups="" if unified is None else str(unified),
            parent=self.ctx.cgroup,
            owner=f"{ids.host_uid(0)}:{ids.host_gid(0)}",
            ports={pair.host_name: pair.bridge for pair in self.spec.nics if pair.bridge},
        )
        script = folder / "actions"
        job = commands.Restore(
            images=self.saved.folder,
            log=folder / commands.RESTORE_LOG,
            mounts={**mounts, commands.CONSOLE: terminal},
            nics=nics,
            tty=self.saved.record.tty,
            terminal=terminal,
            action_script=script,
            keep_connections=self.saved.keeps_connections,
            profile=profile(self.spec),
        )
        argv = commands.restore(self.criu.program, job)
        program = commands.wrapper(argv, self.criu.version, terminal, folder / _PID)
        for path, text in ((script, commands.action_script(actions)), (folder / "criu", program)):
            path.write_text(text)
            path.chmod(0o700)

    async def _run_liblxc(self, life: int) -> int:
        """Have liblxc restore the container; its monitor stays, with `life` and the output file open."""
        paths = self._paths
        output = await asyncio.to_thread(os.open, paths.restore / "output", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            program = await asyncio.to_thread(
                partial(
                    spawn,
                    lxc.restore_command(
                        self.instance.ref.storage_name,
                        self.ctx.paths.containers,
                        paths.conf,
                        paths.log,
                        self.saved.folder,
                    ),
                    env={"PATH": f"{paths.restore}:{PATH}"},
                    pass_fds=(life,),
                    output_fd=output,
                )
            )
        finally:
            os.close(output)
        watching = asyncio.create_task(self._watch_criu())
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await program.wait()
        except TimeoutError:
            return -1
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            program.close()

    async def _watch_criu(self) -> None:
        """If CRIU is killed, kill what it has created: liblxc would wait for that, and that for CRIU."""
        file = self._paths.restore / _PID
        while not (pid := await asyncio.to_thread(_line, file)):  # noqa: ASYNC110 - another program writes it
            await asyncio.sleep(_PAUSE)
        await pidfds.wait(int(pid))
        if not await asyncio.to_thread(self._used.exists):
            await kill_all(self.saved.folder)
            await orphans.kill_left(self.ctx, self.instance.ref.storage_name)

    def _reason(self) -> str:
        reason = failure_in(self._paths.restore / commands.RESTORE_LOG)
        return reason or lxc.logged(self._paths.log) or "neither CRIU nor liblxc gives a reason"


def _line(file: Path) -> str:
    """Return the only line of a file; empty as long as it is not there."""
    try:
        line, end, _ = file.read_text().partition("\n")
    except FileNotFoundError:
        return ""
    return line if end else ""


async def apply_limits(ctx: Context, running: Running, disks: io_limits.Limits) -> None:
    """Apply the limits to a restored container, which liblxc has put into cgroups without any."""
    await limits.enforce_all(ctx.warnings, [running])
    await asyncio.to_thread(io_limits.change, running.init_pid, {}, disks)


def forget_console(paths: RuntimePaths) -> None:
    """Remove what an earlier restore has left, before another start. Blocking."""
    console.forget(paths.folder)
    paths.restored_init.unlink(missing_ok=True)
    with contextlib.suppress(ProcessFailed, HostError):
        remove_tree(paths.restore)
