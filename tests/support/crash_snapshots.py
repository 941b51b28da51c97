"""Snapshots, copies, restores, rebuilds and pushed files of instances whose daemon is killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support import crash_disks
from tests.support.crash_files import Push, Tree, files_in
from tests.support.crash_steps import Nic, Request, Step, patiently, same
from tests.support.daemon import Daemon
from tests.support.sftp_client import Client, connected, mounted_root
from tests.support.whole_trees import differences
from utsuwa.instances.files import sftp_packets as packets
from utsuwa.instances.files.sftp_packets import Reader, Status, Type

if TYPE_CHECKING:
    from tests.support.crash_world import World

LOOK = "look"
"""The name of the instance that shows the files of a snapshot."""
MOST_SNAPSHOTS = 7
"""Of an instance: so many that frozen layers are merged."""
MOST_INSTANCES = 4
SECOND_POOL = "second"
_CHUNK = 32_768


@dataclass
class Saved:
    """What a snapshot has."""

    files: Tree
    value: str
    nic: Nic
    disks: crash_disks.Devices
    checked: bool = field(default=False, compare=False)
    """Whether its files have been looked at since something was done with it."""


class SftpPush(Request):
    """Writes a file by SFTP."""

    def __init__(self, daemon: Daemon, name: str, path: str, data: bytes) -> None:
        super().__init__(daemon, "SFTP", f"/1.0/instances/{name}/sftp")
        self._path, self._data = path, data

    def send(self) -> None:
        with connected(self._daemon, self._url) as client:
            flags = packets.number(packets.WRITE | packets.CREATE | packets.TRUNCATE)
            reply = self._answer(
                client, Type.OPEN, packets.string(f"/{self._path}"), flags, packets.number(0)
            )
            handle = packets.string(reply.string())
            for offset in range(0, len(self._data), _CHUNK):
                place = offset.to_bytes(8, "big")
                chunk = packets.string(self._data[offset : offset + _CHUNK])
                self._answer(client, Type.WRITE, handle, place, chunk)
            self._answer(client, Type.CLOSE, handle)

    def _answer(self, client: Client, kind: Type, *parts: bytes) -> Reader:
        """The reply, from what follows its number on. Raises ConnectionResetError if there is none."""
        reply = client.send(kind, packets.number(1), *parts)
        if reply is None:
            raise ConnectionResetError
        what = Type(reply.byte())
        reply.number()
        if what is Type.STATUS:
            status, reason = reply.number(), reply.string()
            assert status == Status.OK, f"{kind.name} was refused: {reason.decode()}"
        return reply


class Snapshots:
    """The steps, and what must be true of snapshots."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.operations: dict[str, Callable[[], Step]] = {
            "snapshot": lambda: self.take(self._changed(running=False)),
            "live snapshot": lambda: self.take(self._changed(running=True)),
            "snapshot rename": self.rename,
            "snapshot delete": self.delete,
            "restore": lambda: self.restore(running=False),
            "live restore": lambda: self.restore(running=True),
            "copy": lambda: self.copy(running=False),
            "live copy": lambda: self.copy(running=True),
            "copy of snapshot": self.copy_snapshot,
            "copy to other pool": lambda: self.copy(running=False, elsewhere=True),
            "rebuild": lambda: self.rebuild(self._changed(running=False)),
            "file push": lambda: self.push(sftp=False),
            "file push by SFTP": lambda: self.push(sftp=True),
        }

    # ---- the steps

    def take(self, name: str) -> Step:
        world, known = self._world, self._world.instances[name]
        while len(known.snapshots) >= MOST_SNAPSHOTS:
            world.whole(self._delete(name, world.random.choice(sorted(known.snapshots))))
        new = self._free_name(name)
        saved = Saved(known.files[0], *world.settled(name))

        def after(done: bool) -> None:
            if new in self._listed(name):
                known.snapshots[new] = saved
            assert not done or new in known.snapshots, f"{name}/{new} was taken, and is lost"

        return world.step("POST", f"/1.0/instances/{name}/snapshots", {"name": new}, after)

    def rename(self) -> Step:
        name, old = self._have()
        known, new = self._world.instances[name], self._free_name(name)

        def after(done: bool) -> None:
            there = self._listed(name)
            assert (new in there) != (old in there), (
                f"{name}/{old} was renamed to {new}: exactly one must be there"
            )
            assert new in there or not done, f"{name}/{old} was renamed to {new}, and has its old name again"
            if new in there:
                known.snapshots[new] = known.snapshots.pop(old)
                known.snapshots[new].checked = False
            else:
                known.snapshots[old].checked = False

        return self._world.step("POST", f"/1.0/instances/{name}/snapshots/{old}", {"name": new}, after)

    def delete(self) -> Step:
        return self._delete(*self._have())

    def _delete(self, name: str, snapshot: str) -> Step:
        known = self._world.instances[name]

        def after(done: bool) -> None:
            if snapshot not in self._listed(name):
                del known.snapshots[snapshot]
            assert not done or snapshot not in known.snapshots, f"{name}/{snapshot} was deleted, and is there"
            for other in known.snapshots.values():
                other.checked = False

        return self._world.step("DELETE", f"/1.0/instances/{name}/snapshots/{snapshot}", None, after)

    def restore(self, *, running: bool) -> Step:
        world = self._world
        name, snapshot = self._have(lambda saved: saved.nic is None)
        world.bring(name, running=running)
        world.whole(world.change(name))  # so that what it has tells whether it was restored
        world.touch(name)
        known = world.instances[name]
        saved = known.snapshots[snapshot]

        def after(done: bool) -> None:
            restored = world.value(name) == saved.value
            assert restored or not done, f"{name} was restored, and is as before again"
            if restored:
                known.values, known.files = {saved.value}, [saved.files]
                known.nics, known.disks = [saved.nic], [saved.disks]
            if running:  # the restore has stopped it, or not yet
                patiently(lambda: same(world.status(name), "Running", name))
            saved.checked = False

        return world.step("PUT", f"/1.0/instances/{name}", {"restore": snapshot}, after)

    def copy(self, *, running: bool, elsewhere: bool = False) -> Step:
        world = self._world
        name = self._changed(running=running)
        known = world.instances[name]
        if known.nics != [None]:  # its route can be that of one instance only
            world.whole(world.remove_nic(name))
        pool = ({"default", SECOND_POOL} - {known.pool}).pop() if elsewhere else known.pool
        value, nic, disks = world.settled(name)
        saved = Saved(known.files[0], value, nic, disks)
        snapshots = {key: Saved(s.files, s.value, s.nic, s.disks) for key, s in known.snapshots.items()}
        return self._copy(name, name, pool, saved, snapshots)

    def copy_snapshot(self) -> Step:
        name, snapshot = self._have(lambda saved: saved.nic is None)
        known = self._world.instances[name]
        return self._copy(name, f"{name}/{snapshot}", known.pool, known.snapshots[snapshot], {})

    def _copy(self, name: str, source: str, pool: str, saved: Saved, snapshots: dict[str, Saved]) -> Step:
        world = self._world
        new = world.free_name(keep=name)
        root = {"type": "disk", "path": "/", "pool": pool}

        def after(done: bool) -> None:
            if world.there(new):
                known = world.add(new, saved.files, pool)
                known.values, known.nics, known.disks = {saved.value}, [saved.nic], [saved.disks]
                known.snapshots = snapshots
            assert not done or new in world.instances, f"{new} was copied from {source}, and is lost"

        body = {"name": new, "source": {"type": "copy", "source": source}, "devices": {"root": root}}
        return world.step("POST", "/1.0/instances", body, after)

    def rebuild(self, name: str) -> Step:
        world, known = self._world, self._world.instances[name]
        old, new = known.files[0], world.image_files

        def after(done: bool) -> None:
            known.files = [new] if done else [old, new]

        body = {"source": {"type": "image", "alias": "busybox"}}
        return world.step("POST", f"/1.0/instances/{name}/rebuild", body, after)

    def push(self, *, sftp: bool) -> Step:
        world = self._world
        name = world.have(running=world.random.random() < 0.5)
        world.files_of(name)
        known, path = world.instances[name], f"root/pushed{world.random.randrange(2)}"
        data = world.random.randbytes(world.random.choice((0, 1000, 3_000_000)))

        def after(done: bool) -> None:
            known.push = Push(path, data, done)

        if sftp:
            return Step(SftpPush(world.daemon, name, path, data), after)
        return world.step("POST", f"/1.0/instances/{name}/files?path=/{path}", data, after)

    def _changed(self, *, running: bool) -> str:
        """An instance whose files have just been changed."""
        name = self._world.have(running=running)
        self._world.touch(name)
        return name

    def _have(self, suitable: Callable[[Saved], bool] = lambda saved: True) -> tuple[str, str]:
        """An instance and a snapshot of it; taken where there is none."""
        world = self._world
        names = [n for n, known in world.instances.items() if any(map(suitable, known.snapshots.values()))]
        if not names:
            name = self._changed(running=world.random.random() < 0.5)
            if world.instances[name].nics != [None]:
                world.whole(world.remove_nic(name))
            world.whole(self.take(name))
            names = [name]
        name = world.random.choice(sorted(names))
        snapshots = world.instances[name].snapshots
        return name, world.random.choice(sorted(s for s in snapshots if suitable(snapshots[s])))

    def _free_name(self, name: str) -> str:
        taken = self._world.instances[name].snapshots
        return next(new for n in range(100) if (new := f"s{n}") not in taken)

    def _listed(self, name: str) -> list[str]:
        return [s["name"] for s in self._shown(name)]

    def _shown(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._world.daemon.get(f"/1.0/instances/{name}/snapshots?recursion=1")
        return found

    # ---- what must be true

    def check(self) -> None:
        """Snapshots are listed with the configuration that they were taken with."""
        world = self._world
        for name, known in world.instances.items():
            found = {s["name"]: s for s in self._shown(name)}
            same(set(found), set(known.snapshots), f"snapshots of {name}")
            for snapshot, saved in known.snapshots.items():
                shown = found[snapshot]
                same(shown["config"].get("user.a", ""), saved.value, f"the value of {name}/{snapshot}")
                same(shown["devices"].get("second"), saved.nic, f"the interface of {name}/{snapshot}")
                same(crash_disks.of(shown), saved.disks, f"the disks of {name}/{snapshot}")
                same(shown["profiles"], world.profiles, f"the profiles of {name}/{snapshot}")

    def check_files(self, *, all_: bool = False) -> None:
        """Those with which something was done have their files, and one other as well."""
        found = [(name, s) for name, known in self._world.instances.items() for s in known.snapshots]
        wanted = [(name, s) for name, s in found if all_ or not self._saved(name, s).checked]
        others = sorted(set(found) - set(wanted))
        for name, snapshot in [*wanted, *self._world.random.sample(others, min(1, len(others)))]:
            saved = self._saved(name, snapshot)
            assert differences(self._look(name, snapshot), saved.files) == [], f"files of {name}/{snapshot}"
            saved.checked = True

    def _saved(self, name: str, snapshot: str) -> Saved:
        return self._world.instances[name].snapshots[snapshot]

    def _look(self, name: str, snapshot: str) -> Tree:
        """The files of a snapshot, in a copy that a client of SFTP keeps mounted."""
        daemon, known = self._world.daemon, self._world.instances[name]
        body = {"name": LOOK, "source": {"type": "copy", "source": f"{name}/{snapshot}"}}
        devices = {"root": {"type": "disk", "path": "/", "pool": known.pool}}
        daemon.do("POST", "/1.0/instances", {**body, "devices": devices})
        with mounted_root(daemon, known.pool, LOOK) as root:
            found = files_in(root)
        daemon.do("DELETE", f"/1.0/instances/{LOOK}")
        return found

    def check_folders(self, pool: str) -> None:
        """The directories of snapshots on a pool, and the links to them."""
        folder = self._world.daemon.dir / "storage-pools" / pool / "containers-snapshots"
        found = (
            {path.name: {p.name for p in path.iterdir()} for path in folder.iterdir()}
            if folder.exists()
            else {}
        )
        here = {n: k for n, k in self._world.instances.items() if k.pool == pool and k.snapshots}
        same(found, {name: set(known.snapshots) for name, known in here.items()}, f"snapshots on {pool}")
        for name in here:
            link = self._world.daemon.dir / "snapshots" / name
            same(link.resolve(), (folder / name).resolve(), f"the link to the snapshots of {name}")
