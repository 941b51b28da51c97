"""A daemon that is killed again and again, what must be true of it, and the changes that a kill meets."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import crash_disks, crash_images, leaks
from tests.support.crash_files import Push, Tree, files_in, random_changes
from tests.support.crash_shared import NIC, Shared, shared_of
from tests.support.crash_snapshots import (
    MOST_INSTANCES,
    SECOND_POOL,
    Saved,
    Snapshots,
)
from tests.support.crash_steps import Leaked, Lost, Nic, Request, Settle, Step, patiently, same, told_as
from tests.support.daemon import Daemon
from tests.support.sftp_client import mounted_root
from tests.support.whole_trees import differences
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.app import owner_name
from utsuwa.host import lxc
from utsuwa.host.cgroups import tree as cgroups
from utsuwa.host.network import traffic
from utsuwa.storage.drivers import records

NAMES = ("one", "two", "three")
MORE_NAMES = (*NAMES, "four", "five", "six")
EXTRA = "extra"
"""The name of the second image, which is imported and deleted."""
NETWORK, SPARE = "kept", "spare"
"""The network of all instances, and one that comes and goes; `SPARE` is a pool too."""
QUIET = ("backups", "database", "shmounts")
"""Folders of the state folder that no change here leaves anything in."""
TABLES = (
    ("instances", "instances"),
    ("storage_pools", "storage-pools"),
    ("projects", "projects"),
    ("profiles", "profiles?all-projects=true"),
)
"""Tables, and the URLs that list their rows."""
LIMITS = ("100", "200", "300", "400")

RATES = ("", "10Mbit", "20Mbit")


@dataclass
class Known:
    """What must be true of an instance."""

    files: list[Tree]
    """What its files may be."""
    pool: str = "default"
    values: set[str] = field(default_factory=lambda: {""})
    """What its config keys `user.a` and `user.b` may both be."""
    running: bool | None = False
    """None where a kill has left it open."""
    nics: list[Nic] = field(default_factory=lambda: [None])
    """What its second interface may be."""
    disks: list[crash_disks.Devices] = field(default_factory=lambda: [{}])
    """What its disks and devices may be."""
    snapshots: dict[str, Saved] = field(default_factory=dict)
    push: Push | None = None
    """A file that has been pushed since `files` were found."""


class World:
    """The daemon (in a network namespace of its own), and what must be true of it."""

    def __init__(self, daemon: Daemon, random_: random.Random, extra: bytes) -> None:
        assert daemon.box is not None
        self.daemon, self.box = daemon, daemon.box
        self.random = random_
        self.extra = extra
        self.instances: dict[str, Known] = {}
        self.values: dict[str, set[str]] = {}
        """By the address of an object: what its config keys `user.a` and `user.b` may both be."""
        self.operations: dict[str, Callable[[], Step]] = {
            "image import": lambda: self.image(there=True),
            "image delete": lambda: self.image(there=False),
            "create": self.create_in_room,
            "start": lambda: self.start(self.have(running=False)),
            "exec": lambda: self.execute(self.have(running=True)),
            "rename": lambda: self.rename(self.have(running=False)),
            "stop": lambda: self.stop(self.have(running=True)),
            "delete": lambda: self.delete(self.have(running=False)),
            "config change": lambda: self.change(self.have(running=False)),
            "live config change": lambda: self.change(self.have(running=True)),
            "live device change": lambda: self.change_nic(self.have(running=True)),
            "live disk change": lambda: self.change_disks(self.have(running=True)),
            "server config": lambda: self.edit("/1.0", {"core.https_address": self._address()}),
            "profile edit": lambda: self.edit("/1.0/profiles/default", self._limits()),
            "network create": lambda: self.network(there=True),
            "network update": lambda: self.edit(f"/1.0/networks/{NETWORK}", self._subnet()),
            "network delete": lambda: self.network(there=False),
            "pool create": lambda: self.pool(there=True),
            "pool delete": lambda: self.pool(there=False),
        }
        """Each makes first what it needs, then gives the step."""
        self.disks = crash_disks.Disks(daemon.home / "disks")
        self.shared = Shared(self)
        self.snapshots = Snapshots(self)
        self.operations |= self.shared.operations | self.snapshots.operations
        self.links_before = set(self.box.links())
        self.others: set[str] = set()
        """Addresses on which others than the daemon listen."""
        daemon.do("POST", "/1.0/storage-pools", {"name": SECOND_POOL, "driver": "dir"})
        self._make_network()
        self.image_files: Tree = {}
        self.image_files = self.files_of(self.have(running=False))
        self.top, self.quiet = entries(daemon.dir), self._quiet()

    def _make_network(self) -> None:
        config = {"ipv4.address": "10.77.1.1/24", "ipv4.nat": "true", "ipv6.address": "none"}
        self.daemon.do("POST", "/1.0/networks", {"name": NETWORK, "config": config})
        nic = {"type": "nic", "name": "eth0", "network": NETWORK}
        self.daemon.do("PATCH", "/1.0/profiles/default", {"devices": {"eth0": nic}})

    def whole(self, step: Step) -> float:
        """Do a step that nothing cuts off; gives the seconds that it took."""
        step.request.run()
        assert step.request.done, step.request.error
        step.after(True)
        return step.request.seconds

    # ---- the steps

    def create(self) -> Step:
        name = self.random.choice([n for n in NAMES if n not in self.instances])

        def after(done: bool) -> None:
            if self.there(name):
                self.add(name, self.image_files)
            assert not done or name in self.instances, f"{name} was created, and is lost"

        body = {"name": name, "source": {"type": "image", "alias": "busybox"}, "profiles": self.profiles}
        return self.step("POST", "/1.0/instances", body, after)

    def create_in_room(self) -> Step:
        """Create one, and delete another before where there are as many as there may be."""
        if not set(NAMES) - set(self.instances):
            self.whole(self.delete(self.have(running=False, of=NAMES)))
        return self.create()

    def add(self, name: str, files: Tree, pool: str = "default") -> Known:
        """Know an instance that was created."""
        known = self.instances[name] = Known([files] if files else [], pool)
        return known

    def free_name(self, *, keep: str) -> str:
        """A name for one more instance; another one than `keep` is deleted where there is no room."""
        while len(self.instances) >= MOST_INSTANCES:
            name = self.random.choice(sorted(set(self.instances) - {keep}))
            self.bring(name, running=False)
            self.whole(self.delete(name))
        return self.random.choice([name for name in MORE_NAMES if name not in self.instances])

    def start(self, name: str) -> Step:
        return self.step("PUT", f"/1.0/instances/{name}/state", {"action": "start"}, self._power(name, True))

    def stop(self, name: str) -> Step:
        body = {"action": "stop", "force": True}
        return self.step("PUT", f"/1.0/instances/{name}/state", body, self._power(name, False))

    def _power(self, name: str, running: bool) -> Settle:
        def after(done: bool) -> None:
            self.instances[name].running = running if done else None

        return after

    def execute(self, name: str) -> Step:
        body = {
            "command": ["sh", "-c", "echo; sleep 600"],
            "record-output": self.random.random() < 0.5,
            "wait-for-websocket": False,
        }
        return self.step("POST", f"/1.0/instances/{name}/exec", body, lambda done: None)

    def record(self, name: str) -> Step:
        """A command that ends, and whose much output is kept in files."""
        body = {
            "command": ["sh", "-c", "yes | head -c 300000"],
            "record-output": True,
            "wait-for-websocket": False,
        }
        return self.step("POST", f"/1.0/instances/{name}/exec", body, lambda done: None)

    def rename(self, name: str) -> Step:
        new = self.random.choice([n for n in MORE_NAMES if n not in self.instances])

        def after(done: bool) -> None:
            moved = self.there(new)
            assert moved != self.there(name), f"{name} was renamed to {new}: exactly one must be there"
            assert moved or not done, f"{name} was renamed to {new}, and is called {name} again"
            if moved:
                self.instances[new] = self.instances.pop(name)

        return self.step("POST", f"/1.0/instances/{name}", {"name": new}, after)

    def delete(self, name: str) -> Step:
        def after(done: bool) -> None:
            if not self.there(name):
                del self.instances[name]
            assert not done or name not in self.instances, f"{name} was deleted, and is there again"

        return self.step("DELETE", f"/1.0/instances/{name}", None, after)

    def change(self, name: str) -> Step:
        known, value = self.instances[name], self.random.randbytes(4).hex()

        def after(done: bool) -> None:
            known.values = {value} if done else known.values | {value}

        body = {"config": {"user.a": value, "user.b": value, **self._limits()}}
        return self.step("PATCH", f"/1.0/instances/{name}", body, after)

    def change_nic(self, name: str) -> Step:
        """Add a second interface, change or replace it, or take it away."""
        known = self.instances[name]
        now = known.nics[-1]
        taken = {n["ipv4.routes"] for k in self.instances.values() for n in k.nics if n}
        route = self.random.choice([r for n in range(1, 250) if (r := f"198.51.100.{n}/32") not in taken])
        wanted = {"type": "nic", "nictype": "p2p", "name": self.random.choice(("eth1", "lan"))}
        wanted |= {"limits.max": self.random.choice(RATES), "ipv4.routes": route}
        goes = now is not None and self.random.random() < 0.3
        new: Nic = None if goes else {key: value for key, value in wanted.items() if value}

        def after(done: bool) -> None:
            known.nics = [new] if done else [*known.nics, new]

        return self._exchange(name, ("second",), {"second": new} if new else {}, after)

    def remove_nic(self, name: str) -> Step:
        """Take the second interface away."""

        def after(done: bool) -> None:
            self.instances[name].nics = [None]

        return self._exchange(name, ("second",), {}, after)

    def change_disks(self, name: str) -> Step:
        """Give the instance other disks and devices, which may be below each other."""
        known, new = self.instances[name], self.disks.some(self.random)

        def after(done: bool) -> None:
            known.disks = [new] if done else [*known.disks, new]

        return self._exchange(name, crash_disks.NAMES, new, after)

    def _exchange(self, name: str, names: tuple[str, ...], new: crash_disks.Devices, after: Settle) -> Step:
        """Replace the devices of some names."""
        instance = self.daemon.get(f"/1.0/instances/{name}")
        devices = {key: device for key, device in instance["devices"].items() if key not in names}
        kept = {key: instance[key] for key in ("config", "profiles")}
        return self.step("PUT", f"/1.0/instances/{name}", {"devices": devices | new, **kept}, after)

    def edit(self, url: str, config: dict[str, str]) -> Step:
        """Change the config of something that is there always: `config`, and two keys to know it by."""
        value, known = self.random.randbytes(4).hex(), self.values.setdefault(url, {""})

        def after(done: bool) -> None:
            self.values[url] = {value} if done else known | {value}

        body = {"config": {"user.a": value, **config, "user.b": value}}
        return self.step("PATCH", url, body, after)

    def _limits(self) -> dict[str, str]:
        return {"limits.processes": self.random.choice(LIMITS)}

    def _subnet(self) -> dict[str, str]:
        return {"ipv4.address": f"10.77.{self.random.randrange(1, 250)}.1/24"}

    def _address(self) -> str:
        return self.random.choice(["", f"127.0.0.1:{self.random.randrange(20000, 30000)}"])

    def image(self, *, there: bool) -> Step:
        """Import the second image, or delete it; before that the contrary where it is needed."""
        found = self._extra_images()
        if bool(found) == there:
            self.whole(self.image(there=not there))
            found = self._extra_images()

        def after(done: bool) -> None:
            assert not done or bool(self._extra_images()) == there, "an image came back, or was lost"

        if there:
            return self.step("POST", "/1.0/images", self.extra, after)
        return self.step("DELETE", f"/1.0/images/{found[0]}", None, after)

    def _extra_images(self) -> list[str]:
        found = self.daemon.get("/1.0/images?recursion=1")
        return [image["fingerprint"] for image in found if image["properties"]["name"] == EXTRA]

    def pool(self, *, there: bool) -> Step:
        return self._come_or_go("/1.0/storage-pools", {"name": SPARE, "driver": "overlay"}, there)

    def network(self, *, there: bool) -> Step:
        config = {"ipv4.address": "10.78.1.1/24", "ipv4.nat": "true", "ipv6.address": "none"}
        return self._come_or_go("/1.0/networks", {"name": SPARE, "config": config}, there)

    def _come_or_go(self, url: str, body: dict[str, object], there: bool) -> Step:
        """Make `SPARE`, or delete it; before that the contrary where it is needed."""
        own = f"{url}/{SPARE}"
        if (own in self.daemon.get(url)) == there:
            self.whole(self._come_or_go(url, body, not there))

        def after(done: bool) -> None:
            assert not done or (own in self.daemon.get(url)) == there, f"{own} came back, or was lost"

        if there:
            return self.step("POST", url, body, after)
        return self.step("DELETE", own, None, after)

    def step(self, method: str, url: str, body: object, after: Settle) -> Step:
        return Step(Request(self.daemon, method, url, body), after)

    def there(self, name: str) -> bool:
        return self.daemon.api("GET", f"/1.0/instances/{name}").status == 200

    def have(self, *, running: bool, of: tuple[str, ...] = ()) -> str:
        """The name of an instance that runs, or does not; made or stopped or started where there is none."""
        if not self.instances:
            self.whole(self.create())
        name = self.random.choice(sorted(n for n in self.instances if not of or n in of))
        self.bring(name, running=running)
        return name

    def bring(self, name: str, *, running: bool) -> None:
        """Start or stop an instance, unless it runs, or does not, already."""
        if self.instances[name].running != running:
            self.whole(self.start(name) if running else self.stop(name))

    # ---- what instances have

    @property
    def profiles(self) -> list[str]:
        """Those of all instances."""
        return ["default", self.shared.profile]

    def status(self, name: str) -> str:
        return str(self.daemon.get(f"/1.0/instances/{name}")["status"])

    def value(self, name: str) -> str:
        """The value of the instance's keys `user.a` and `user.b`."""
        return _both(self.daemon.get(f"/1.0/instances/{name}")["config"])

    def settled(self, name: str) -> tuple[str, Nic, crash_disks.Devices]:
        """The value, the second interface and the disks that an instance has, which no kill has left open."""
        known = self.instances[name]
        (value,), (nic,), (disks,) = known.values, known.nics, known.disks
        return value, nic, disks

    def files_of(self, name: str) -> Tree:
        """The files that an instance has now, which are those that it may have."""
        known = self.instances[name]
        with self._root(name) as root:
            found = files_in(root)
            if known.push is not None:
                known.push.check(root, known.files[0], found)
            elif known.files:
                wrong = min((differences(found, files) for files in known.files), key=len)
                assert wrong == [], f"files of {name}: {wrong}"
        known.files, known.push = [found], None
        return found

    @contextlib.contextmanager
    def _root(self, name: str) -> Iterator[Path]:
        known = self.instances[name]
        if known.running:
            yield Path(f"/proc/{self._pid(name)}/root")
        else:
            with mounted_root(self.daemon, known.pool, name) as root:
                yield root

    def touch(self, name: str) -> None:
        """Change some files of an instance."""
        self.files_of(name)
        known = self.instances[name]
        if known.running:
            self.daemon.lxc("exec", name, "--", "sh", "-c", random_changes(self.random))
        else:
            data = self.random.randbytes(10_000)
            self.daemon.do("POST", f"/1.0/instances/{name}/files?path=/root/mark", data)
        known.files = []
        self.files_of(name)

    def _pid(self, name: str) -> int:
        return int(self.daemon.get(f"/1.0/instances/{name}/state")["pid"])

    # ---- what must be true after every kill

    def check(self) -> None:
        """Raises Lost or Leaked."""
        with told_as(Lost):
            self.shared.check()
            self.check_instances()
            self.snapshots.check()
            self.check_values()
            same(crash_images.damaged(self.daemon.dir / "images"), [], "images with another hash")
        with told_as(Leaked):
            patiently(lambda: same(self.daemon.get("/1.0/operations"), {}, "operations"))
            self.check_files()
            self.check_rows()
            patiently(self.check_host)
            patiently(self.check_net)

    def check_instances(self) -> None:
        found = {i["name"]: i for i in self.daemon.get("/1.0/instances?recursion=1")}
        same(set(found), set(self.instances), "instances")
        for name, known in self.instances.items():
            config, state = found[name]["config"], found[name]["status"]
            same(found[name]["profiles"], self.profiles, f"profiles of {name}")
            same(found[name]["expanded_devices"]["root"]["pool"], known.pool, f"the pool of {name}")
            # What the instance says hides what the profile says, which may have been given up by a kill.
            assert _both(config) in known.values, f"{name} has {config}, not one of {known.values}"
            known.values = {_both(config)}
            nic = found[name]["devices"].get("second")
            assert nic in known.nics, f"{name} has {nic}, not one of {known.nics}"
            known.nics = [nic]
            disks = crash_disks.of(found[name])
            assert disks in known.disks, f"{name} has {disks}, not one of {known.disks}"
            known.disks = [disks]
            running = state == "Running"
            assert known.running in (None, running), f"{name} is {state}"
            known.running = running
            if running:
                limit = found[name]["expanded_config"].get("limits.processes", "max")
                same(self._limit(name), limit, f"limit in force in {name}")
                shared = {k: d for k, d in self.shared.devices[0].items() if k != NIC}
                check = partial(self.disks.check, self._pid(name), shared | disks)
                patiently(partial(check, self.daemon.dir / "devices" / name))

    def _limit(self, name: str) -> str:
        folders = cgroups.folders_of(self._pid(name))
        return (folders.get("pids") or folders[cgroups.UNIFIED]).joinpath("pids.max").read_text().strip()

    def check_values(self) -> None:
        for url, values in self.values.items():
            found = _both(self.daemon.get(url)["config"])
            assert found in values, f"{url} has {found}, not one of {values}"
            self.values[url] = {found}
        address = self.daemon.get("/1.0")["config"].get("core.https_address", "")
        listening = {line.split()[3] for line in self.box.run("ss", "-Hltn").splitlines()}
        listening = {a for a in listening if a.startswith("127.")} - self.others
        same(listening, {address} - {""}, "HTTPS addresses")

    def check_files(self) -> None:
        folder, names = self.daemon.dir, set(self.instances)
        same(entries(folder), self.top, "the state folder")
        same(self._quiet(), self.quiet, "files in quiet folders")
        same(entries(folder / "containers"), names, "links to containers")
        with_snapshots = {name for name, known in self.instances.items() if known.snapshots}
        same(entries(folder / "snapshots"), with_snapshots, "links to snapshots")
        same(entries(folder / "logs") | names, names, "logs")
        same(entries(folder / "devices") | names, names, "device nodes")
        same(entries(folder / "devlxd") | names, names, "sockets of the guest API")
        fingerprints = {i["fingerprint"] for i in self.daemon.get("/1.0/images?recursion=1")}
        same({n.partition(".")[0] for n in entries(folder / "images")}, fingerprints, "files of images")
        patiently(lambda: same(_hidden(folder / "cache"), [], "half documents of image servers"))
        for pool in ("default", SECOND_POOL):  # an image may just be unpacked, or a layer be merged
            patiently(partial(self._check_pool, pool, fingerprints))
        same(entries(folder / "storage-pools"), set(self._listed("storage-pools")), "pools")
        for kind in (folder / "security" / "seccomp", folder / "security" / "apparmor" / "profiles"):
            same(entries(kind) | names, names, f"files in {kind.name}")

    def _check_pool(self, pool: str, fingerprints: set[str]) -> None:
        folder = self.daemon.dir / "storage-pools" / pool
        names = {name for name, known in self.instances.items() if known.pool == pool}
        same(entries(folder / "containers"), names, f"folders of containers on {pool}")
        self.snapshots.check_folders(pool)
        unpacked = entries(folder / "images")
        same(unpacked | fingerprints, fingerprints, "unpacked images")
        volumes = self.daemon.get(f"/1.0/storage-pools/{pool}/volumes?recursion=1")
        containers = {v["name"] for v in volumes if v["type"] == "container" and "/" not in v["name"]}
        same(containers, names, "volumes")
        same({v["name"] for v in volumes if v["type"] == "image"}, unpacked, "volumes of images")
        if (folder / "layers").exists():
            volume_folders = [*(folder / "containers").iterdir(), *folder.glob("containers-snapshots/*/*")]
            used = [records.layers_of(records.load_volume(path)) for path in volume_folders]
            same(entries(folder / "layers"), set().union(*used), "layers")

    def _quiet(self) -> dict[str, set[str]]:
        return {name: entries(self.daemon.dir / name) - {"utsuwa.db-journal"} for name in QUIET}

    def _listed(self, kind: str) -> list[str]:
        return [str(url).partition("?")[0].rpartition("/")[2] for url in self.daemon.get(f"/1.0/{kind}")]

    def check_rows(self) -> None:
        """Nothing in the database that the API does not show, and no row without its owner."""
        path = StatePaths(self.daemon.dir).database
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            same(db.execute("PRAGMA foreign_key_check").fetchall(), [], "rows without an owner")
            same(db.execute("PRAGMA quick_check").fetchall(), [("ok",)], "the database")
            for table, kind in TABLES:
                names = [name for (name,) in db.execute(f"SELECT name FROM {table}")]  # noqa: S608
                same(sorted(names), sorted(self._listed(kind)), table)
            for table in ("instances_snapshots", "storage_volumes_snapshots"):
                count = sum(len(known.snapshots) for known in self.instances.values())
                same(db.execute(f"SELECT count(*) FROM {table}").fetchone(), (count,), table)  # noqa: S608
            same(
                db.execute("SELECT name FROM storage_volumes WHERE new_name != ''").fetchall(), [], "changes"
            )
            images = [row[0] for row in db.execute("SELECT fingerprint FROM images")]
            same(sorted(images), sorted(self._listed("images")), "images")
            same({row[0] for row in db.execute("SELECT name FROM networks")}, self.networks(), "networks")

    def networks(self) -> set[str]:
        """The names of the networks that the daemon manages."""
        return {n["name"] for n in self.daemon.get("/1.0/networks?recursion=1") if n["managed"]}

    def check_host(self) -> None:
        daemon = self.daemon
        running = {name for name, known in self.instances.items() if known.running}
        pools = daemon.dir / "storage-pools"
        roots = {str(pools / self.instances[n].pool / "containers" / n / "rootfs") for n in running}
        mounts = leaks.mounts_below(daemon.home, self.box.pid)
        same(sorted(mounts), sorted(set(mounts)), "mounts")
        images = {m for m in mounts if Path(m).is_relative_to(pools) and "/images/" in m}
        same(set(mounts) - images, roots, "mounts")
        same(len(leaks.loop_devices(daemon.home)), len(images), "loop devices")
        same(set(lxc.active(daemon.dir / "containers")), running, "containers of liblxc")
        monitors = set()
        for name in running:
            state = daemon.get(f"/1.0/instances/{name}/state")
            same(state["processes"], 1, f"processes in {name}")
            monitors.add(lxc.monitor_pid(state["pid"]))
        owners = {daemon.pid, *monitors, *self._dnsmasq().values()}
        strange = [found for found in leaks.processes_of(daemon.home) if not owners & set(_lineage(found[0]))]
        same(strange, [], "processes")
        self._check_cgroups(running)

    def _check_cgroups(self, running: set[str]) -> None:
        owner = owner_name(StatePaths(self.daemon.dir))
        found = {name for folder in leaks.cgroups_of(owner) for name in _subfolders(Path(folder))}
        wanted = {f"lxc.{kind}.{name}" for kind in ("monitor", "payload") for name in running}
        # liblxc moves monitors there that end; the daemon's next start takes it away.
        same(found - {"lxc.pivot"}, wanted, "cgroups")

    def _dnsmasq(self) -> dict[str, int]:
        folder = self.daemon.dir / "networks"
        return {name: int((folder / name / "dnsmasq.pid").read_text()) for name in entries(folder)}

    def check_net(self) -> None:
        networks = self.networks()
        same(entries(self.daemon.dir / "networks"), networks, "folders of networks")
        found = self.daemon.get("/1.0/instances?recursion=1")
        pairs = self._check_nics([i for i in found if i["status"] == "Running"])
        same(set(self.box.links()) - self.links_before, networks | pairs, "interfaces")
        objects = self.box.nft("ruleset")
        chains = {o["chain"]["name"] for o in objects if "chain" in o}
        same(chains, {f"{p}.{name}" for p in ("in", "out", "fwd", "pstrt") for name in networks}, "chains")
        for name in networks:
            shown = self.daemon.get(f"/1.0/networks/{name}")
            same(shown["status"], "Created", name)
            same(self.box.addresses(name), {shown["config"]["ipv4.address"]}, f"addresses of {name}")
            os.kill(self._dnsmasq()[name], 0)
            hosts = self.daemon.dir / "networks" / name / "dnsmasq.hosts"
            macs = {file.read_text().partition(",")[0] for file in hosts.iterdir()}
            known = {i["config"].get("volatile.eth0.hwaddr", "") for i in found}
            assert macs <= known, f"hosts of {name}: {macs} instead of {known}"

    def _check_nics(self, running: list[dict[str, Any]]) -> set[str]:
        """What the second interfaces have on the host and inside; gives the host's interfaces of all."""
        pairs = {i["config"]["volatile.eth0.host_name"] for i in running}
        wanted = {}
        for instance in running:
            nic = instance["devices"].get("second")
            inside = set(self.daemon.get(f"/1.0/instances/{instance['name']}/state")["network"])
            shared = shared_of(instance["expanded_devices"]).get(NIC)
            names = {device["name"] for device in (nic, shared) if device}
            same(inside, {"lo", "eth0"} | names, "interfaces inside")
            assert "volatile.last_state.change" not in instance["config"]
            if shared:
                pairs.add(instance["config"][f"volatile.{NIC}.host_name"])
            if nic is None:
                continue
            pair = instance["config"]["volatile.second.host_name"]
            pairs.add(pair)
            wanted[nic["ipv4.routes"].removesuffix("/32")] = pair
            rates = re.findall(r" rate (\S+)", self.box.run("tc", "class", "show", "dev", pair))
            same(rates, [nic["limits.max"]] if nic.get("limits.max") else [], "limits of traffic")
            helper = traffic.helper_name(pair)
            pairs |= {helper} if nic.get("limits.max") and helper in self.box.links() else set()
        routes = json.loads(self.box.run("ip", "-j", "route"))
        ours = {route["dst"]: route["dev"] for route in routes if route["dst"].startswith("198.51.100.")}
        same(ours, wanted, "routes")
        return pairs

    def check_that_all_start(self) -> None:
        """Start what is stopped, find what was written, and stop some again. Raises Lost."""
        with told_as(Lost):
            self.snapshots.check_files()
            for name, known in self.instances.items():
                if not known.running:
                    self.daemon.do("PUT", f"/1.0/instances/{name}/state", {"action": "start"})
                    known.running = True
                if self.files_of(name) == self.image_files:
                    self.touch(name)
                if self.random.random() < 0.6:
                    body = {"action": "stop", "force": True}
                    self.daemon.do("PUT", f"/1.0/instances/{name}/state", body)
                    known.running = False


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _hidden(folder: Path) -> list[str]:
    return [name for name in entries(folder) if name.startswith(".")]


def _both(config: dict[str, Any]) -> str:
    """The value that both keys have."""
    assert config.get("user.a", "") == config.get("user.b", ""), "half a change was stored"
    return str(config.get("user.a", ""))


def _lineage(pid: int) -> Iterator[int]:
    """A process and its ancestors, as far as they can be seen."""
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def _subfolders(cgroup: Path) -> set[str]:
    return {entry.name for entry in cgroup.iterdir() if entry.is_dir()}
